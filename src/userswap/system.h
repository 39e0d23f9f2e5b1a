/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The only place that makes system calls for the data plane: each returns a value >= 0, or -errno. */
#ifndef USERSWAP_SYSTEM_H
#define USERSWAP_SYSTEM_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "uapi.h"

static inline long sys_result(long result)
{
	return result < 0 ? -errno : result;
}

static inline uint64_t sys_now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/*
 * Microseconds since `then`. Another thread may have set `then` after we took the time: that is 0, not the age of
 * the universe. To subtract from sys_now_us() is right only for a time that one's own thread took.
 */
static inline uint64_t sys_since_us(uint64_t then)
{
	uint64_t now = sys_now_us();

	return now > then ? now - then : 0;
}

static inline void sys_sleep_us(uint64_t us)
{
	struct timespec span = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

	nanosleep(&span, NULL);
}

#define FOR_EVER_US 3600000000ull /* an hour: whoever waits looks again */

/* Waits while *word == value, at the longest `us` microseconds. Whoever may also be ended while it waits looks for
 * that after it has read the word: who ends it says so first and counts the word up then. */
static inline void sys_futex_wait(uint32_t *word, uint32_t value, uint64_t us)
{
	struct timespec span = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &span, NULL, 0);
}

/* Counts *word up and wakes all who wait for that. */
static inline void sys_futex_advance(uint32_t *word)
{
	__atomic_add_fetch(word, 1, __ATOMIC_ACQ_REL);
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0);
}

/* The same for a word that another process has mapped as well. */
static inline void sys_shared_wait(uint32_t *word, uint32_t value, uint64_t us)
{
	struct timespec span = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &span, NULL, 0);
}

static inline void sys_shared_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

