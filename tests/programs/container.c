// SPDX-License-Identifier: GPL-2.0-or-later
// Becomes another program under the rules of a container's default filter (Docker's, for who lacks CAP_SYS_PTRACE and
// CAP_SYS_ADMIN): of what it does not allow, all that userswap, or a program under it, might want.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define GIVE(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define REFUSE(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), GIVE(EPERM)

int main(int argc, char **argv)
{
	struct sock_filter code[] = {
		LOAD(nr),
		REFUSE(SYS_kcmp),
		REFUSE(SYS_pidfd_getfd),
#ifdef BEFORE_DOCKER_23
		REFUSE(SYS_process_vm_readv),
		REFUSE(SYS_process_vm_writev),
#endif
		REFUSE(SYS_process_madvise),
		REFUSE(SYS_userfaultfd),
		REFUSE(SYS_io_uring_setup),
		REFUSE(SYS_io_uring_enter),
		REFUSE(SYS_io_uring_register),
		REFUSE(SYS_bpf),
		REFUSE(SYS_perf_event_open),
		REFUSE(SYS_mount),
		REFUSE(SYS_unshare),
		REFUSE(SYS_setns),
		REFUSE(SYS_mbind),
		REFUSE(SYS_set_mempolicy),
		REFUSE(SYS_get_mempolicy),
		REFUSE(SYS_migrate_pages),
		REFUSE(SYS_move_pages),
		REFUSE(SYS_open_by_handle_at),
		REFUSE(SYS_keyctl),
		REFUSE(SYS_swapon),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
		GIVE(ENOSYS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
		LOAD(args[0]),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x7e020000 /* CLONE_NEW..., all of them */, 0, 1),
		GIVE(EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};

	if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
		perror("container");
		return 1;
	}
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 1;
}
