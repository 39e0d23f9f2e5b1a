// SPDX-License-Identifier: GPL-2.0-or-later
//
// exec with pages out: the new program starts with memory of its own, and outgrows the limit again.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB;
	int left = argc > 2 ? atoi(argv[2]) : 2;
	char *area = map(size), count[16];

	verify_zero(area, size);
	fill(area, size, (uint64_t)left);
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size, (uint64_t)left);
	if (!left)
		return done();
	press(ballast_bytes(argc, argv));
	snprintf(count, sizeof(count), "%d", left - 1);
	execl("/proc/self/exe", argv[0], argc > 1 ? argv[1] : "64", count, (char *)NULL);
	REQUIRE(!"exec failed");
}
