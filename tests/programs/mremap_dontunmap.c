// SPDX-License-Identifier: GPL-2.0-or-later
//
// MREMAP_DONTUNMAP with pages out: they are at the new address, and the old one, still mapped, holds zeros.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB;
	char *area = map_filled(size, 1), *moved;

	push_out(area, size, ballast_bytes(argc, argv));
	moved = mremap(area, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	REQUIRE(moved != MAP_FAILED && moved != area);
	verify(moved, size / 2, 1);
	verify_zero(area, size);
	fill(area, size, 2);
	verify(moved, size, 1);
	verify(area, size, 2);
	push_out(moved, size, ballast_bytes(argc, argv));
	// And back over the pages that were written in the meantime.
	REQUIRE(mremap(moved, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, area) == area);
	verify(area, size, 1);
	return done();
}
