// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the kernel itself writes to memory amid a fork, to pages that are out: the number of the child, in parent and
// child, and, with an rseq of our own, that of the CPU. All around it stays as it was.
#include "check.h"
#include <linux/rseq.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

enum { KEY = 1, ROUNDS = 24, OURS = 3, CHILDS = 8, CPUS = 12, SIGNATURE = 0x53053053 };

static const size_t size = 16 * MIB;

/* The number is there; what it has replaced is put back. */
static void take_number(char *at, const char *was, pid_t number)
{
	pid_t found;

	memcpy(&found, at, sizeof found);
	REQUIRE(found == number);
	memcpy(at, was, sizeof found);
}

static void check_child(char *area, char *at, const char *was)
{
	char *cpus = area + CPUS * PAGE;
	char around[PAGE];

	take_number(at, was, (pid_t)syscall(SYS_gettid));
	memcpy(around, cpus, PAGE);
	REQUIRE(syscall(SYS_rseq, cpus, sizeof(struct rseq), RSEQ_FLAG_UNREGISTER, SIGNATURE) == 0);
	memset(around, 0, sizeof(struct rseq));
	for (size_t i = 0; i < sizeof around; i++)
		REQUIRE(i < sizeof(struct rseq) ? around[i] == 0 : around[i] == (char)0x5a);
	fill(cpus, PAGE, KEY + 1);
	verify(area, CPUS * PAGE, KEY);
	verify_from(area + (CPUS + 1) * PAGE, size - (CPUS + 1) * PAGE, KEY, CPUS + 1);
	_exit(0);
}

int main(int argc, char **argv)
{
	char *area = map_filled(size, KEY);
	char *cpus = area + CPUS * PAGE;

	memset(cpus, 0x5a, PAGE);
	memset(cpus, 0, sizeof(struct rseq));
	REQUIRE(syscall(SYS_rseq, cpus, sizeof(struct rseq), 0, SIGNATURE) == 0);
	for (int round = 0; round < ROUNDS; round++) {
		/* In one page, or across two. */
		char *ours = area + OURS * PAGE + (round % 2 ? 4094 : 4 * round);
		char *childs = area + CHILDS * PAGE + (round % 3 ? 4093 : 4 * round);
		char was_ours[4], was_childs[4];
		pid_t child;

		memcpy(was_ours, ours, 4);
		memcpy(was_childs, childs, 4);
		push_out(area, size, ballast_bytes(argc, argv) / (round ? 2 : 1));
		child = (pid_t)syscall(SYS_clone, SIGCHLD | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID, 0, ours, childs, 0);
		REQUIRE(child >= 0);
		if (!child) {
			pid_t there = (pid_t)syscall(SYS_gettid);

			if (memcmp(ours, &there, 4) == 0) /* in parent and child alike: the order is the kernel's */
				memcpy(ours, was_ours, 4);
			check_child(area, childs, was_childs);
		}
		wait_for(child);
		take_number(ours, was_ours, child);
		verify(area, CPUS * PAGE, KEY);
		verify_from(area + (CPUS + 1) * PAGE, size - (CPUS + 1) * PAGE, KEY, CPUS + 1);
	}
	return done();
}
