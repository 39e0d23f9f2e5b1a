// SPDX-License-Identifier: GPL-2.0-or-later
//
// MADV_FREE with pages out: each is the old page or zeros, whole, until it is written, and then what was
// written.
#include "check.h"

static int is_zero(const char *page)
{
	static const char zeros[4096];

	return !memcmp(page, zeros, PAGE);
}

static void verify_old_or_zero(const char *area, size_t bytes, uint64_t key)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		if (!is_zero(area + at))
			verify_from(area + at, PAGE, key, at / PAGE);
}

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB;
	char *area = map_filled(size, 1);

	push_out(area, size, ballast_bytes(argc, argv));
	REQUIRE(!madvise(area, size, MADV_FREE));
	verify_old_or_zero(area, size, 1);
	push_out(area, size, ballast_bytes(argc, argv));
	verify_old_or_zero(area, size, 1);
	fill(area, size, 2);
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size, 2);
	return done();
}
