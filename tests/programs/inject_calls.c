// SPDX-License-Identifier: GPL-2.0-or-later
// Sits in one system call until its standard input can be read, and checks that the call tells nothing
// but what it should: 20 ms of time-out, or the end. Prints "ready", and at the end "rounds N".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct timespec slice = { 0, 20000000 };
static int epoll, pair[2], full[2], pipes[2], semaphore, listener, locked, messages, timer;
static mqd_t queue;
static aio_context_t aio;
static pid_t child; // does what ends a call that has no time-out, once standard input can be read
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
static int timed_out(void) { return errno == EAGAIN ? ETIMEDOUT : errno; }
static int call_recvmsg(void)
{
	char c;
	struct iovec part = { &c, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	recvmsg(pair[0], &message, 0);
	return timed_out();
}
static int call_send(void) { char c = 0; return send(full[0], &c, 1, 0) < 0 ? timed_out() : ETIMEDOUT; }
static int call_accept(void) { accept(listener, 0, 0); return timed_out(); }
static int call_waitid(void) { siginfo_t info; return waitid(P_PID, child, &info, WEXITED | WNOWAIT) ? errno : 0; }
static int call_flock(void) { return flock(locked, LOCK_EX) ? errno : 0; }
static int call_fcntl(void)
{
	struct flock whole = { .l_type = F_WRLCK };
	return fcntl(locked, F_SETLKW, &whole) ? errno : 0;
}
static int call_msgrcv(void)
{
	struct { long type; char text; } message;
	return msgrcv(messages, &message, 1, 0, 0) < 0 ? errno : 0;
}
static int call_mq(void)
{
	struct timespec until;
	char text[8];
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += slice.tv_nsec;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	return mq_timedreceive(queue, text, sizeof(text), 0, &until) < 0 ? errno : 0;
}
static int call_clock_nanosleep(void)
{
	struct timespec until;
	int error;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += slice.tv_nsec;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
	return error ? error : ETIMEDOUT;
}
static int call_splice(void) { return splice(0, 0, pipes[1], 0, 1, 0) == 1 ? 0 : errno; }
static int call_timerfd(void)
{
	struct itimerspec once = { .it_value = slice };
	uint64_t count;
	timerfd_settime(timer, 0, &once, 0);
	return read(timer, &count, sizeof(count)) == sizeof(count) ? ETIMEDOUT : errno;
}
static int call_getevents(void)
{
	struct io_event event;
	return syscall(SYS_io_getevents, aio, 1, 1, &event, &slice) == 0 ? ETIMEDOUT : errno;
}

static const struct { const char *name; int (*call)(void); } calls[] = {
	{ "read", call_read }, { "poll", call_poll }, { "ppoll", call_ppoll }, { "select", call_select },
	{ "epoll_wait", call_epoll }, { "epoll_wait-time", call_epoll_slice }, { "nanosleep", call_nanosleep },
	{ "futex", call_futex }, { "sigtimedwait", call_sigtimedwait }, { "recv", call_recv }, { "semop", call_semop },
	{ "recvmsg", call_recvmsg }, { "send", call_send }, { "accept", call_accept }, { "waitid", call_waitid },
	{ "flock", call_flock }, { "fcntl", call_fcntl }, { "msgrcv", call_msgrcv }, { "mq", call_mq },
	{ "clock_nanosleep", call_clock_nanosleep }, { "splice", call_splice }, { "timerfd", call_timerfd },
	{ "io_getevents", call_getevents },
};

// Holds a lock of each kind, until standard input can be read; then sends a message, and ends.
static void be_the_child(const char *path, int told)
{
	struct pollfd p = { 0, POLLIN, 0 };
	struct flock whole = { .l_type = F_WRLCK };
	struct { long type; char text; } message = { 1, 0 };
	int own = open(path, O_RDWR);

	flock(own, LOCK_EX);
	fcntl(own, F_SETLK, &whole);
	write(told, "x", 1);
	poll(&p, 1, -1);
	msgsnd(messages, &message, 1, 0);
	_exit(0);
}

static void prepare_child(void)
{
	char path[] = "/tmp/inject-calls-XXXXXX", c;
	int told[2];

	locked = mkstemp(path);
	if (pipe(told) || locked < 0)
		abort();
	child = fork();
	if (!child)
		be_the_child(path, told[1]);
	if (read(told[0], &c, 1) != 1)
		abort();
	close(told[0]);
	close(told[1]);
	unlink(path);
}

static void prepare(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct timeval limit = { 0, 20000 };
	struct mq_attr shape = { .mq_maxmsg = 1, .mq_msgsize = 8 };
	char name[32];

	epoll = epoll_create1(0);
	epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	semaphore = semget(IPC_PRIVATE, 1, 0600);
	sigemptyset(&waited);
	sigaddset(&waited, SIGUSR1);
	sigprocmask(SIG_BLOCK, &waited, 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, full);
	setsockopt(full[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	bind(listener, (struct sockaddr *)&(struct sockaddr_un){ .sun_family = AF_UNIX }, sizeof(sa_family_t));
	listen(listener, 1);
	setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	messages = msgget(IPC_PRIVATE, 0600);
	snprintf(name, sizeof(name), "/inject-calls-%d", (int)getpid());
	queue = mq_open(name, O_RDONLY | O_CREAT | O_EXCL, 0600, &shape);
	mq_unlink(name);
	timer = timerfd_create(CLOCK_MONOTONIC, 0);
	syscall(SYS_io_setup, 1, &aio);
	if (pipe(pipes) || queue < 0)
		abort();
	prepare_child();
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
	msgctl(messages, IPC_RMID, 0);
	if (error != 0 && error != ETIMEDOUT) {
		printf("%s\n", strerror(error));
		return 1;
	}
	printf("rounds %d\n", rounds);
	return 0;
}
