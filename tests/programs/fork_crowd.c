// SPDX-License-Identifier: GPL-2.0-or-later
//
// Forks of forks, very many processes at once that share one area which is out, and exit in any order: a parent
// may go before its children, and the one that made the area before all of them. On its way out each looks at
// some pages, and some write to them.
//
// fork_crowd MIB BRANCHES LEAVES: a root that uses MIB of memory besides the area, its BRANCHES children, and the
// LEAVES children of each; and all that three times. Prints "crowd" when all are there, and goes on when it has read a
// byte; "gone" when all have gone, and goes on when it has read another one.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include "check.h"

enum { MOST = 8192, KEY = 1, LOOKS = 4, PATIENCE = 100, ROUNDS = 3 };

static const size_t size = 4 * MIB;

static struct shared {
	uint32_t arrived, gone; // processes
	uint32_t go[MOST];	// futexes: 1 lets the process go
} *shared;

static void wait_while(uint32_t *word, uint32_t value)
{
	struct timespec patience = {.tv_sec = PATIENCE};

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value)
		REQUIRE(!syscall(SYS_futex, word, FUTEX_WAIT, value, &patience) || errno != ETIMEDOUT);
}

static void advance(uint32_t *word)
{
	__atomic_add_fetch(word, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL);
}

static void wait_until(uint32_t *word, uint32_t value)
{
	uint32_t seen;

	while ((seen = __atomic_load_n(word, __ATOMIC_ACQUIRE)) < value)
		wait_while(word, seen);
}

/* What a process does until it ends; it is the parent of some by now. */
static void be_one(char *area, uint32_t number)
{
	advance(&shared->arrived);
	wait_while(&shared->go[number], 0);
	for (uint32_t look = 0; look < LOOKS; look++) {
		size_t page = mix(number * LOOKS + look) % (size / PAGE);

		verify_from(area + page * PAGE, PAGE, KEY, page);
		if (number % 4 == 0) {
			fill(area + page * PAGE, PAGE, number);
			verify(area + page * PAGE, PAGE, number);
			break;
		}
	}
	advance(&shared->gone);
	_exit(0);
}

static void be_root(size_t ballast, uint32_t branches, uint32_t leaves)
{
	char *area = map_filled(size, KEY);
	uint32_t number = 0;

	push_out(area, size, ballast);
	for (uint32_t branch = 0; branch < branches; branch++) {
		uint32_t first = number += 1;
		pid_t child = fork();

		REQUIRE(child >= 0);
		if (!child) {
			for (uint32_t leaf = 1; leaf <= leaves; leaf++) {
				child = fork();
				REQUIRE(child >= 0);
				if (!child)
					be_one(area, first + leaf);
			}
			be_one(area, first);
		}
		number += leaves;
	}
	be_one(area, 0);
}

static void let_go_in_any_order(uint32_t count)
{
	static uint32_t order[MOST];

	for (uint32_t i = 0; i < count; i++) {
		uint32_t j = mix(i) % (i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	for (uint32_t i = 0; i < count; i++)
		advance(&shared->go[order[i]]);
}

static void clear_up(void)
{
	shared->arrived = shared->gone = 0;
	memset(shared->go, 0, sizeof(shared->go));
}

static void await_byte(const char *line)
{
	puts(line);
	fflush(stdout);
	REQUIRE(getchar() != EOF);
}

int main(int argc, char **argv)
{
	uint32_t branches = argc > 2 ? atoi(argv[2]) : 10, leaves = argc > 3 ? atoi(argv[3]) : 10;
	uint32_t count = 1 + branches * (1 + leaves);

	REQUIRE(count <= MOST);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(shared != MAP_FAILED);
	for (int round = 0; round < ROUNDS; round++) {
		pid_t root = fork();

		REQUIRE(root >= 0);
		if (!root)
			be_root(ballast_bytes(argc, argv), branches, leaves);
		wait_until(&shared->arrived, count);
		await_byte("crowd");
		let_go_in_any_order(count);
		wait_until(&shared->gone, count);
		wait_for(root);
		await_byte("gone");
		clear_up();
	}
	return done();
}
