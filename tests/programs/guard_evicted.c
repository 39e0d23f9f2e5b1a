// SPDX-License-Identifier: GPL-2.0-or-later
//
// MADV_GUARD_INSTALL of pages that are out raises no event: what comes in beside them, in a row or down a column, must
// not take their place. Guards are hit by system calls here, which fail where the program would be killed.
#include "check.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { KEY = 1, STEP = 16, COLUMNS = 3, GUARDED = 7 };

static const size_t size = 32 * MIB;
static int ends[2];

static int is_guarded(size_t page)
{
	return page % GUARDED == 3;
}

static void hit(char *at)
{
	REQUIRE(write(ends[1], at, 1) == -1 && errno == EFAULT);
}

static void verify_page(char *area, size_t page)
{
	if (is_guarded(page))
		hit(area + page * PAGE);
	else
		verify_from(area + page * PAGE, PAGE, KEY, page);
}

static void install_guards(char *area)
{
	for (size_t page = 0; page < size / PAGE; page++)
		if (is_guarded(page))
			REQUIRE(madvise(area + page * PAGE, PAGE, MADV_GUARD_INSTALL) == 0);
}

int main(int argc, char **argv)
{
	char *area = map_filled(size, KEY);
	size_t ballast = ballast_bytes(argc, argv);

	REQUIRE(pipe(ends) == 0);
	push_out(area, size, ballast);
	install_guards(area);
	for (size_t column = 0; column < COLUMNS; column++)
		for (size_t page = column; page < size / PAGE; page += STEP)
			verify_page(area, page);
	press(ballast);
	for (size_t page = size / PAGE; page-- > 0;)
		verify_page(area, page);
	press(ballast);
	for (size_t page = 0; page < size / PAGE; page++)
		verify_page(area, page);
	puts("ok");
	return 0;
}
