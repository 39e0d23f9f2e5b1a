// SPDX-License-Identifier: GPL-2.0-or-later
//
// Gives back memory that is swapped, in one WAY, single pages and ranges that begin and end anywhere, and says how many
// of the pages were out of memory. Between the steps it waits for a byte on standard input.
//
//     give_each WAY MIB
//
// All but what it gives back is locked in memory, so that nothing else is swapped or comes back meanwhile.
#include "check.h"

#include <malloc.h>

enum {
	MOST_PAGES = 1 << 16,
	BLOCK = 60 << 10,  // of malloc, below what it maps by itself
	EVERY = 16,	   // the block of so many that is kept
	CHUNK_HEAD = 16,   // what malloc has before each block,
	CHUNK_SPARED = 48, // what a trim leaves of a free chunk,
	TOP_SPARED = 33,   // and of the last
};

static unsigned char present[MOST_PAGES], given[MOST_PAGES];
static char *area, *blocks[MOST_PAGES];
static size_t pages, block_count;

static char step(const char *name)
{
	char byte;

	printf("%s\n", name);
	fflush(stdout);
	REQUIRE(read(0, &byte, 1) == 1);
	return byte;
}

static void choose(size_t from, size_t to)
{
	memset(given + from, 1, to - from);
}

// Every eighth page of the first half, and a range in the second.
static void choose_some(void)
{
	for (size_t page = 3; page < pages / 2; page += 8)
		choose(page, page + 1);
	choose(pages / 2 + 1, pages - pages / 8 - 1);
}

static void call_for_each_range(int (*call)(void *, size_t))
{
	for (size_t from = 0, to; from < pages; from = to) {
		for (to = from + 1; to < pages && given[to] == given[from]; to++)
			;
		if (given[from])
			REQUIRE(!call(area + from * PAGE, (to - from) * PAGE));
	}
}

static size_t given_out(void)
{
	size_t out = 0;

	mallinfo2(); // brings in what a trim looks at, the heads of all free chunks
	REQUIRE(!mincore(area, pages * PAGE, present));
	for (size_t page = 0; page < pages; page++)
		out += given[page] && !(present[page] & 1);
	return out;
}

// ---- the ways

static int dontneed(void *start, size_t bytes)
{
	return madvise(start, bytes, MADV_DONTNEED);
}

static int lazily(void *start, size_t bytes)
{
	return madvise(start, bytes, MADV_FREE);
}

static void make_mapped(void)
{
	area = map_filled(pages * PAGE, 1);
	choose_some();
}

static void give_dontneed(void)
{
	call_for_each_range(dontneed);
}

static void give_free(void)
{
	call_for_each_range(lazily);
}

static void give_munmap(void)
{
	call_for_each_range(munmap);
}

static void make_brk(void)
{
	uintptr_t end = (uintptr_t)sbrk(0);

	REQUIRE(sbrk((intptr_t)(-end % PAGE)) == (void *)end);
	area = sbrk((intptr_t)(pages * PAGE));
	REQUIRE(area != (void *)-1);
	fill(area, pages * PAGE, 1);
	choose(pages / 2 + 1, pages);
}

static void give_brk(void)
{
	REQUIRE(sbrk(-(intptr_t)((pages - pages / 2 - 1) * PAGE)) != (void *)-1);
}

static void choose_chunk(const char *start, const char *end)
{
	size_t from = ((size_t)(start - area) + CHUNK_SPARED + PAGE - 1) / PAGE;

	choose(from, (size_t)(end - area) / PAGE);
}

// Whether a block stays: one of EVERY, and the first of all, next to what others have on the heap.
static int kept(size_t block)
{
	return block < EVERY || block % EVERY == EVERY - 1;
}

// What is above the last block, down to which a trim shrinks the heap. It has to have been written: what is not is out
// of memory without having been swapped.
static void choose_top(char *top)
{
	const char *end = sbrk(0);

	memset(top + CHUNK_HEAD, 1, (size_t)(end - top) - CHUNK_HEAD);
	pages = (size_t)(end - area) / PAGE;
	REQUIRE(pages <= MOST_PAGES);
	choose(pages - ((size_t)(end - top) - TOP_SPARED) / PAGE, pages);
}

// Blocks on the heap, of which most are freed: what lies between two of those that are left can be trimmed.
static void make_heap(void)
{
	block_count = pages * PAGE / BLOCK / EVERY * EVERY;
	REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 20) && mallopt(M_TRIM_THRESHOLD, 1 << 30));
	for (size_t i = 0; i < block_count; i++) {
		blocks[i] = malloc(BLOCK);
		REQUIRE(blocks[i]);
		memset(blocks[i], (int)(i % 251 + 1), BLOCK);
		for (size_t at = 0; at < BLOCK / PAGE; at++) // no page of one word
			blocks[i][at * PAGE] = (char)at;
	}
	area = (char *)((uintptr_t)blocks[0] & ~(PAGE - 1));
	choose_top(blocks[block_count - 1] + BLOCK);
	for (size_t i = 0; i < block_count; i++)
		if (!kept(i))
			free(blocks[i]);
	for (size_t i = EVERY; i < block_count; i += EVERY)
		choose_chunk(blocks[i] - CHUNK_HEAD, blocks[i + EVERY - 1] - CHUNK_HEAD);
}

static void give_heap(void)
{
	REQUIRE(malloc_trim(0));
}

// ---- what is left

static void check_rest(void)
{
	for (size_t page = 0; page < pages; page++)
		if (!given[page])
			verify_from(area + page * PAGE, PAGE, 1, page);
}

static void check_zeros(void)
{
	for (size_t page = 0; page < pages; page++)
		if (given[page])
			verify_zero(area + page * PAGE, PAGE);
	check_rest();
}

static void check_remapped(void)
{
	for (size_t page = 0; page < pages; page++)
		if (given[page])
			map_at(area + page * PAGE, PAGE);
	check_zeros();
}

static void check_brk(void)
{
	REQUIRE(sbrk((intptr_t)((pages - pages / 2 - 1) * PAGE)) == area + (pages / 2 + 1) * PAGE);
	check_zeros();
}

static void check_heap(void)
{
	for (size_t i = 0; i < block_count; i++)
		for (size_t at = 0; kept(i) && at < BLOCK; at++)
			REQUIRE(blocks[i][at] == (char)(at % PAGE ? i % 251 + 1 : at / PAGE));
}

static const struct {
	const char *name;
	void (*make)(void), (*give)(void), (*check)(void);
} ways[] = {
    {"dontneed", make_mapped, give_dontneed, check_zeros},
    {"free", make_mapped, give_free, check_rest},
    {"munmap", make_mapped, give_munmap, check_remapped},
    {"brk", make_brk, give_brk, check_brk},
    {"trim", make_heap, give_heap, check_heap},
};

int main(int argc, char **argv)
{
	size_t way = 0;

	REQUIRE(argc == 3);
	while (strcmp(ways[way].name, argv[1]))
		REQUIRE(++way < sizeof(ways) / sizeof(*ways));
	pages = strtoul(argv[2], NULL, 10) * MIB / PAGE;
	REQUIRE(pages > 0 && pages <= MOST_PAGES);
	printf("%s\n", ways[way].name); // standard output has its buffer now
	REQUIRE(!mlockall(MCL_CURRENT));
	ways[way].make();
	step("filled");
	do
		printf("out %zu\n", given_out());
	while (step("counted") == 'c');
	ways[way].give();
	step("given back");
	ways[way].check();
	return done();
}
