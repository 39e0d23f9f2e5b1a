// SPDX-License-Identifier: GPL-2.0-or-later
//
// A matrix whose rows are 16 pages long is read down its columns, as far as it is out; then up again; then down two
// columns of two other matrices in turns. Each page is read once in each walk.
#include "check.h"

enum { ROW = 16, ROWS = 512, KEY = 1 };

static const size_t size = ROW * ROWS * PAGE;

static void read_at(char *area, size_t row, size_t column, uint64_t key)
{
	size_t page = row * ROW + column;

	verify_from(area + page * PAGE, PAGE, key, page);
}

int main(int argc, char **argv)
{
	size_t ballast = ballast_bytes(argc, argv);
	char *one = map_filled(size, KEY), *other = map_filled(size, KEY + 1);

	push_out(one, size, ballast);
	for (size_t column = 0; column < ROW; column++)
		for (size_t row = 0; row < ROWS; row++)
			read_at(one, row, column, KEY);
	press(ballast);
	for (size_t column = ROW; column-- > 0;)
		for (size_t row = ROWS; row-- > 0;)
			read_at(one, row, column, KEY);
	press(ballast);
	for (size_t column = 0; column < ROW; column++)
		for (size_t row = 0; row < ROWS; row++) {
			read_at(one, row, column, KEY);
			read_at(other, row, column, KEY + 1);
		}
	puts("ok");
	return 0;
}
