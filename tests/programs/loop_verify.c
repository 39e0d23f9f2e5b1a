// SPDX-License-Identifier: GPL-2.0-or-later
//
// Checks its memory for ever, with more memory than there is, until it is stopped: nothing that happens to
// the engine may show it a wrong byte. Says "ready" once everything is filled.
//
//     loop_verify MIB
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = ballast_bytes(argc, argv);
	char *area = map_filled(size, 1);

	printf("evicted=%zu\nready\n", count_out(area, size));
	fflush(stdout);
	for (;;)
		verify(area, size, 1);
}
