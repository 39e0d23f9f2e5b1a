/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Forks, told of before they happen: a filter of seccomp in the program and all that comes of it, and the descriptor on
 * which the kernel says who is about to fork, and waits (seccomp_unotify(2)). The filter is a dozen instructions, which
 * are written out here rather than made by libseccomp: this is for those who cannot install what they lack. */
#ifndef USERSWAP_NOTICE_H
#define USERSWAP_NOTICE_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5) /* Linux 5.19 */
#endif

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, uint64_t)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1UL
#endif

#define USERSWAP_LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define USERSWAP_IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define USERSWAP_GIVE(action) BPF_STMT(BPF_RET | BPF_K, (action))

/* Calls that copy memory are told of: fork, and clone without CLONE_VM. clone3, whose flags a filter cannot see, is not
 * there: the C libraries then do without, as they do in most containers. Also the numbers of 32-bit programs, and of
 * x32 ones, which are marked by a bit. Returns a descriptor, or -errno: -EBUSY where there is such a filter already. */
static inline int notice_install(void)
{
	enum { X32 = 0x40000000, FORK = 57, CLONE = 56, CLONE3 = 435, FORK_32 = 2, CLONE_32 = 120 };
	struct sock_filter code[] = {
	    /* 0 */ USERSWAP_LOAD(arch),
	    USERSWAP_IS(AUDIT_ARCH_X86_64, 0, 4),
	    /* 2 */ USERSWAP_LOAD(nr),
	    BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~(uint32_t)X32),
	    USERSWAP_IS(FORK, 10, 0),
	    USERSWAP_IS(CLONE, 4, 6),
	    /* 6 */ USERSWAP_IS(AUDIT_ARCH_I386, 0, 6),
	    USERSWAP_LOAD(nr),
	    USERSWAP_IS(FORK_32, 6, 0),
	    USERSWAP_IS(CLONE_32, 0, 2),
	    /* 10 */ USERSWAP_LOAD(args[0]), /* its lower half */
	    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_VM, 1, 3),
	    /* 12 */ USERSWAP_IS(CLONE3, 1, 0),
	    /* 13 */ USERSWAP_GIVE(SECCOMP_RET_ALLOW),
	    /* 14 */ USERSWAP_GIVE(SECCOMP_RET_ERRNO | ENOSYS),
	    /* 15 */ USERSWAP_GIVE(SECCOMP_RET_USER_NOTIF),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};
	unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
	long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);

	/* Only who may do all may filter what a program of other rights does. */
	if (fd < 0 && errno == EACCES && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
		fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	return fd < 0 ? -errno : (int)fd;
}

/* To be told at once, on the CPU where it happens (Linux 6.6; else a little later). */
static inline void notice_hurry(int fd)
{
	ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, (unsigned long)SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
}

/* Waits until somebody is about to fork: 1; or 0 when nobody is left who could, or -errno. */
static inline int notice_wait(int fd, int milliseconds)
{
	struct pollfd one = {fd, POLLIN, 0};
	int ready = poll(&one, 1, milliseconds);

	if (ready < 0)
		return -errno;
	if (ready == 0)
		return -EAGAIN;
	return one.revents & POLLIN ? 1 : 0;
}

/* 0 or -errno: -ENOENT where it has ended meanwhile. */
static inline int notice_receive(int fd, struct seccomp_notif *notice)
{
	memset(notice, 0, sizeof *notice);
	return ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, notice) ? -errno : 0;
}

/* Lets the call go on, or fail with an error. 0 or -errno: -ENOENT where nobody waits any more. */
static inline int notice_answer(int fd, uint64_t id, int error)
{
	struct seccomp_notif_resp answer;

	memset(&answer, 0, sizeof answer);
	answer.id = id;
	answer.error = -error;
	answer.flags = error ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	return ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &answer) ? -errno : 0;
}

#endif
