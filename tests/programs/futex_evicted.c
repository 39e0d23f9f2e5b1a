// SPDX-License-Identifier: GPL-2.0-or-later
//
// Futexes in pages that are out: the kernel reads the word itself, and a wake must find the waiter after
// the page has gone and come back.
#include "check.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

enum { TURNS = 500 };

static const size_t size = 4 * MIB;
static uint32_t *turn, *asleep;

static long futex(uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static void await(uint32_t value)
{
	uint32_t seen;

	while ((seen = __atomic_load_n(turn, __ATOMIC_ACQUIRE)) != value)
		futex(turn, FUTEX_WAIT, seen, NULL);
}

static void pass(uint32_t value)
{
	__atomic_store_n(turn, value, __ATOMIC_RELEASE);
	futex(turn, FUTEX_WAKE, 2, NULL);
}

static void *partner(void *unused)
{
	(void)unused;
	// Sleeps while everything is pushed out, its word too.
	while (!__atomic_load_n(asleep, __ATOMIC_ACQUIRE))
		futex(asleep, FUTEX_WAIT, 0, NULL);
	for (uint32_t i = 1; i < TURNS; i += 2) {
		await(i);
		pass(i + 1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	char *area = map_filled(size, 1);
	struct timespec soon = {0, 1};
	pthread_t thread;

	asleep = (uint32_t *)(area + 7 * PAGE);
	turn = (uint32_t *)(area + 100 * PAGE);
	*asleep = 0;
	*turn = 0;
	REQUIRE(!pthread_create(&thread, NULL, partner, NULL));
	push_out(area, size, ballast_bytes(argc, argv));
	// The kernel compares with what was written, not with zeros.
	for (size_t page = 200; page < 300; page++) {
		uint32_t *word = (uint32_t *)(area + page * PAGE);
		uint32_t value = (uint32_t)page_word(1, page, 0);

		REQUIRE(futex(word, FUTEX_WAIT, ~value, &soon) == -1 && errno == EAGAIN);
		REQUIRE(futex(word + 2, FUTEX_WAKE, 1, NULL) == 0);
		REQUIRE(futex(word, FUTEX_WAIT, value, &soon) == -1 && errno == ETIMEDOUT);
	}
	__atomic_store_n(asleep, 1, __ATOMIC_RELEASE);
	REQUIRE(futex(asleep, FUTEX_WAKE, 1, NULL) >= 0);
	for (uint32_t i = 0; i < TURNS; i += 2) {
		pass(i + 1);
		await(i + 2);
	}
	REQUIRE(!pthread_join(thread, NULL));
	verify(area, 7 * PAGE, 1);
	verify_from(area + 101 * PAGE, size - 101 * PAGE, 1, 101);
	return done();
}
