// SPDX-License-Identifier: GPL-2.0-or-later
//
// Touches 10 MiB, says "ready", and sleeps until its standard input ends.
#include "check.h"

int main(void)
{
	const size_t size = 10 * MIB;
	char *area = map_filled(size, 1), byte;

	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	verify(area, size, 1);
	return done();
}
