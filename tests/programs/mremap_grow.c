// SPDX-License-Identifier: GPL-2.0-or-later
//
// mremap to a larger size with pages out: the old part is kept, the new part is zeros, in place or moved.
#include "check.h"

int main(int argc, char **argv)
{
	size_t size = 8 * MIB;
	char *area = map(64 * MIB), *grown;

	// In place: there is room behind it.
	REQUIRE(!munmap(area + size, 64 * MIB - size));
	fill(area, size, 1);
	push_out(area, size, ballast_bytes(argc, argv));
	for (; size < 32 * MIB; size += 8 * MIB) {
		grown = mremap(area, size, size + 8 * MIB, MREMAP_MAYMOVE);
		REQUIRE(grown != MAP_FAILED);
		area = grown;
		verify(area, size, 1);
		verify_zero(area + size, 4 * MIB);
		fill(area, size + 8 * MIB, 1);
	}
	push_out(area, size, ballast_bytes(argc, argv));
	// It must move: a wall stands behind it.
	mmap(area + size, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	grown = mremap(area, size, 2 * size, MREMAP_MAYMOVE);
	REQUIRE(grown != MAP_FAILED && grown != area);
	verify(grown, size, 1);
	verify_zero(grown + size, size);
	fill(grown, 2 * size, 2);
	verify(grown, 2 * size, 2);
	return done();
}
