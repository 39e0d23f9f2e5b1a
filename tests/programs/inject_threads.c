// SPDX-License-Identifier: GPL-2.0-or-later
// Makes threads and children one after another until standard input can be read. Each checks that it is scheduled as
// the program is: a thread of the program that is made to run in real time for a moment passes that on to nobody.
// Prints "ready"; at the end "good N", or says which it was and ends with 1.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void *check(void *argument)
{
	(void)argument;
	return sched_getscheduler(0) == SCHED_OTHER ? 0 : (void *)1;
}

static int thread_is_right(void)
{
	pthread_t thread;
	void *result;

	return pthread_create(&thread, 0, check, 0) == 0 && pthread_join(thread, &result) == 0 && !result;
}

static int child_is_right(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(check(0) != 0);
	return waitpid(pid, &status, 0) == pid && status == 0;
}

int main(void)
{
	struct pollfd input = { 0, POLLIN, 0 };
	long rounds = 0;

	puts("ready");
	fflush(stdout);
	for (; poll(&input, 1, 0) == 0; rounds++) {
		const char *wrong = !thread_is_right() ? "a thread" : rounds % 16 == 0 && !child_is_right() ? "a child" : 0;

		if (wrong) {
			printf("%s in round %ld is scheduled otherwise\n", wrong, rounds);
			return 1;
		}
	}
	if (sched_getscheduler(0) != SCHED_OTHER)
		return 1;
	printf("good %ld\n", rounds);
	return 0;
}
