// SPDX-License-Identifier: GPL-2.0-or-later
//
// scale MIB PROCESSES THREADS OPS KIND: fills MIB of memory, divided among processes, then waits for a line, then reads
// words of pages at random, in so many threads of each process. KIND "word": each page repeats one of 4096 words, and
// takes no swap; "bits": random bits. Prints a line once it is filled, and at the end, as JSON, what both took.
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, VALUES = 4096 };

static uint64_t pages, ops; // of each process, of each thread
static uint64_t *area;
static int repeats;
static pthread_barrier_t *barrier;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t word(uint64_t page, uint64_t at)
{
	return repeats ? mix(page % VALUES) : (mix(page) + at) * 0x9e3779b97f4a7c15u;
}

static void fill(void)
{
	for (uint64_t page = 0; page < pages; page++)
		for (uint64_t at = 0; at < WORDS; at++)
			area[page * WORDS + at] = word(page, at);
}

static void *read_at_random(void *seed)
{
	for (uint64_t i = 0; i < ops; i++) {
		uint64_t random = mix((uintptr_t)seed * 1000003 + i), page = random % pages,
			 at = random >> 32 & (WORDS - 1);

		if (area[page * WORDS + at] != word(page, at)) {
			fprintf(stderr, "scale: a wrong word in page %" PRIu64 "\n", page);
			exit(1);
		}
	}
	return NULL;
}

static void child(uintptr_t number, uintptr_t threads)
{
	pthread_t others[64];

	area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		exit(2);
	madvise(area, pages * PAGE, MADV_NOHUGEPAGE);
	pthread_barrier_wait(barrier);
	fill();
	pthread_barrier_wait(barrier);
	pthread_barrier_wait(barrier);
	for (uintptr_t at = 1; at < threads; at++)
		if (pthread_create(&others[at], NULL, read_at_random, (void *)(number * threads + at)))
			exit(2);
	read_at_random((void *)(number * threads));
	for (uintptr_t at = 1; at < threads; at++)
		pthread_join(others[at], NULL);
	pthread_barrier_wait(barrier);
	exit(0);
}

int main(int argc, char **argv)
{
	uintptr_t processes, threads;
	double filling, reading;
	int status = 0, failed = 0;
	pthread_barrierattr_t shared;

	if (argc != 6 || (threads = strtoul(argv[3], NULL, 10)) > 64 || !threads) {
		fprintf(stderr, "usage: scale MIB PROCESSES THREADS OPS word|bits\n");
		return 2;
	}
	processes = strtoul(argv[2], NULL, 10);
	pages = (strtoull(argv[1], NULL, 10) << 8) / processes;
	ops = strtoull(argv[4], NULL, 10) / processes / threads;
	repeats = !strcmp(argv[5], "word");
	barrier = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_barrierattr_init(&shared);
	pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(barrier, &shared, (unsigned)processes + 1);
	for (uintptr_t at = 0; at < processes; at++)
		if (!fork())
			child(at, threads);
	pthread_barrier_wait(barrier);
	filling = now();
	pthread_barrier_wait(barrier);
	filling = now() - filling;
	puts("filled");
	fflush(stdout);
	if (getchar() == EOF)
		return 2;
	reading = now();
	pthread_barrier_wait(barrier);
	pthread_barrier_wait(barrier);
	reading = now() - reading;
	while (wait(&status) > 0)
		failed |= status;
	printf("{\"fill\": {\"seconds\": %.6f, \"units\": %" PRIu64 "}, ", filling, pages * processes);
	printf("\"random reads\": {\"seconds\": %.6f, \"units\": %" PRIu64 "}}\n", reading, ops * processes * threads);
	return failed ? 1 : 0;
}
