// SPDX-License-Identifier: GPL-2.0-or-later
//
// mremap to another address with pages out, whole and in part, and what lies at the old address afterwards.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, part = 4 * MIB;
	char *area = map_filled(size, 1), *other = map(size), *moved;

	push_out(area, size, ballast_bytes(argc, argv));
	moved = mremap(area, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, other);
	REQUIRE(moved == other);
	// Strangers at the old address must not meet what was there.
	map_at(area, size);
	verify_zero(area, size / 2);
	fill(area, size, 2);
	verify(moved, size, 1);

	push_out(moved, size, ballast_bytes(argc, argv));
	// The middle of one over the middle of the other; the hole is filled anew.
	REQUIRE(mremap(moved + part, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, area + part) == area + part);
	map_at(moved + part, part);
	verify_zero(moved + part, part);
	verify_from(area, part, 2, 0);
	verify_from(area + part, part, 1, part / PAGE);
	verify_from(area + 2 * part, size - 2 * part, 2, 2 * part / PAGE);
	verify_from(moved, part, 1, 0);
	verify_from(moved + 2 * part, size - 2 * part, 1, 2 * part / PAGE);
	return done();
}
