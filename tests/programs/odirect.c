// SPDX-License-Identifier: GPL-2.0-or-later
//
// O_DIRECT from and into pages that are out: the device reads and writes the memory itself.
#include "check.h"

#include <fcntl.h>

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, piece = MIB;
	char *area = map_filled(size, 1), name[] = "/var/tmp/odirect-XXXXXX";
	int fd = mkostemp(name, O_DIRECT);

	REQUIRE(fd >= 0 && !unlink(name));
	push_out(area, size, ballast_bytes(argc, argv));
	for (size_t at = 0; at < size; at += piece)
		REQUIRE(pwrite(fd, area + at, piece, (off_t)at) == (ssize_t)piece);
	verify(area, size, 1);
	fill(area, size, 2);
	push_out(area, size, ballast_bytes(argc, argv));
	for (size_t at = 0; at < size; at += piece)
		REQUIRE(pread(fd, area + at, piece, (off_t)at) == (ssize_t)piece);
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size, 1);
	return done();
}
