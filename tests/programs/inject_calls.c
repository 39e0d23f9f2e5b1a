// SPDX-License-Identifier: GPL-2.0-or-later
// Sits in one system call until its standard input can be read, and checks that the call tells nothing
// but what it should: 20 ms of time-out, or the end. Prints "ready", and at the end "rounds N".
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const struct timespec slice = { 0, 20000000 };
static int epoll, pair[2], semaphore;
static sigset_t waited;

static int call_read(void) { char c; return read(0, &c, 1) == 1 ? 0 : errno; }
static int call_poll(void) { struct pollfd p = { 0, POLLIN, 0 }; return poll(&p, 1, -1) == 1 ? 0 : errno; }
static int call_ppoll(void)
{
	struct pollfd p = { 0, POLLIN, 0 };
	sigset_t none;
	sigemptyset(&none);
	return ppoll(&p, 1, &slice, &none) >= 0 ? ETIMEDOUT : errno;
}
static int call_select(void) { fd_set s; FD_ZERO(&s); FD_SET(0, &s); return select(1, &s, 0, 0, 0) == 1 ? 0 : errno; }
static int call_epoll(void) { struct epoll_event e; return epoll_wait(epoll, &e, 1, -1) == 1 ? 0 : errno; }
static int call_epoll_slice(void) { struct epoll_event e; return epoll_wait(epoll, &e, 1, 20) >= 0 ? ETIMEDOUT : errno; }
static int call_nanosleep(void) { return nanosleep(&slice, 0) == 0 ? ETIMEDOUT : errno; }
static int call_futex(void) { int word = 0; syscall(SYS_futex, &word, FUTEX_WAIT, 0, &slice, 0, 0); return errno; }
static int call_sigtimedwait(void) { sigtimedwait(&waited, 0, &slice); return errno == EAGAIN ? ETIMEDOUT : errno; }
static int call_recv(void) { char c; recv(pair[0], &c, 1, 0); return errno == EAGAIN ? ETIMEDOUT : errno; }
static int call_semop(void)
{
	struct sembuf down = { 0, -1, 0 };
	semtimedop(semaphore, &down, 1, &slice);
	return errno == EAGAIN ? ETIMEDOUT : errno;
}

static const struct { const char *name; int (*call)(void); } calls[] = {
	{ "read", call_read }, { "poll", call_poll }, { "ppoll", call_ppoll }, { "select", call_select },
	{ "epoll_wait", call_epoll }, { "epoll_wait-time", call_epoll_slice }, { "nanosleep", call_nanosleep },
	{ "futex", call_futex }, { "sigtimedwait", call_sigtimedwait }, { "recv", call_recv }, { "semop", call_semop },
};

static void prepare(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct timeval limit = { 0, 20000 };

	epoll = epoll_create1(0);
	epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	semaphore = semget(IPC_PRIVATE, 1, 0600);
	sigemptyset(&waited);
	sigaddset(&waited, SIGUSR1);
	sigprocmask(SIG_BLOCK, &waited, 0);
}

static int readable(void)
{
	struct pollfd p = { 0, POLLIN, 0 };
	return poll(&p, 1, 0) == 1;
}

int main(int argc, char **argv)
{
	int (*call)(void) = 0;
	int error = ETIMEDOUT, rounds = 0;

	for (size_t i = 0; argc > 1 && i < sizeof(calls) / sizeof(*calls); i++)
		if (!strcmp(argv[1], calls[i].name))
			call = calls[i].call;
	if (!call)
		return 2;
	prepare();
	puts("ready");
	fflush(stdout);
	while (error == ETIMEDOUT && !readable()) {
		error = call();
		rounds++;
	}
	semctl(semaphore, 0, IPC_RMID);
	if (error != 0 && error != ETIMEDOUT) {
		printf("%s\n", strerror(error));
		return 1;
	}
	printf("rounds %d\n", rounds);
	return 0;
}
