// SPDX-License-Identifier: GPL-2.0-or-later
// Puts itself under a seccomp filter that kills it for any call but a few, then counts reads of standard
// input. "open" allows what a helper lives by too; "closed" does not; "strict" is the oldest mode.
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static int confine(int open)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_exit), ALLOW(SYS_exit_group),
		ALLOW(open ? SYS_futex : SYS_read), ALLOW(open ? SYS_ioctl : SYS_read),
		ALLOW(open ? SYS_madvise : SYS_read),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	char byte;

	if (!strcmp(mode, "strict") ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) : confine(!strcmp(mode, "open")))
		return 2;
	if (write(1, "ready\n", 6) != 6 || read(0, &byte, 1) != 1 || write(1, "good 1\n", 7) != 7)
		syscall(SYS_exit, 1);
	syscall(SYS_exit, 0); /* strict mode knows no exit_group */
}
