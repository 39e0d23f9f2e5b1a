// SPDX-License-Identifier: GPL-2.0-or-later
//
// A mapping grows in place that holds, at the same time, pages that were only read so far (they map the shared zero
// page) and pages that came back and are clean. Then the clean ones are written to, and pushed out once more.
#include "check.h"
#include <time.h>

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void round_of(size_t data, size_t clean, size_t zeros)
{
	size_t size = data + zeros;
	char *area = map(2 * size);
	double start;

	// The place to grow into, so that nothing else is mapped there.
	REQUIRE(!mprotect(area + size, size, PROT_NONE));
	verify_zero(area + data, zeros);
	fill(area, data, 1);
	printf("evicted=%zu\n", count_out(area, data));
	verify(area, clean, 1);
	REQUIRE(!munmap(area + size, size));
	REQUIRE(mremap(area, size, 2 * size, 0) == area);
	// So long that an engine surely looks at what has grown.
	for (start = seconds(); seconds() < start + 0.3;)
		verify(area, clean, 1);
	fill(area, clean, 2);
	verify_from(area + clean, data - clean, 1, clean / PAGE);
	verify(area, clean, 2);
	verify_zero(area + data, zeros);
	verify_zero(area + size, size);
	REQUIRE(!munmap(area, 2 * size));
}

int main(int argc, char **argv)
{
	size_t ballast = ballast_bytes(argc, argv);

	for (int round = 0; round < 4; round++)
		round_of(ballast / 2, ballast / 8, ballast / 4);
	return done();
}
