// SPDX-License-Identifier: GPL-2.0-or-later
//
// munmap with pages out, then new memory at the same address: zeros, then its own.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB;
	char *area = map_filled(size, 1);

	for (int round = 1; round <= 3; round++) {
		push_out(area, size, ballast_bytes(argc, argv));
		REQUIRE(!munmap(area, size));
		map_at(area, size);
		if (round % 2)
			verify_zero(area, size);
		fill(area, size, (uint64_t)round);
		verify(area, size, (uint64_t)round);
	}
	return done();
}
