// SPDX-License-Identifier: GPL-2.0-or-later
// N threads allocate, fill, check and free until standard input can be read. Prints "ready"; at the end
// "good N" and 0, or aborts where a byte is not what was written.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 64 };
static int stop;
static long total;

static void replace(unsigned char **slot, size_t *size, unsigned char fill)
{
	for (size_t i = 0; *slot && i < *size; i++)
		if ((*slot)[i] != fill)
			abort();
	free(*slot);
	*size = 16 + (size_t)(rand() % 40000);
	*slot = malloc(*size);
	memset(*slot, fill, *size);
}

static void *work(void *argument)
{
	unsigned char *slots[SLOTS] = { 0 };
	size_t sizes[SLOTS] = { 0 };
	long rounds = 0;

	(void)argument;
	for (; !__atomic_load_n(&stop, __ATOMIC_RELAXED); rounds++)
		replace(&slots[rounds % SLOTS], &sizes[rounds % SLOTS], (unsigned char)(rounds % SLOTS + 1));
	__atomic_fetch_add(&total, rounds, __ATOMIC_RELAXED);
	return 0;
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t threads[64];
	struct pollfd input = { 0, POLLIN, 0 };

	puts("ready");
	fflush(stdout);
	if (count == 1) { /* no second thread at all */
		unsigned char *slot = 0;
		size_t size = 0;

		for (; total % 256 || poll(&input, 1, 0) == 0; total++)
			replace(&slot, &size, 7);
		printf("good %ld\n", total);
		return 0;
	}
	for (int i = 0; i < count; i++)
		pthread_create(&threads[i], 0, work, 0);
	while (poll(&input, 1, -1) != 1)
		;
	stop = 1;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], 0);
	printf("good %ld\n", total);
	return 0;
}
