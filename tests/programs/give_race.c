// SPDX-License-Identifier: GPL-2.0-or-later
//
// Gives pages back at the moment of their eviction: one thread looks for pages that have just gone out of memory and
// gives them back, another writes to all in turn, so that there is always something to evict, a third looks at any
// page.
//
//     give_race MIB TIMES
//
// A word of a page says which page it is of, where in it, and when it was written. Whoever holds a page's turn knows
// what it has to be; whoever does not sees it as it was, as it is, or zeros.
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

enum {
	LOOK = 512, // pages that are looked at in one call
	RANGE = 16, // pages that are given back in one, at most
	MOST_PAGES = 1 << 16,
};

// What a page holds: zeros (0), or what was written in a turn; either of them after MADV_FREE.
#define TAKEN (UINT32_C(1) << 31)
#define PERHAPS (UINT32_C(1) << 30)

static _Atomic uint32_t state[MOST_PAGES];
static uint64_t *area;
static size_t pages, times;
static _Atomic size_t given;
static atomic_bool over;

static uint64_t word(uint32_t turn, size_t page, size_t i)
{
	return (uint64_t)turn << 32 | page << 10 | i;
}

static bool take(size_t page, uint32_t *was)
{
	*was = atomic_fetch_or(&state[page], TAKEN);
	return !(*was & TAKEN);
}

static void leave(size_t page, uint32_t is)
{
	atomic_store(&state[page], is);
}

static void check_page(size_t page, uint32_t was)
{
	const uint64_t *words = area + page * WORDS;
	uint32_t turn = was & ~PERHAPS;

	if (was & PERHAPS && !words[1])
		turn = 0;
	for (size_t i = 0; i < WORDS; i++) {
		uint64_t want = turn ? word(turn, page, i) : 0;

		if (words[i] != want)
			wrong_word(words + i, page, want, words[i]);
	}
}

static void *writer(void *argument)
{
	uint32_t was;

	(void)argument;
	for (uint32_t turn = 1; !over; turn++)
		for (size_t page = 0; page < pages && !over; page++) {
			while (!take(page, &was))
				sched_yield();
			check_page(page, was);
			for (size_t i = 0; i < WORDS; i++)
				area[page * WORDS + i] = word(turn, page, i);
			leave(page, turn);
		}
	return NULL;
}

static void *looker(void *argument)
{
	volatile uint64_t *words = area;
	uint64_t random = 1;

	(void)argument;
	while (!over) {
		size_t page = (random = mix(random)) % pages, i = random >> 32 & (WORDS - 1);
		uint64_t got = words[page * WORDS + i];

		if (got && (uint32_t)got != (uint32_t)word(0, page, i))
			wrong_word((const void *)(words + page * WORDS + i), page, word(0, page, i), got);
	}
	return NULL;
}

static void give(size_t from, size_t to, const uint32_t *was)
{
	bool lazily = given++ & 1;

	REQUIRE(!madvise(area + from * WORDS, (to - from) * PAGE, lazily ? MADV_FREE : MADV_DONTNEED));
	for (size_t page = from; page < to; page++) {
		uint32_t turn = was[page - from] & ~PERHAPS;

		leave(page, lazily && turn ? turn | PERHAPS : 0);
	}
}

// Gives back what was in memory at the last look and is not any more.
static void look(size_t first, unsigned char *before)
{
	unsigned char now[LOOK];
	uint32_t was[RANGE];

	REQUIRE(!mincore(area + first * WORDS, LOOK * PAGE, now));
	for (size_t from = 0, to; from < LOOK; from = to + 1) {
		for (to = from; to < LOOK && to - from < RANGE && before[to] & ~now[to] & 1; to++)
			if (!take(first + to, &was[to - from]))
				break;
		if (to > from)
			give(first + from, first + to, was);
	}
	memcpy(before, now, LOOK);
}

static void *giver(void *argument)
{
	static unsigned char before[MOST_PAGES];

	(void)argument;
	while (given < times)
		for (size_t first = 0; first < pages && given < times; first += LOOK)
			look(first, before + first);
	over = true;
	return NULL;
}

int main(int argc, char **argv)
{
	void *(*const mains[])(void *) = {writer, looker, giver};
	pthread_t threads[3];

	REQUIRE(argc == 3);
	pages = strtoul(argv[1], NULL, 10) * MIB / PAGE;
	times = strtoul(argv[2], NULL, 10);
	REQUIRE(pages > 0 && pages <= MOST_PAGES);
	area = map(pages * PAGE);
	for (int i = 0; i < 3; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, mains[i], NULL));
	for (int i = 0; i < 3; i++)
		REQUIRE(!pthread_join(threads[i], NULL));
	for (size_t page = 0; page < pages; page++)
		check_page(page, state[page]);
	printf("given=%zu\n", given);
	return done();
}
