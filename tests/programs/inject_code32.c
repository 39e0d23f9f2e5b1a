// SPDX-License-Identifier: GPL-2.0-or-later
// A 64-bit process whose only thread runs 32-bit code for ever.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
	char *code = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	memcpy(code, "\xeb\xfe", 2); /* jmp to itself */
	mprotect(code, 4096, PROT_READ | PROT_EXEC);
	puts("ready");
	fflush(stdout);
	__asm__ volatile("pushq $0x23\n\tpushq %0\n\tlretq" : : "r"((uint64_t)code) : "memory");
	return 0;
}
