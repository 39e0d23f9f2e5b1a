// SPDX-License-Identifier: GPL-2.0-or-later
//
// A mapping is moved away, another one put in its place, and the first one moved back over that, all the time: whoever
// looks at the mappings meanwhile sees now the one and now the other. Then a page of it is unmapped and mapped anew,
// which must be told apart from all that, for what is written there next must last.
#include "check.h"

#include <time.h>

enum { PLACES = 64, PAGES = 8 };

static const size_t size = PAGES * PAGE;
static const size_t apart = 64 * PAGE;
static char *const base = (char *)0x100000000000; // where nobody else maps anything
static uint64_t keys[PLACES];

static char *place(int number)
{
	return base + (size_t)number * apart;
}

static void move(char *from, char *to)
{
	REQUIRE(mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
}

static void step(int number, uint64_t turn)
{
	char *at = place(number), *away = place(number + PLACES);
	char *last = at + size - PAGE;

	map_at(at, size);
	fill(at, size, (uint64_t)number);
	move(at, away);
	map_at(at, size);
	for (size_t page = 0; page < PAGES; page += 2)
		at[page * PAGE] = 1;
	move(away, at);
	REQUIRE(!munmap(last, PAGE));
	map_at(last, PAGE);
	REQUIRE(!last[0] && !last[PAGE - 1]);
	keys[number] = turn;
	fill(last, PAGE, turn);
}

static void look(int number)
{
	verify(place(number), size - PAGE, (uint64_t)number);
	verify(place(number) + size - PAGE, PAGE, keys[number]);
}

int main(int argc, char **argv)
{
	size_t ballast = (argc > 1 ? strtoul(argv[1], NULL, 10) : 128) * MIB;
	char *area = map_filled(ballast, 7);
	time_t end = time(NULL) + 5;
	uint64_t turn = 0;

	for (int i = 0; i < PLACES; i++)
		step(i, ++turn);
	verify(area, ballast, 7);
	printf("evicted=%zu\n", count_out(area, ballast));
	while (time(NULL) < end) {
		for (int i = 0; i < PLACES; i++)
			step(i, ++turn);
		for (size_t at = turn / PLACES % 8 * (ballast / 8), n = 0; n < ballast / 8 / PAGE; n++)
			verify_from(area + at + n * PAGE, PAGE, 7, at / PAGE + n);
		for (int i = 0; i < PLACES; i++)
			look(i);
	}
	printf("ok\n");
	return 0;
}
