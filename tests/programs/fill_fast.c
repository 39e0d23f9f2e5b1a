// SPDX-License-Identifier: GPL-2.0-or-later
//
// Memory faster than any disk: THREADS threads map and touch MIB in all, as fast as they can, then check it, LOOKS times.
//
//     fill_fast MIB THREADS [LOOKS]
#include "check.h"

#include <pthread.h>

static size_t share, looks = 1;

static void *filler(void *argument)
{
	uint64_t key = (uint64_t)(size_t)argument, *area = map(share), id = mix(key);
	size_t words = share / sizeof(*area);

	// One multiplication a word: the generator must not be what limits it, and nothing compresses it.
	for (size_t i = 0; i < words; i++)
		area[i] = (id + i) * 0x9e3779b97f4a7c15u;
	for (size_t look = 0; look < looks; look++) {
		__asm__ volatile("" ::: "memory"); // it may have changed: else one look would do
		for (size_t i = 0; i < words; i++)
			if (area[i] != (id + i) * 0x9e3779b97f4a7c15u)
				wrong_word(area + i, i / WORDS, (id + i) * 0x9e3779b97f4a7c15u, area[i]);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	size_t threads = argc >= 3 ? strtoul(argv[2], NULL, 10) : 0;
	pthread_t ids[64];

	REQUIRE(threads > 0 && threads <= 64);
	if (argc == 4)
		looks = strtoul(argv[3], NULL, 10);
	share = (strtoul(argv[1], NULL, 10) * MIB / threads) & ~(PAGE - 1);
	for (size_t i = 0; i < threads; i++)
		REQUIRE(!pthread_create(&ids[i], NULL, filler, (void *)(i + 1)));
	for (size_t i = 0; i < threads; i++)
		REQUIRE(!pthread_join(ids[i], NULL));
	printf("filled=%zu\n", threads * share);
	return done();
}
