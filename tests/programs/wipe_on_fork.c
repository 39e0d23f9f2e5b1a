// SPDX-License-Identifier: GPL-2.0-or-later
//
// MADV_WIPEONFORK and MADV_DONTFORK on pages that are out: the child sees zeros, or no mapping.
#include "check.h"

int main(int argc, char **argv)
{
	const size_t size = 8 * MIB;
	char *kept = map_filled(size, 1), *wiped = map_filled(size, 2), *absent = map_filled(size, 3);
	unsigned char present[1];
	pid_t child;

	REQUIRE(!madvise(wiped, size, MADV_WIPEONFORK));
	REQUIRE(!madvise(absent, size, MADV_DONTFORK));
	push_out(wiped, size, ballast_bytes(argc, argv));
	child = fork();
	if (!child) {
		verify(kept, size, 1);
		verify_zero(wiped, size);
		REQUIRE(mincore(absent, PAGE, present) == -1 && errno == ENOMEM);
		fill(wiped, size, 4);
		verify(wiped, size, 4);
		_exit(0);
	}
	wait_for(child);
	verify(kept, size, 1);
	verify(wiped, size, 2);
	verify(absent, size, 3);
	return done();
}
