// SPDX-License-Identifier: GPL-2.0-or-later
//
// Reads pages of its memory at random and checks each, again and again, and writes to one in eight of them.
//
//     reread MIB READS
#include "check.h"

int main(int argc, char **argv)
{
	size_t pages, reads;
	uint64_t *area;
	uint8_t *generations;

	REQUIRE(argc == 3);
	pages = strtoul(argv[1], NULL, 10) * MIB / PAGE;
	reads = strtoul(argv[2], NULL, 10);
	area = map(pages * PAGE);
	generations = calloc(pages, 1);
	REQUIRE(generations);
	for (size_t page = 0; page < pages; page++)
		fill(area + page * WORDS, PAGE, page);
	for (size_t i = 0; i < reads; i++) {
		size_t page = mix(i) % pages;

		verify(area + page * WORDS, PAGE, page + pages * generations[page]);
		if (i % 8 == 0)
			fill(area + page * WORDS, PAGE, page + pages * ++generations[page]);
	}
	for (size_t page = 0; page < pages; page++)
		verify(area + page * WORDS, PAGE, page + pages * generations[page]);
	return done();
}
