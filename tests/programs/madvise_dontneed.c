// SPDX-License-Identifier: GPL-2.0-or-later
//
// MADV_DONTNEED with pages out: they are zeros from then on, their neighbours are kept; also where a part of
// the advised range is not mapped, so that the call fails and drops the rest all the same.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, part = 4 * MIB;
	char *area = map_filled(size, 1);

	push_out(area, size, ballast_bytes(argc, argv));
	REQUIRE(!madvise(area + part, part, MADV_DONTNEED));
	verify_zero(area + part, part);
	verify(area, part, 1);
	verify_from(area + 2 * part, size - 2 * part, 1, 2 * part / PAGE);
	fill(area, size, 2);
	push_out(area, size, ballast_bytes(argc, argv));
	REQUIRE(!munmap(area + part, PAGE));
	REQUIRE(madvise(area, 2 * part, MADV_DONTNEED) == -1 && errno == ENOMEM);
	verify_zero(area, part);
	verify_zero(area + part + PAGE, part - PAGE);
	verify_from(area + 2 * part, size - 2 * part, 2, 2 * part / PAGE);
	return done();
}