static inline void *sys_reserve(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

/* Has all of a reserved area made. What cannot be made now is when it is touched. */
static inline void sys_populate(void *at, size_t bytes)
{
	madvise(at, bytes, 23); /* MADV_POPULATE_WRITE, Linux 5.14 */
}

/*
 * The same, for blocks: as huge pages where the kernel can. The disk is told of one piece then, not of 512. Of each
 * only the first page is made: that is enough for the kernel to replace it by a huge one, and ten times as fast as
 * having all 512 made, and copied.
 */
static inline void sys_populate_whole(void *at, size_t bytes)
{
	const size_t huge = 2 << 20;

	for (size_t done = 0; done < bytes; done += huge)
		sys_populate((char *)at + done, 4096);
	if (madvise(at, bytes, 25) != 0) /* MADV_COLLAPSE, Linux 6.1 */
		sys_populate(at, bytes);
}

/*
 * From now on the kernel swaps nothing of this process: whoever waits for it may be who fills the memory. What is only
 * reserved is not made, but locked once it is. False where that is not allowed without bounds: with some, a later
 * reservation would fail.
 */
static inline int sys_lock_memory(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct capabilities[2] = {{0}};
	struct rlimit limit = {0, 0};

	getrlimit(RLIMIT_MEMLOCK, &limit);
	syscall(SYS_capget, &header, capabilities);
	return (limit.rlim_cur == RLIM_INFINITY || capabilities[0].effective >> CAP_IPC_LOCK & 1) &&
	       mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
}

/* As sys_reserve, but its memory comes and goes page by page: no huge page is made for a part that is used. */
static inline void *sys_reserve_pages(size_t bytes)
{
	void *at = sys_reserve(bytes);

	if (at)
		madvise(at, bytes, MADV_NOHUGEPAGE);
	return at;
}

/* Gives the memory of such pages back. They read as zeros, if the kernel took it. */
static inline void sys_drop(void *at, size_t bytes)
{
	madvise(at, bytes, 24); /* MADV_DONTNEED_LOCKED, Linux 5.18 */
}

static inline void sys_release(void *at, size_t bytes)
{
	munmap(at, bytes);
}

/* Reads or writes all of it, or gives -errno (-EIO for an end that should not be there). */
static inline long sys_pread_all(int fd, void *data, size_t bytes, uint64_t at)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = pread(fd, (char *)data + done, bytes - done, (off_t)(at + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Reads that are under way at the same time, by the kernel's own asynchronous calls (io_submit): a medium that
 * takes one read in 60 us takes eight in 110. Filled by sys_reads_add, started, finished; then empty again. */
enum { SYS_READS_MAX = 32 };

struct sys_reads {
	aio_context_t context; /* 0: one after the other */
	uint32_t count;
	uint32_t started;
	int loadavg; /* -1: never spin */
	int cpus;
	const uint32_t *spinning; /* threads that run only where nobody else does */
	struct iocb parts[SYS_READS_MAX];
};

/* For the calling thread, which may spin if it is told how many do. Without the right to asynchronous calls the reads
 * are done one after the other. */
static inline void sys_reads_init(struct sys_reads *reads, const uint32_t *spinning)
{
	cpu_set_t set;

	memset(reads, 0, sizeof *reads);
	if (syscall(SYS_io_setup, SYS_READS_MAX, &reads->context) != 0)
		reads->context = 0;
	reads->cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	reads->spinning = spinning;
	reads->loadavg = -1;
	/* The first thread's, as this one may be pinned. */
	if (spinning && sched_getaffinity(getpid(), sizeof set, &set) == 0 && CPU_COUNT(&set) == reads->cpus &&
	    sched_getscheduler(0) == SCHED_FIFO)
		reads->loadavg = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
}

static inline void sys_reads_deinit(struct sys_reads *reads)
{
	if (reads->context != 0)
		syscall(SYS_io_destroy, reads->context);
	if (reads->loadavg >= 0)
		close(reads->loadavg);
}

static inline void sys_reads_add(struct sys_reads *reads, int fd, void *data, size_t bytes, uint64_t at)
{
	struct iocb *part = &reads->parts[reads->count++];

	memset(part, 0, sizeof *part);
	part->aio_fildes = (uint32_t)fd;
	part->aio_lio_opcode = IOCB_CMD_PREAD;
	part->aio_buf = (uintptr_t)data;
	part->aio_nbytes = bytes;
	part->aio_offset = (int64_t)at;
	part->aio_data = reads->count - 1;
}

static inline void sys_reads_start(struct sys_reads *reads)
{
	struct iocb *pointers[SYS_READS_MAX];
	long n = 0;

	for (uint32_t i = 0; i < reads->count; i++)
		pointers[i] = &reads->parts[i];
	if (reads->context != 0 && reads->count > 0)
		n = syscall(SYS_io_submit, reads->context, (long)reads->count, pointers);
	reads->started = n > 0 ? (uint32_t)n : 0;
}

/* Whether a thread that spins here keeps nobody from running: no more want to run than there are CPUs. */
static inline int sys_cpu_to_spare(const struct sys_reads *reads)
{
	char text[64];
	const char *running;
	ssize_t n;

	if (reads->loadavg < 0)
		return 0;
	n = pread(reads->loadavg, text, sizeof text - 1, 0);
	text[n < 0 ? 0 : n] = 0;
	running = strchr(text, '/');
	while (running && running > text && running[-1] != ' ')
		running--;
	return running && atoi(running) - (int)__atomic_load_n(reads->spinning, __ATOMIC_RELAXED) <= reads->cpus;
}

/* The rest of a read that gave less than was asked for. */
static inline long sys_reads_rest(const struct iocb *part, size_t done)
{
	return sys_pread_all((int)part->aio_fildes, (char *)(uintptr_t)part->aio_buf + done, part->aio_nbytes - done,
			     (uint64_t)part->aio_offset + done);
}

/* Waits for all. Where a CPU is idle it looks again and again for a while: to sleep and be woken from the CPU that
 * the medium interrupts takes as long as half a read. Returns 0, or the -errno of one that failed. */
static inline long sys_reads_finish(struct sys_reads *reads)
{
	struct io_event events[SYS_READS_MAX];
	struct timespec none = {0, 0};
	uint64_t start = sys_now_us();
	uint32_t left = reads->started;
	long error = 0;

	for (uint32_t i = reads->started; i < reads->count; i++) {
		long result = sys_reads_rest(&reads->parts[i], 0);
		error = result ? result : error;
	}
	for (uint32_t turn = 1; left > 0; turn++) {
		int spin = sys_now_us() - start < 300 && (turn % 16 != 0 || sys_cpu_to_spare(reads));
		long n = syscall(SYS_io_getevents, reads->context, 1L, (long)left, events, spin ? &none : NULL);

		if (n < 0 && errno != EINTR)
			return -errno;
		turn = spin ? turn : 15;
		for (long i = 0; i < n; i++) {
			const struct iocb *part = &reads->parts[events[i].data];
			long result =
			    events[i].res < 0 ? (long)events[i].res : sys_reads_rest(part, (size_t)events[i].res);
			error = result ? result : error;
		}
		left -= n > 0 ? (uint32_t)n : 0;
	}
	reads->count = 0;
	reads->started = 0;
	return error;
}

/* Random bytes, at most 256. Returns 0 or -errno. */
static inline int sys_random(void *into, size_t bytes)
{
	ssize_t n = getrandom(into, bytes, 0);

	return n == (ssize_t)bytes ? 0 : n < 0 ? -errno : -EIO;
}

static inline long sys_pwrite_all(int fd, const void *data, size_t bytes, uint64_t at)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(at + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Gives the medium of a file or device back. */
static inline int sys_discard(int fd, uint64_t at, uint64_t bytes)
{
	uint64_t range[2] = {at, bytes};
	struct stat about;

	if (fstat(fd, &about) == 0 && S_ISBLK(about.st_mode))
		return ioctl(fd, BLKDISCARD, range) ? -errno : 0;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) ? -errno : 0;
}

/* A file in memory, of this size. RLIMIT_FSIZE is in force for it. */
static inline int sys_memory_file(const char *name, uint64_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	/* Nobody else's, whoever comes by a path to it. */
	if (fchmod(fd, 0600) != 0 || ftruncate(fd, (off_t)bytes) != 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static inline int sys_resize(int fd, uint64_t bytes)
{
	return ftruncate(fd, (off_t)bytes) ? -errno : 0;
}

static inline uint64_t sys_file_size(int fd)
{
	struct stat about;

	return fstat(fd, &about) == 0 ? (uint64_t)about.st_size : 0;
}

/* Pages of memory that a file in memory holds. */
static inline uint64_t sys_file_pages(int fd)
{
	struct stat about;

	return fstat(fd, &about) == 0 ? (uint64_t)about.st_blocks / 8 : 0;
}

/* Gives the memory of a part of such a file back: it reads as zeros. */
static inline int sys_punch(int fd, uint64_t at, uint64_t bytes)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) ? -errno : 0;
}

/* Maps a part of a file at an address, where nothing may be mapped yet. */
static inline int sys_map_at(int fd, uint64_t address, uint64_t offset, uint64_t bytes, int writable)
{
	void *at = mmap((void *)(uintptr_t)address, bytes, PROT_READ | (writable ? PROT_WRITE : 0),
			MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, (off_t)offset);

	return at == MAP_FAILED ? -errno : 0;
}

/* Memory that a process shares with those that it forks; NULL where it cannot be had. */
static inline void *sys_map_anonymous_shared(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

/* Memory that a file in memory holds, shared with whoever else maps it; NULL where it cannot be. */
static inline void *sys_map_shared(int fd, size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return at == MAP_FAILED ? NULL : at;
}

/* Sends a question by a socket that keeps messages apart, and waits for the answer, however long that takes. Returns 0
 * or -errno; -EPIPE when the other end has gone, -EPROTO when its answer is of another length. */
static inline int sys_ask(int fd, const void *question, size_t bytes, void *answer, size_t answer_bytes)
{
	ssize_t n;

	do
		n = send(fd, question, bytes, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	do
		n = recv(fd, answer, answer_bytes, MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : -EPIPE;
	return (size_t)n == answer_bytes ? 0 : -EPROTO;
}

/* Whoever asks or is about to ask gets no answer. */
static inline void sys_shut(int fd)
{
	shutdown(fd, SHUT_RDWR);
}

/* Copies out of another process; the number of bytes, or -errno. */
static inline long sys_read_process(pid_t pid, void *to, uint64_t from, size_t bytes)
{
	struct iovec here = {to, bytes};
	struct iovec there = {(void *)(uintptr_t)from, bytes};

	return sys_result(process_vm_readv(pid, &here, 1, &there, 1, 0));
}

/* Pages put in place; -errno in *error (0 if all were). */
static inline uint64_t sys_uffd_copy(int uffd, uint64_t to, const void *from, uint64_t bytes, int protect, int *error)
{
	struct uffdio_copy copy = {to, (uint64_t)(uintptr_t)from, bytes, protect ? UFFDIO_COPY_MODE_WP : 0, 0};

	*error = 0;
	if (ioctl(uffd, UFFDIO_COPY, &copy) == 0)
		return bytes;
	*error = -errno;
	return copy.copy > 0 ? (uint64_t)copy.copy : 0;
}

static inline int sys_uffd_wake(int uffd, uint64_t at, uint64_t bytes)
{
	struct uffdio_range range = {at, bytes};

	return ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

/* In the whole address space, from the lowest address that the kernel lets a program map. */
static inline void sys_uffd_wake_all(int uffd)
{
	const uint64_t end = (1ull << 47) - 4096;
	uint64_t start = 4096;

	while (start < 1ull << 30 && sys_uffd_wake(uffd, start, end - start) == -EINVAL)
		start *= 2;
}

static inline int sys_uffd_register(int uffd, uint64_t at, uint64_t bytes)
{
	struct uffdio_register reg = {{at, bytes}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static inline int sys_uffd_unregister(int uffd, uint64_t at, uint64_t bytes)
{
	struct uffdio_range range = {at, bytes};

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

static inline int sys_uffd_protect(int uffd, uint64_t at, uint64_t bytes)
{
	struct uffdio_writeprotect wp = {{at, bytes}, UFFDIO_WRITEPROTECT_MODE_WP};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

static inline int sys_uffd_unprotect(int uffd, uint64_t at, uint64_t bytes)
{
	struct uffdio_writeprotect wp = {{at, bytes}, 0};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

static inline long sys_uffd_read(int uffd, struct uffd_msg *msgs, size_t count)
{
	long n = sys_result(read(uffd, msgs, count * sizeof *msgs));

	return n < 0 ? n : n / (long)sizeof *msgs;
}

/* Present pages, or of these the ones that map the shared zero page, with their categories: fills regions, moves
 * *from on; the number of regions or -errno. */
static inline long sys_pagemap_scan(int pagemap, int zero_only, uint64_t *from, uint64_t end,
				    struct page_region *regions, size_t count)
{
	struct pm_scan_arg arg;
	long n;

	memset(&arg, 0, sizeof arg);
	arg.size = sizeof arg;
	arg.start = *from;
	arg.end = end;
	arg.vec = (uint64_t)(uintptr_t)regions;
	arg.vec_len = count;
	arg.category_mask = zero_only ? PAGE_IS_PFNZERO : PAGE_IS_PRESENT;
	arg.return_mask = PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_WRITTEN;
	n = sys_result(ioctl(pagemap, PAGEMAP_SCAN, &arg));
	*from = arg.walk_end;
	return n;
}

/* The first page in [from, end) that MADV_GUARD_INSTALL guards, or end. A kernel that cannot tell has no guards, or
 * is of the two versions that had them first. */
static inline uint64_t sys_pagemap_guard(int pagemap, uint64_t from, uint64_t end)
{
	struct page_region region;
	struct pm_scan_arg arg;

	memset(&arg, 0, sizeof arg);
	arg.size = sizeof arg;
	arg.start = from;
	arg.end = end;
	arg.vec = (uint64_t)(uintptr_t)&region;
	arg.vec_len = 1;
	arg.category_mask = PAGE_IS_GUARD;
	arg.return_mask = PAGE_IS_GUARD;
	return ioctl(pagemap, PAGEMAP_SCAN, &arg) == 1 ? region.start : end;
}

/* The first mapping that covers `at` or lies above it: 0, or -ENOENT past the last one. */
static inline int sys_next_mapping(int maps, uint64_t at, struct procmap_query *query, char *name, uint32_t name_bytes)
{
	memset(query, 0, sizeof *query);
	query->size = sizeof *query;
	query->query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA;
	query->query_addr = at;
	query->vma_name_size = name_bytes;
	query->vma_name_addr = (uint64_t)(uintptr_t)name;
	if (name_bytes)
		name[0] = 0;
	return ioctl(maps, PROCMAP_QUERY, query) ? -errno : 0;
}

/* 1 if both processes have the same address space, 0 if not, or -errno. */
static inline int sys_same_memory(pid_t one, pid_t other)
{
	long result = sys_result(syscall(SYS_kcmp, one, other, KCMP_VM, 0, 0));

	return result < 0 ? (int)result : result == 0;
}

/* 1 if a process has the file mapped at that address, 0 if not, or -errno. */
static inline int sys_has_mapped(pid_t pid, uint64_t at, int file)
{
	struct procmap_query query;
	struct stat status;
	char path[64];
	int maps, result;

	if (fstat(file, &status) != 0)
		return -errno;
	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	maps = open(path, O_RDONLY | O_CLOEXEC);
	if (maps < 0)
		return -errno;
	result = sys_next_mapping(maps, at, &query, NULL, 0);
	close(maps);
	if (result == -ENOENT)
		return 0;
	return result ? result : query.vma_start <= at && query.inode == (uint64_t)status.st_ino;
}

/* 1 if the page is neither present nor swapped, 0 if it is, or -errno. */
static inline int sys_page_absent(int pagemap, uint64_t page)
{
	uint64_t entry;

	if (pread(pagemap, &entry, sizeof entry, (off_t)(page * sizeof entry)) != sizeof entry)
		return -errno;
	return (entry >> 62) == 0;
}

static inline int sys_process_dead(int pidfd)
{
	struct pollfd poll_one = {pidfd, POLLIN, 0};

	return poll(&poll_one, 1, 0) == 1;
}

/* Waits until fd is readable, at the longest `us` microseconds. */
static inline int sys_poll_in(int fd, uint64_t us)
{
	struct pollfd poll_one = {fd, POLLIN, 0};
	struct timespec span = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

	return ppoll(&poll_one, 1, &span, NULL) == 1;
}

/* 0 when the address space of the userfaultfd is gone. Asks to lift the protection of a page that no mapping
 * can hold: below the lowest address that the kernel lets a program map. */
static inline int sys_uffd_alive(int uffd)
{
	return sys_uffd_unprotect(uffd, 4096, 4096) != -ESRCH;
}

/* 0 when the program has changed a mapping and the event of it is still to be read, or even to be queued. */
static inline int sys_uffd_settled(int uffd)
{
	return sys_uffd_unprotect(uffd, 4096, 4096) != -EAGAIN;
}

/* Reads a small /proc file whole: the length, or -errno. The text ends with a zero byte. */
static inline long sys_read_small(int fd, char *text, size_t room)
{
	long n = sys_result(pread(fd, text, room - 1, 0));

	text[n < 0 ? 0 : n] = 0;
	return n;
}

/* The number of the system call in which a thread waits, -1 if it runs, or may not be asked. */
static inline long sys_waiting_call(pid_t pid, pid_t tid)
{
	char text[256];
	char *end;
	long number;
	int fd;

	snprintf(text, sizeof text, "/proc/%d/task/%d/syscall", (int)pid, (int)tid);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	number = sys_read_small(fd, text, sizeof text) > 0 ? strtol(text, &end, 10) : -1;
	close(fd);
	return number >= 0 && end != text ? number : -1;
}

static inline int sys_open_proc(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
	return (int)sys_result(open(path, O_RDONLY | O_CLOEXEC));
}

/* Pages of memory that can be had without swap, by the kernel's own estimate; 0 if it gives none. */
static inline int64_t sys_available_pages(void)
{
	char text[2048];
	const char *found = NULL;
	int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (sys_read_small(fd, text, sizeof text) > 0)
		found = strstr(text, "MemAvailable:");
	close(fd);
	return found ? strtoll(found + 13, NULL, 10) / 4 : 0;
}

/* When the process was started, in ticks since the machine was; 0 if it is gone. */
static inline uint64_t sys_start_time(pid_t pid)
{
	char text[512];
	char *name_end;
	unsigned long long started = 0;
	int fd = sys_open_proc(pid, "stat");

	if (fd < 0)
		return 0;
	name_end = sys_read_small(fd, text, sizeof text) > 0 ? strrchr(text, ')') : NULL;
	close(fd);
	if (name_end)
		sscanf(name_end + 1,
		       " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &started);
	return started;
}

/* Whether the process has not run a program of its own since it was forked; no, if it is gone. */
static inline int sys_has_only_forked(pid_t pid)
{
	enum { FORKED_NO_EXEC = 0x40 };
	char text[512];
	char *name_end;
	unsigned long flags = 0;
	int fd = sys_open_proc(pid, "stat");

	if (fd < 0)
		return 0;
	name_end = sys_read_small(fd, text, sizeof text) > 0 ? strrchr(text, ')') : NULL;
	close(fd);
	return name_end && sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 &&
	       (flags & FORKED_NO_EXEC) != 0;
}

/* The threads of a process: sys_next_task gives their ids, 0 at the end. NULL when there is no such process; else
 * to be closed by closedir. */
static inline DIR *sys_open_tasks(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	return opendir(path);
}

static inline pid_t sys_next_task(DIR *tasks)
{
	const struct dirent *task;

	do
		task = readdir(tasks);
	while (task && task->d_name[0] == '.');
	return task ? atoi(task->d_name) : 0;
}

/* The head of a thread's list of robust mutexes, 0 if it has none or may not be asked. */
static inline uint64_t sys_robust_list(pid_t tid)
{
	void *head = NULL;
	size_t length;

	return syscall(SYS_get_robust_list, tid, &head, &length) == 0 ? (uint64_t)(uintptr_t)head : 0;
}

static inline void sys_pin_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
}

/* The lowest priority that still counts as being busy. */
static inline void sys_humble(void)
{
	setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
}

static inline void sys_pause(void)
{
	__builtin_ia32_pause();
}

static inline void sys_name_thread(const char *name)
{
	pthread_setname_np(pthread_self(), name);
}

enum { PRIORITY_TRACEE = 1, PRIORITY_FAULT, PRIORITY_MONITOR, PRIORITY_SAMPLER };

/* Makes the calling thread, which nobody waits for, run after others that want to. */
static inline void sys_step_back(void)
{
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
}

enum { SYS_RESET_ON_FORK = 1 };

/* How the kernel schedules a thread: the first version of struct sched_attr, which not every libc has. */
struct sys_schedule {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime;
	uint64_t deadline;
	uint64_t period;
};

enum { SYS_SLICE_NS = 100000 };

/* Real-time priority for a thread (0: this one) that runs briefly and must run in time: on a busy CPU it would
 * wait milliseconds for its turn. Returns 0; or -1 without the right to it: then it asks for short turns (Linux 6.12),
 * which come sooner. What it starts inherits it. */
static inline int sys_prefer(pid_t tid, int priority)
{
	struct sched_param param = {priority};
	struct sys_schedule now;

	if (sched_setscheduler(tid, SCHED_FIFO, &param) == 0)
		return 0;
	if (syscall(SYS_sched_getattr, tid, &now, sizeof now, 0) == 0 && now.policy == SCHED_OTHER) {
		now.runtime = SYS_SLICE_NS;
		syscall(SYS_sched_setattr, tid, &now, 0);
	}
	return -1;
}

/* As sys_prefer, for a thread of somebody else's: sys_unhurry makes it what it was. What it starts meanwhile inherits
 * nothing: a program's thread in real time, busy and for ever, would be the end of the machine. A schedule that could
 * not be put back is left as it is. */
static inline void sys_hurry(pid_t tid, int priority, struct sys_schedule *was)
{
	struct sys_schedule now = {.size = sizeof now, .policy = SCHED_FIFO, .priority = (uint32_t)priority};

	if (syscall(SYS_sched_getattr, tid, was, sizeof *was, 0) != 0 || was->policy == SCHED_FIFO ||
	    was->policy == SCHED_RR || was->policy == 6 /* SCHED_DEADLINE */ || (was->nice < 0 && geteuid() != 0)) {
		was->size = 0;
		return;
	}
	now.flags = was->flags | SYS_RESET_ON_FORK;
	if (syscall(SYS_sched_setattr, tid, &now, 0) != 0)
		was->size = 0;
}

/* To take SYS_RESET_ON_FORK away again needs a capability, real time does not. */
static inline void sys_unhurry(pid_t tid, struct sys_schedule *was)
{
	if (was->size == 0)
		return;
	if (syscall(SYS_sched_setattr, tid, was, 0) != 0) {
		was->flags |= SYS_RESET_ON_FORK;
		syscall(SYS_sched_setattr, tid, was, 0);
	}
	was->size = 0;
}

/* Where an engine may be killed, for tests: at the n-th pass of the point that USERSWAP_CRASH names, as "name:n". */
#ifdef USERSWAP_CRASH_POINTS
static inline void sys_crash_point(const char *name)
{
	static int passes;
	const char *armed = getenv("USERSWAP_CRASH");
	size_t length = strlen(name);

	if (!armed || strncmp(armed, name, length) != 0 || armed[length] != ':')
		return;
	if (__atomic_add_fetch(&passes, 1, __ATOMIC_RELAXED) != atoi(armed + length + 1))
		return;
	for (;;)
		kill(getpid(), SIGKILL);
}
#else
static inline void sys_crash_point(const char *name)
{
	(void)name;
}
#endif

static inline void sys_signal_eventfd(int fd)
{
	uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof one);

	(void)n;
}

#endif
