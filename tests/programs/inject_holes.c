// SPDX-License-Identifier: GPL-2.0-or-later
// Unmaps the lowest part of what it has mapped, and maps it anew at the same place: the only thread of a program may,
// for nobody else maps anything meanwhile. Prints "ready"; for a byte on standard input "good TURNS", and ends.
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 4096, HOLE = 3072 };

static char *map(void *at, size_t bytes, int fixed)
{
	char *mapped = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);

	if (mapped == MAP_FAILED)
		abort();
	return mapped;
}

int main(void)
{
	char *base = map(NULL, PAGES * PAGE, 0);
	struct pollfd input = {.fd = 0, .events = POLLIN};
	uint64_t turn = 0;

	puts("ready");
	fflush(stdout);
	do {
		turn++;
		if (munmap(base, HOLE * PAGE))
			abort();
		map(base, HOLE * PAGE, MAP_FIXED);
		for (size_t page = turn % 64; page < HOLE; page += 64)
			*(volatile uint64_t *)(base + page * PAGE) = turn;
		for (size_t page = turn % 64; page < HOLE; page += 64)
			if (*(volatile uint64_t *)(base + page * PAGE) != turn)
				abort();
	} while (turn % 16 || poll(&input, 1, 0) == 0);
	printf("good %lu\n", (unsigned long)turn);
	return 0;
}
