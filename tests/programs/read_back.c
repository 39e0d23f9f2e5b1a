// SPDX-License-Identifier: GPL-2.0-or-later
//
// Fills memory and has it swapped by filling more, which it gives back. Waits for a line on standard input, then touches
// those pages only that are still out, from the first on: all others come beside them. Waits for another line before it
// looks at all of it. Nothing in it can be packed small.
#include "check.h"

/* How many pages it touched, for each to come in. */
static size_t touch_what_is_out(volatile uint64_t *area, size_t pages)
{
	size_t touched = 0;
	unsigned char present;

	for (size_t page = 0; page < pages; page++) {
		volatile uint64_t *at = area + page * WORDS;

		REQUIRE(!mincore((void *)at, PAGE, &present));
		if (!(present & 1)) {
			(void)at[0];
			touched++;
		}
	}
	return touched;
}

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) * MIB;
	uint64_t *area = (uint64_t *)map(bytes);
	uint64_t *more = (uint64_t *)map(3 * bytes);

	fill_hard(area, bytes, 1);
	for (int round = 0; round < 16 && count_out(area, bytes) < bytes / PAGE / 16 * 15; round++)
		fill_hard(more, 3 * bytes, 2);
	REQUIRE(!munmap(more, 3 * bytes));
	printf("evicted=%zu\ngiven back\n", count_out(area, bytes));
	fflush(stdout);
	REQUIRE(getchar() != EOF);
	printf("touched=%zu\n", touch_what_is_out(area, bytes / PAGE));
	printf("all in\n");
	fflush(stdout);
	REQUIRE(getchar() != EOF);
	verify_hard(area, bytes, 1);
	printf("ok\n");
	return 0;
}
