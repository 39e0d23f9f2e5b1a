// SPDX-License-Identifier: GPL-2.0-or-later
// Processes in odd states, until standard input can be read; then "good".
//   headless: the first thread has ended, another goes on
//   waiting:  the only thread is in vfork, whose child sleeps until standard input can be read
//   execs:    starts itself anew all the time
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int wait_for_input(int milliseconds)
{
	struct pollfd input = { 0, POLLIN, 0 };
	return poll(&input, 1, milliseconds);
}

static void end(void)
{
	puts("good");
	fflush(stdout);
	_exit(0);
}

static void *go_on(void *argument)
{
	while (wait_for_input(-1) != 1)
		;
	end();
	return argument;
}

static void say_ready(void)
{
	puts("ready");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	pthread_t thread;
	int status;

	if (argc < 3)
		say_ready();
	if (!strcmp(kind, "headless")) {
		pthread_create(&thread, 0, go_on, 0);
		pthread_exit(0);
	}
	if (!strcmp(kind, "waiting")) {
		pid_t child = vfork();

		if (child == 0) {
			wait_for_input(-1);
			_exit(3);
		}
		if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 3)
			abort();
		end();
	}
	if (wait_for_input(0) == 1)
		end();
	execl("/proc/self/exe", argv[0], "execs", "again", (char *)0);
	return 1;
}
