// SPDX-License-Identifier: GPL-2.0-or-later
//
// System calls whose buffers are out, for reading and for writing: a server's life. Each round has the
// pages pushed out first, so that it is the kernel that faults, not the program.
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

static const size_t size = 8 * MIB;

struct stream {
	int fd;
	char *area;
	int by_socket;
};

static void *send_all(void *argument)
{
	struct stream *s = argument;

	for (size_t sent = 0; sent < size;) {
		ssize_t n = s->by_socket ? send(s->fd, s->area + sent, size - sent, 0)
					 : write(s->fd, s->area + sent, size - sent);
		REQUIRE(n > 0);
		sent += (size_t)n;
	}
	return NULL;
}

static void through(int from, int to, char *source, char *target, int by_socket)
{
	struct stream s = {to, source, by_socket};
	pthread_t sender;

	REQUIRE(!pthread_create(&sender, NULL, send_all, &s));
	for (size_t got = 0; got < size;) {
		ssize_t n = by_socket ? recv(from, target + got, size - got, 0)
				      : read(from, target + got, size - got);
		REQUIRE(n > 0);
		got += (size_t)n;
	}
	REQUIRE(!pthread_join(sender, NULL));
}

static void through_vectors(int fd, char *source, char *target)
{
	struct iovec out[16], in[16];
	size_t part = size / 16;

	for (size_t i = 0; i < 16; i++) {
		out[i] = (struct iovec){source + i * part, part};
		in[i] = (struct iovec){target + i * part, part};
	}
	REQUIRE(pwritev(fd, out, 16, 0) == (ssize_t)size);
	REQUIRE(preadv(fd, in, 16, 0) == (ssize_t)size);
}

int main(int argc, char **argv)
{
	char *source = map(size), *target = map(size), name[] = "/var/tmp/syscalls-XXXXXX";
	int ends[2], sockets[2], fd = mkstemp(name);

	REQUIRE(fd >= 0 && !unlink(name) && !pipe(ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	for (uint64_t round = 1; round <= 5; round++) {
		fill(source, size, round);
		fill(target, size, ~round);
		push_out(round % 2 ? target : source, size, ballast_bytes(argc, argv));
		switch (round) {
		case 1:
			through(ends[0], ends[1], source, target, 0);
			break;
		case 2:
			through(sockets[0], sockets[1], source, target, 1);
			break;
		case 3:
			REQUIRE(pwrite(fd, source, size, 0) == (ssize_t)size);
			REQUIRE(pread(fd, target, size, 0) == (ssize_t)size);
			break;
		case 4:
			through_vectors(fd, source, target);
			break;
		default: {
			struct iovec from = {source, size}, to = {target, size};

			REQUIRE(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)size);
		}
		}
		verify(target, size, round);
		verify(source, size, round);
	}
	return done();
}
