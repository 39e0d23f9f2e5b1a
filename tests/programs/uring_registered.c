// SPDX-License-Identifier: GPL-2.0-or-later
//
// io_uring with registered buffers: the kernel holds the pages themselves, so that a page that were taken
// out and brought back elsewhere would get nothing of what is read. Half the pages are out when they are
// registered; everything is tried to be pushed out while they are held.
#include "ring.h"

#include <fcntl.h>

int main(int argc, char **argv)
{
#if RING_AVAILABLE
	const size_t size = 4 * MIB, piece = 128 * 1024;
	char *area = map_filled(size, 1), name[] = "/var/tmp/uring-XXXXXX";
	int fd = mkostemp(name, O_DIRECT), error;
	struct ring ring;

	REQUIRE(fd >= 0 && !unlink(name));
	error = ring_open(&ring);
	if (error) {
		fprintf(stderr, "io_uring is not available: %s\n", strerror(-error));
		return 77;
	}
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size / 2, 1);
	REQUIRE(!ring_register(&ring, area, size));
	press(ballast_bytes(argc, argv));
	for (uint64_t key = 2; key < 5; key++) {
		fill(area, size, key);
		press(ballast_bytes(argc, argv));
		for (size_t at = 0; at < size; at += piece)
			REQUIRE(ring_fixed(&ring, IORING_OP_WRITE_FIXED, fd, area + at, piece, at) == (int)piece);
		fill(area, size, 99);
		press(ballast_bytes(argc, argv));
		for (size_t at = 0; at < size; at += piece)
			REQUIRE(ring_fixed(&ring, IORING_OP_READ_FIXED, fd, area + at, piece, at) == (int)piece);
		verify(area, size, key);
	}
	REQUIRE(!ring_unregister(&ring));
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size, 4);
	return done();
#else
	(void)argc;
	(void)argv;
	return 77;
#endif
}
