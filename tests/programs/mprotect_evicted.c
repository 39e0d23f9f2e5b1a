// SPDX-License-Identifier: GPL-2.0-or-later
//
// mprotect with pages out: read-only pages come back and stay read-only, also for system calls; pages
// without any access keep what they hold.
#include "check.h"

#include <setjmp.h>
#include <signal.h>

static sigjmp_buf back;

static void on_fault(int number)
{
	siglongjmp(back, number);
}

static int write_faults(volatile char *at)
{
	if (sigsetjmp(back, 1))
		return 1;
	*at = 1;
	return 0;
}

static int read_faults(const volatile char *at)
{
	if (sigsetjmp(back, 1))
		return 1;
	(void)*at;
	return 0;
}

int main(int argc, char **argv)
{
	const size_t size = 16 * MIB, half = size / 2;
	char *area = map_filled(size, 1);
	int ends[2];

	REQUIRE(signal(SIGSEGV, on_fault) != SIG_ERR);
	REQUIRE(!pipe(ends) && write(ends[1], "x", 1) == 1);
	push_out(area, size, ballast_bytes(argc, argv));
	REQUIRE(!mprotect(area, half, PROT_READ));
	REQUIRE(!mprotect(area + half, half, PROT_NONE));
	REQUIRE(read(ends[0], area + PAGE, 1) == -1 && errno == EFAULT);
	for (size_t at = 0; at < half; at += 16 * PAGE) {
		REQUIRE(write_faults(area + at));
		REQUIRE(read_faults(area + half + at));
	}
	verify(area, half, 1);
	push_out(area, size, ballast_bytes(argc, argv));
	REQUIRE(!mprotect(area, size, PROT_READ | PROT_WRITE));
	verify(area, size, 1);
	fill(area, size, 2);
	push_out(area, size, ballast_bytes(argc, argv));
	verify(area, size, 2);
	return done();
}
