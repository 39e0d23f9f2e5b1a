// SPDX-License-Identifier: GPL-2.0-or-later
//
// Forks that do not come about, with pages out: no process more is allowed; or, under a userswap that has to catch
// forks, somebody else traces the one that forks. Afterwards they do again.
#include "check.h"
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>

enum { KEY = 1, TRIES = 20 };

static const size_t size = 16 * MIB;

static void fork_and_verify(char *area)
{
	pid_t child = fork();

	REQUIRE(child >= 0);
	if (!child) {
		verify(area, size, KEY);
		_exit(0);
	}
	wait_for(child);
}

/* Whom we trace stops at each signal. Until there is something to be read. */
static void let_go_on(pid_t traced, int until)
{
	struct pollfd one = {until, POLLIN, 0};
	int status;

	while (poll(&one, 1, 1) == 0)
		if (waitpid(traced, &status, __WALL | WNOHANG) == traced && WIFSTOPPED(status))
			ptrace(PTRACE_CONT, traced, 0, status >> 16 ? 0 : WSTOPSIG(status));
}

/* Traces its parent from one line on its pipe to the next. */
static pid_t start_tracer(int *say, int *hear)
{
	int to[2], from[2];
	pid_t parent = getpid(), tracer;
	char byte;

	REQUIRE(pipe(to) == 0 && pipe(from) == 0);
	tracer = fork();
	REQUIRE(tracer >= 0);
	if (!tracer) {
		close(to[1]);
		REQUIRE(read(to[0], &byte, 1) == 1);
		REQUIRE(ptrace(PTRACE_SEIZE, parent, 0, 0) == 0);
		REQUIRE(write(from[1], "", 1) == 1);
		let_go_on(parent, to[0]);
		_exit(0);
	}
	close(to[0]);
	*say = to[1];
	*hear = from[0];
	return tracer;
}

int main(int argc, char **argv)
{
	struct rlimit limit, none;
	int say, hear, refused = 0;
	pid_t tracer, child;
	char byte, *area;

	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	tracer = start_tracer(&say, &hear);
	area = map_filled(size, KEY);
	push_out(area, size, ballast_bytes(argc, argv));

	REQUIRE(getrlimit(RLIMIT_NPROC, &limit) == 0);
	none = limit;
	none.rlim_cur = 0;
	REQUIRE(setrlimit(RLIMIT_NPROC, &none) == 0);
	for (int i = 0; i < TRIES && geteuid() != 0; i++)
		REQUIRE(fork() == -1 && errno == EAGAIN);
	REQUIRE(setrlimit(RLIMIT_NPROC, &limit) == 0);
	fork_and_verify(area);

	REQUIRE(write(say, "", 1) == 1 && read(hear, &byte, 1) == 1);
	child = fork();
	if (child == 0) {
		verify(area, size, KEY);
		_exit(0);
	}
	if (child < 0) {
		REQUIRE(errno == EAGAIN);
		refused++;
	} else {
		wait_for(child);
	}
	REQUIRE(write(say, "", 1) == 1);
	wait_for(tracer);
	fork_and_verify(area);
	verify(area, size, KEY);
	printf("refused=%d\n", refused);
	return done();
}
