// SPDX-License-Identifier: GPL-2.0-or-later
//
// Fills memory with what cannot be packed small, has most of it swapped, gives back all but a sixteenth, and waits for a
// line on standard input before it looks at the rest: what it gave back leaves the swap areas without a fault.
#include "check.h"

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 256) * MIB;
	char *area = map(bytes);
	size_t kept = bytes / 16;

	fill_hard(area, bytes, 5);
	printf("evicted=%zu\n", count_out(area, bytes));
	fflush(stdout);
	REQUIRE(!munmap(area + kept, bytes / 2 - kept));
	REQUIRE(!madvise(area + bytes / 2, bytes / 2, MADV_DONTNEED));
	printf("given back\n");
	fflush(stdout);
	REQUIRE(getchar() != EOF);
	verify_hard(area, kept, 5);
	printf("ok\n");
	return 0;
}
