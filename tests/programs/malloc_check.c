// SPDX-License-Identifier: GPL-2.0-or-later
//
// malloc, calloc, realloc and free from four threads, each block checked whenever it is touched.
//
//     malloc_check MIB
//
// About MIB are held in all. The checksum depends on the arguments alone.
#include "check.h"

#include <pthread.h>

enum { THREADS = 4, SLOTS = 2048, OPERATIONS = 4 };

struct block {
	unsigned char *bytes;
	size_t size;
	uint64_t key;
};

struct worker {
	uint64_t state, checksum;
	size_t mean; // bytes of a block, about
	struct block blocks[SLOTS];
};

static uint64_t next(struct worker *w)
{
	w->state += 0x9e3779b97f4a7c15u;
	return mix(w->state);
}

// Words by index, so that any part of a block can be checked alone; the last few bytes stay as they are.
static void block_fill(struct block *b, size_t from)
{
	uint64_t *words = (uint64_t *)b->bytes;

	for (size_t i = from / 8; i < b->size / 8; i++)
		words[i] = (b->key + i) * 0x9e3779b97f4a7c15u;
}

static void block_check(const struct block *b, size_t size)
{
	const uint64_t *words = (const uint64_t *)b->bytes;

	for (size_t i = 0; i < size / 8; i++)
		if (words[i] != (b->key + i) * 0x9e3779b97f4a7c15u)
			wrong_word(words + i, i / WORDS, (b->key + i) * 0x9e3779b97f4a7c15u, words[i]);
}

static size_t some_size(struct worker *w)
{
	// Mostly around the mean, now and then small: heap, bins and mapped blocks.
	uint64_t r = next(w);

	return r % 8 ? 16 + r / 8 % (2 * w->mean) : 16 + r / 8 % 256;
}

static void allocate(struct worker *w, struct block *b, int zeroed)
{
	b->size = some_size(w);
	b->key = next(w);
	b->bytes = zeroed ? calloc(1, b->size) : malloc(b->size);
	REQUIRE(b->bytes);
	for (size_t i = 0; zeroed && i < b->size; i++)
		if (b->bytes[i])
			wrong_word(b->bytes + i, i / PAGE, 0, b->bytes[i]);
	block_fill(b, 0);
}

static void resize(struct worker *w, struct block *b)
{
	size_t old = b->size, size = some_size(w);

	b->bytes = realloc(b->bytes, size);
	REQUIRE(b->bytes);
	b->size = size;
	block_check(b, old < size ? old : size);
	block_fill(b, old < size ? old & ~(size_t)7 : size);
}

static void release(struct worker *w, struct block *b)
{
	block_check(b, b->size);
	w->checksum = (w->checksum ^ b->key ^ b->size) * 0x100000001b3u;
	free(b->bytes);
	b->bytes = NULL;
}

static void *work(void *argument)
{
	struct worker *w = argument;

	for (size_t op = 0; op < (size_t)OPERATIONS * SLOTS; op++) {
		uint64_t r = next(w);
		struct block *b = &w->blocks[r % SLOTS];

		if (!b->bytes)
			allocate(w, b, (r >> 32) % 2);
		else if ((r >> 32) % 4 == 0)
			release(w, b);
		else if ((r >> 32) % 4 == 1)
			resize(w, b);
		else
			block_check(b, b->size);
	}
	for (size_t i = 0; i < SLOTS; i++)
		if (w->blocks[i].bytes)
			release(w, &w->blocks[i]);
	return NULL;
}

int main(int argc, char **argv)
{
	size_t mib = ballast_bytes(argc, argv) / MIB;
	struct worker *workers = calloc(THREADS, sizeof(*workers));
	pthread_t threads[THREADS];

	REQUIRE(workers);
	for (size_t i = 0; i < THREADS; i++) {
		workers[i].state = i << 32;
		workers[i].mean = mib * MIB / THREADS / SLOTS;
		REQUIRE(!pthread_create(&threads[i], NULL, work, &workers[i]));
	}
	for (size_t i = 0; i < THREADS; i++) {
		REQUIRE(!pthread_join(threads[i], NULL));
		printf("%016" PRIx64 "\n", workers[i].checksum);
	}
	free(workers);
	return done();
}
