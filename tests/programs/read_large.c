// SPDX-License-Identifier: GPL-2.0-or-later
//
// Maps more than there is memory, prints "mapped", waits for a line on standard input, then has one read(2) of a file fill
// all of it, and checks that. The file is one of its own, made before, a piece at a time.
#include "check.h"

#include <fcntl.h>

enum { PIECE = 1 << 20 };

static int make_file(const char *path, size_t bytes)
{
	uint64_t *piece = map(PIECE);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	REQUIRE(fd >= 0);
	for (size_t at = 0; at < bytes; at += PIECE) {
		fill(piece, PIECE, at);
		REQUIRE(write(fd, piece, PIECE) == PIECE);
	}
	munmap(piece, PIECE);
	REQUIRE(lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

int main(int argc, char **argv)
{
	size_t bytes = (argc > 2 ? strtoul(argv[2], NULL, 10) : 256) * MIB;
	int fd = make_file(argc > 1 ? argv[1] : "read_large.data", bytes);
	char *ballast = map(4 * MIB);
	char *area = map(bytes);

	memset(ballast, 1, 4 * MIB); /* less would not be worth a helper */
	puts("mapped");
	fflush(stdout);
	REQUIRE(getchar() == '\n');
	REQUIRE(read(fd, area, bytes) == (ssize_t)bytes);
	for (size_t at = 0; at < bytes; at += PIECE)
		verify(area + at, PIECE, at);
	return done();
}
