/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The least io_uring that can do fixed reads and writes one at a time. Raw system calls, so that a program
 * needs nothing to link with; RING_AVAILABLE says whether the headers know io_uring. */
#ifndef RING_H
#define RING_H

#include "check.h"

#if __has_include(<linux/io_uring.h>)
#define RING_AVAILABLE 1
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

struct ring {
	int fd;
	char *sq, *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params p;
};

/* 0, or -errno: the caller decides what a machine without io_uring means. */
static inline int ring_open(struct ring *r)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;

	memset(r, 0, sizeof(*r));
	r->fd = (int)syscall(__NR_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return -errno;
	r->sq = (char *)mmap(NULL, r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t), prot, flags, r->fd,
			     IORING_OFF_SQ_RING);
	r->cq = (char *)mmap(NULL, r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe), prot, flags,
			     r->fd, IORING_OFF_CQ_RING);
	r->sqes = (struct io_uring_sqe *)mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), prot, flags, r->fd,
					      IORING_OFF_SQES);
	REQUIRE(r->sq != MAP_FAILED && r->cq != MAP_FAILED && (void *)r->sqes != MAP_FAILED);
	return 0;
}

static inline int ring_register(struct ring *r, void *area, size_t bytes)
{
	struct iovec buffer = {area, bytes};

	return syscall(__NR_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &buffer, 1) ? -errno : 0;
}

static inline int ring_unregister(struct ring *r)
{
	return syscall(__NR_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0) ? -errno : 0;
}

/* One fixed read or write, waited for; the number of bytes, or -errno. */
static inline int ring_fixed(struct ring *r, uint8_t opcode, int fd, void *at, size_t bytes, uint64_t offset)
{
	uint32_t *tail = (uint32_t *)(r->sq + r->p.sq_off.tail), *head = (uint32_t *)(r->cq + r->p.cq_off.head);
	uint32_t slot = *tail & (r->p.sq_entries - 1), *array = (uint32_t *)(r->sq + r->p.sq_off.array);
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(r->cq + r->p.cq_off.cqes);
	uint32_t *done_tail = (uint32_t *)(r->cq + r->p.cq_off.tail);
	unsigned submit = 1;
	int result;

	memset(&r->sqes[slot], 0, sizeof(*r->sqes));
	r->sqes[slot].opcode = opcode;
	r->sqes[slot].fd = fd;
	r->sqes[slot].addr = (uint64_t)(uintptr_t)at;
	r->sqes[slot].len = (uint32_t)bytes;
	r->sqes[slot].off = offset;
	array[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	/* The wait ends early for a signal, after the request has been taken: then wait for the rest. */
	while (__atomic_load_n(done_tail, __ATOMIC_ACQUIRE) == *head) {
		long taken = syscall(__NR_io_uring_enter, r->fd, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);

		REQUIRE(taken >= 0 || errno == EINTR);
		if (taken > 0)
			submit = 0;
	}
	result = cqes[*head & (r->p.cq_entries - 1)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

#else
#define RING_AVAILABLE 0
#endif
#endif
