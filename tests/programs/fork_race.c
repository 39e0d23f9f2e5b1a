// SPDX-License-Identifier: GPL-2.0-or-later
//
// One thread forks while another one unmaps or moves pages that are out: the child has each mapping as it was before
// or as it is after, and its bytes in either place.
#include "check.h"

#include <pthread.h>
#include <sched.h>

enum { REGIONS = 512, ROUNDS = 2, THERE = 0, UNMAPPED = 1, MOVED = 2, GONE = 3 };

static const size_t size = 4 * PAGE;
static const size_t apart = 16 * PAGE; // so that mappings stay mappings of their own

static char *const slots = (char *)0x100000000000; // where nobody else maps anything
static volatile int state[REGIONS];
static volatile int place[REGIONS]; // a slot; REGIONS higher when it has been moved
static volatile int turn = -1;	    // the region that is next, once its fork begins

static char *slot(int number)
{
	return slots + (size_t)number * apart;
}

static void *change_mappings(void *unused)
{
	unsigned random = 1;

	for (int r = 0; r < REGIONS; r++) {
		while (turn < r)
			sched_yield();
		random = random * 1103515245 + 12345;
		for (unsigned spin = (random >> 16) % 4096; spin; spin--)
			__asm__ volatile("pause");
		if (random >> 8 & 1) {
			state[r] = UNMAPPED;
			REQUIRE(!munmap(slot(r), size));
			state[r] = GONE;
		} else {
			state[r] = MOVED;
			REQUIRE(mremap(slot(r), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, slot(r + REGIONS)) ==
				slot(r + REGIONS));
			place[r] = r + REGIONS;
			state[r] = THERE;
		}
	}
	return unused;
}

static int is_mapped(int number)
{
	unsigned char present[4];

	return !mincore(slot(number), size, present);
}

static void look(int first, int end)
{
	for (int r = first < 0 ? 0 : first; r < end; r++) {
		if (state[r] == GONE) {
			REQUIRE(!is_mapped(r));
		} else if (state[r] == UNMAPPED) {
			if (is_mapped(r))
				verify(slot(r), size, (uint64_t)r);
		} else if (state[r] == MOVED) {
			REQUIRE(is_mapped(r) != is_mapped(r + REGIONS));
			verify(slot(is_mapped(r) ? r : r + REGIONS), size, (uint64_t)r);
		} else {
			verify(slot(place[r]), size, (uint64_t)r);
		}
	}
}

static void race(void)
{
	pthread_t other;

	turn = -1;
	REQUIRE(!pthread_create(&other, NULL, change_mappings, NULL));
	for (int r = 0; r < REGIONS; r++) {
		pid_t child;

		turn = r;
		child = fork();
		REQUIRE(child >= 0);
		if (!child) {
			look(r - 3, r + 1);
			_exit(0);
		}
		wait_for(child);
	}
	REQUIRE(!pthread_join(other, NULL));
	look(0, REGIONS);
}

static size_t regions_out(void)
{
	size_t out = 0;

	for (int r = 0; r < REGIONS; r++)
		out += count_out(slot(r), size);
	return out;
}

int main(int argc, char **argv)
{
	for (int round = 0; round < ROUNDS; round++) {
		for (int r = 0; r < REGIONS; r++) {
			fill(map_at(slot(r), size), size, (uint64_t)r);
			place[r] = r;
			state[r] = THERE;
		}
		press(ballast_bytes(argc, argv));
		printf("evicted=%zu\n", regions_out());
		fflush(stdout);
		race();
		for (int r = 0; r < REGIONS; r++)
			if (state[r] == THERE)
				REQUIRE(!munmap(slot(place[r]), size));
	}
	return done();
}
