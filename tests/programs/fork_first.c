// SPDX-License-Identifier: GPL-2.0-or-later
//
// The first fork of a program, of so many mappings that it takes a while to be understood. The child is one address
// space from the beginning: its own fork is told of once, and its pages can be evicted like all others.
//
// prints "forks=N": how many there were.
#include "check.h"

enum { MAPPINGS = 12000 };

static void make_mappings(void)
{
	char *area = mmap(NULL, 2 * MAPPINGS * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	REQUIRE(area != MAP_FAILED);
	for (size_t i = 0; i < MAPPINGS; i++)
		REQUIRE(!mprotect(area + 2 * i * PAGE, PAGE, PROT_READ | PROT_WRITE));
}

static void in_child(char *area, size_t bytes)
{
	pid_t grandchild;

	for (int round = 0; round < 3; round++)
		verify(area, bytes, 1);
	fill(area, bytes, 2);
	grandchild = fork();
	REQUIRE(grandchild >= 0);
	if (!grandchild) {
		verify(area, bytes, 2);
		_exit(0);
	}
	wait_for(grandchild);
	verify(area, bytes, 2);
}

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 128) * MIB;
	char *area;
	pid_t child;

	make_mappings();
	area = map_filled(bytes, 1);
	printf("evicted=%zu\n", count_out(area, bytes));
	child = fork();
	REQUIRE(child >= 0);
	if (!child) {
		in_child(area, bytes);
		_exit(0);
	}
	wait_for(child);
	verify(area, bytes, 1);
	printf("forks=2\nok\n");
	return 0;
}
