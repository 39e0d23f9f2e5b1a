// SPDX-License-Identifier: GPL-2.0-or-later
//
// Threads that fault on the same pages at the same time, all of which were out.
#include "check.h"

#include <pthread.h>

enum { THREADS = 8 };

static char *area;
static const size_t size = 16 * MIB;
static pthread_barrier_t start;

static void *reader(void *unused)
{
	(void)unused;
	pthread_barrier_wait(&start);
	verify(area, size, 1);
	return NULL;
}

// Each writes its own words of every page, so that all write to one page at once.
static void *writer(void *argument)
{
	size_t mine = (size_t)argument;
	uint64_t *words = (uint64_t *)area;

	pthread_barrier_wait(&start);
	for (size_t page = 0; page < size / PAGE; page++)
		for (size_t i = mine; i < WORDS; i += THREADS)
			words[page * WORDS + i] = page_word(2, page, i);
	return NULL;
}

static void run(void *(*work)(void *))
{
	pthread_t threads[THREADS];

	for (size_t i = 0; i < THREADS; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, work, (void *)i));
	for (size_t i = 0; i < THREADS; i++)
		REQUIRE(!pthread_join(threads[i], NULL));
}

int main(int argc, char **argv)
{
	area = map_filled(size, 1);
	REQUIRE(!pthread_barrier_init(&start, NULL, THREADS));
	push_out(area, size, ballast_bytes(argc, argv));
	run(reader);
	push_out(area, size, ballast_bytes(argc, argv));
	run(writer);
	verify(area, size, 2);
	return done();
}
