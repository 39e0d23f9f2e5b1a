// SPDX-License-Identifier: GPL-2.0-or-later
//
// Holes are unmapped in pages that are out, and their addresses reused at once: by other memory, which must
// be zeros, while the neighbours are kept.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, hole = 7 * PAGE, stride = 32 * PAGE;
	char *area = map_filled(size, 1);

	push_out(area, size, ballast_bytes(argc, argv));
	for (size_t at = stride; at + hole < size; at += stride) {
		REQUIRE(!munmap(area + at, hole));
		map_at(area + at, hole);
	}
	for (size_t at = stride; at + hole < size; at += stride) {
		verify_zero(area + at, hole);
		fill(area + at, hole, at);
	}
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, stride, 1);
	for (size_t at = stride; at + hole < size; at += stride) {
		verify(area + at, hole, at);
		verify_from(area + at + hole, stride - hole, 1, (at + hole) / PAGE);
	}
	return done();
}
