/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the small programs share: pages whose content follows from (key, page number), a check of every
 * byte, and a way to have them evicted that asks nobody: use more memory than there is.
 *
 * A program does its one thing on pages that are out. How many were out when it began is printed as
 * "evicted=N", so that a test can tell whether it tested anything; without userswap N is 0. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define WORDS (PAGE / sizeof(uint64_t))
#define MIB ((size_t)1 << 20)

#define REQUIRE(condition)                                                                                   \
	do {                                                                                                 \
		if (!(condition)) {                                                                          \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, strerror(errno)); \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* One page in four is hard to compress, one small numbers, one a single repeated word, one zeros but for
 * its first word: every way in which an engine may keep a page. */
static inline uint64_t page_word(uint64_t key, uint64_t page, size_t i)
{
	uint64_t id = mix(key ^ (page << 20));

	switch (page & 3) {
	case 0:
		return (id + i) * 0x9e3779b97f4a7c15u;
	case 1:
		return i ? (page + i) & 0xffff : id;
	case 2:
		return id;
	default:
		return i ? 0 : id;
	}
}

static inline void fill(void *area, size_t bytes, uint64_t key)
{
	uint64_t *words = (uint64_t *)area;

	for (size_t page = 0; page < bytes / PAGE; page++)
		for (size_t i = 0; i < WORDS; i++)
			*words++ = page_word(key, page, i);
}

static inline void wrong_word(const void *at, uint64_t page, uint64_t want, uint64_t got)
{
	fprintf(stderr, "WRONG: address %p, page %" PRIu64 ", expected %016" PRIx64 ", got %016" PRIx64 "\n", at, page,
		want, got);
	abort();
}

/* Pages `first` and on of what fill() wrote with `key`, wherever they lie now. */
static inline void verify_from(const void *area, size_t bytes, uint64_t key, uint64_t first)
{
	const uint64_t *words = (const uint64_t *)area;

	for (uint64_t page = first; page < first + bytes / PAGE; page++)
		for (size_t i = 0; i < WORDS; i++, words++)
			if (*words != page_word(key, page, i))
				wrong_word(words, page, page_word(key, page, i), *words);
}

static inline void verify(const void *area, size_t bytes, uint64_t key)
{
	verify_from(area, bytes, key, 0);
}

/* Nothing in what this writes can be packed small. */
static inline void fill_hard(void *area, size_t bytes, uint64_t key)
{
	uint64_t *words = (uint64_t *)area;

	for (uint64_t i = 0; i < bytes / sizeof(*words); i++)
		words[i] = mix(key ^ i);
}

static inline void verify_hard(const void *area, size_t bytes, uint64_t key)
{
	const uint64_t *words = (const uint64_t *)area;

	for (uint64_t i = 0; i < bytes / sizeof(*words); i++)
		if (words[i] != mix(key ^ i))
			wrong_word(words + i, i / WORDS, mix(key ^ i), words[i]);
}

static inline void verify_zero(const void *area, size_t bytes)
{
	const uint64_t *words = (const uint64_t *)area;

	for (size_t i = 0; i < bytes / sizeof(*words); i++)
		if (words[i])
			wrong_word(words + i, i / WORDS, 0, words[i]);
}

static inline void *map(size_t bytes)
{
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(area != MAP_FAILED);
	return area;
}

static inline void *map_at(void *where, size_t bytes)
{
	void *area = mmap(where, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	REQUIRE(area == where);
	return area;
}

static inline void *map_filled(size_t bytes, uint64_t key)
{
	void *area = map(bytes);

	fill(area, bytes, key);
	return area;
}

/* How many pages of the area are not in memory. */
static inline size_t count_out(void *area, size_t bytes)
{
	unsigned char *present = (unsigned char *)malloc(bytes / PAGE);
	size_t out = 0;

	REQUIRE(present && !mincore(area, bytes, present));
	for (size_t i = 0; i < bytes / PAGE; i++)
		out += !(present[i] & 1);
	free(present);
	return out;
}

/* Push `area` out by using `bytes` of other memory, again and again until half of the area is out or it is
 * plain that nobody swaps; check that other memory, and print how much of the area is out. What is used all
 * the time is kept and what is not goes, under any sound choice; how soon, only the choice knows. */
static inline void push_out(void *area, size_t area_bytes, size_t bytes)
{
	void *ballast = map_filled(bytes, 0xba11a57);
	size_t out = count_out(area, area_bytes);

	for (int round = 0; round < 8 && out < area_bytes / PAGE / 2 && out + count_out(ballast, bytes); round++) {
		verify(ballast, bytes, 0xba11a57);
		out = count_out(area, area_bytes);
	}
	printf("evicted=%zu\n", out);
	fflush(stdout);
	verify(ballast, bytes, 0xba11a57);
	REQUIRE(!munmap(ballast, bytes));
}

/* Use `bytes` of other memory once, so that whatever can go out goes. */
static inline void press(size_t bytes)
{
	void *ballast = map_filled(bytes, 0xba11a57);

	verify(ballast, bytes, 0xba11a57);
	REQUIRE(!munmap(ballast, bytes));
}

/* The only argument of most programs: MiB of memory to use besides what they check. */
static inline size_t ballast_bytes(int argc, char **argv)
{
	size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;

	REQUIRE(mib > 0 && mib < 1 << 20);
	return mib * MIB;
}

static inline void wait_for(pid_t child)
{
	int status;

	REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		fprintf(stderr, "a child ended with status %#x\n", status);
		abort();
	}
}

static inline int done(void)
{
	puts("ok");
	return 0;
}

#endif
