// SPDX-License-Identifier: GPL-2.0-or-later
// Fills N pages, each with words of its own, and prints "ready ADDRESS". For each byte on standard input it
// checks all pages (printing "good") and fills them anew; at the end of input it ends.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = 4096 / 8 };

static void fill(uint64_t *words, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++)
		words[i] = (i + seed) * 0x9e3779b97f4a7c15u;
}

static int check(const uint64_t *words, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++)
		if (words[i] != (i + seed) * 0x9e3779b97f4a7c15u)
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	size_t pages = argc > 1 ? (size_t)atol(argv[1]) : 64, count = pages * WORDS;
	int lock_all = argc > 2;
	uint64_t *words, seed = 1;
	char byte;

	if (lock_all && mlockall(MCL_FUTURE))
		return 3;
	words = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (lock_all)
		munlock(words, pages * 4096);
	madvise(words, pages * 4096, MADV_NOHUGEPAGE);
	fill(words, count, seed);
	printf("ready %lx\n", (unsigned long)words);
	fflush(stdout);
	while (read(0, &byte, 1) == 1) {
		if (!check(words, count, seed))
			abort();
		fill(words, count, ++seed);
		puts("good");
		fflush(stdout);
	}
	return 0;
}
