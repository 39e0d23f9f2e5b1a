// SPDX-License-Identifier: GPL-2.0-or-later
//
// vfork with pages out: the child borrows the memory itself, writes in it, ends or execs; the parent sees it.
#include "check.h"

static char *area;
static const size_t size = 8 * MIB;

int main(int argc, char **argv)
{
	pid_t child;

	area = map_filled(size, 1);
	push_out(area, size, ballast_bytes(argc, argv));
	for (int round = 0; round < 20; round++) {
		child = vfork();
		if (!child) {
			verify(area, size, (uint64_t)round + 1);
			fill(area, size, (uint64_t)round + 2);
			if (round % 2)
				_exit(0);
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		wait_for(child);
		verify(area, size, (uint64_t)round + 2);
	}
	return done();
}
