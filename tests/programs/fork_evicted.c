// SPDX-License-Identifier: GPL-2.0-or-later
//
// fork with pages out: parent, child and grandchild each see the whole, and none sees another's writes.
#include "check.h"

enum { KEY = 1, PARENT = 2, CHILD = 3, GRANDCHILD = 4 };

static const size_t size = 16 * MIB;

static void descend(char *area, int key)
{
	verify(area, size, KEY);
	fill(area, size / 2, key);
	if (key == CHILD) {
		pid_t grandchild = fork();

		if (!grandchild) {
			verify(area, size / 2, CHILD);
			verify_from(area + size / 2, size / 2, KEY, size / 2 / PAGE);
			fill(area, size, GRANDCHILD);
			verify(area, size, GRANDCHILD);
			_exit(0);
		}
		wait_for(grandchild);
	}
	verify(area, size / 2, key);
	verify_from(area + size / 2, size / 2, KEY, size / 2 / PAGE);
}

int main(int argc, char **argv)
{
	char *area = map_filled(size, KEY);
	pid_t child;

	push_out(area, size, ballast_bytes(argc, argv));
	for (int round = 0; round < 3; round++) {
		child = fork();
		REQUIRE(child >= 0);
		descend(area, child ? PARENT : CHILD);
		if (!child)
			_exit(0);
		wait_for(child);
		fill(area, size, KEY);
	}
	return done();
}
