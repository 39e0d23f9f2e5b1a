// SPDX-License-Identifier: GPL-2.0-or-later
// Computes under a storm of signals, with handlers for SIGALRM (10,000 a second), SIGTRAP (each raised by
// itself) and real-time ones, until standard input can be read. Prints "ready", at the end "good N".
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

static volatile long alarms, traps, queued;

static void on_alarm(int number) { (void)number; alarms++; }
static void on_trap(int number) { (void)number; traps++; }
static void on_queued(int number) { (void)number; queued++; }

static void watch(int number, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	sigaction(number, &action, 0);
}

int main(void)
{
	struct itimerval timer = { { 0, 100 }, { 0, 100 } };
	struct pollfd input = { 0, POLLIN, 0 };
	long raised = 0;
	unsigned long sum = 0, expected = 0;

	watch(SIGALRM, on_alarm, SA_RESTART);
	watch(SIGTRAP, on_trap, 0);
	watch(SIGRTMIN, on_queued, SA_NODEFER);
	setitimer(ITIMER_REAL, &timer, 0);
	puts("ready");
	fflush(stdout);
	for (; poll(&input, 1, 0) != 1; raised++) {
		union sigval value = { 0 };

		raise(SIGTRAP);
		sigqueue(getpid(), SIGRTMIN, value);
		for (unsigned long i = 0; i < 1000; i++)
			sum += i ^ (unsigned long)raised;
		for (unsigned long i = 1000; i-- > 0;)
			expected += i ^ (unsigned long)raised;
		if (sum != expected || traps != raised + 1 || queued != raised + 1)
			abort();
	}
	if (alarms == 0)
		abort();
	printf("good %ld\n", raised);
	return 0;
}
