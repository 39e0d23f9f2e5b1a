// SPDX-License-Identifier: GPL-2.0-or-later
// Makes children one after another, by "fork" or "vfork", until standard input can be read, and checks that
// each ends as it should. Prints "ready", and at the end "good N".
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void child(long rounds)
{
	static const char *const arguments[] = { "true", 0 };

	if (rounds % 8 == 0)
		execv("/bin/true", (char *const *)arguments);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct pollfd input = { 0, POLLIN, 0 };
	volatile int by_vfork = argc > 1 && !strcmp(argv[1], "vfork");
	volatile long rounds = 0; /* in memory: a vfork shares it */
	int status;

	puts("ready");
	fflush(stdout);
	for (; poll(&input, 1, 0) == 0; rounds++) {
		pid_t pid = by_vfork ? vfork() : fork();

		if (pid == 0)
			child(rounds);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			abort();
	}
	if (waitpid(-1, &status, WNOHANG) != -1)
		abort(); /* the helper is no child that a program gets to see */
	printf("good %ld\n", rounds);
	return 0;
}
