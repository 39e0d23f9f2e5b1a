// SPDX-License-Identifier: GPL-2.0-or-later
//
// mremap to a smaller size with pages out: the rest is kept, and the address that was let go holds zeros
// when it is mapped again.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, left = 4 * MIB;
	char *area = map_filled(size, 1);

	push_out(area, size, ballast_bytes(argc, argv));
	for (int round = 1; round <= 3; round++) {
		REQUIRE(mremap(area, size, left, 0) == area);
		map_at(area + left, size - left);
		verify(area, left, (uint64_t)round);
		verify_zero(area + left, size - left);
		fill(area, size, (uint64_t)round + 1);
		push_out(area, size, ballast_bytes(argc, argv));
	}
	verify(area, size, 4);
	return done();
}
