/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the engine and the resident helper say to each other.
 *
 * The mailbox is one shared memory file, mapped by both. The engine fills `request`, `mode`, `count` and
 * the items, adds one to `posted` and wakes it; the helper carries the items out in order, stores each
 * result, sets `done` to what `posted` was and wakes that. One request is under way at a time: the engine
 * owns the mailbox while posted == done, the helper owns it otherwise.
 *
 * The mailbox lies in the address space of the program, which can write to it: what the engine reads here
 * decides nothing that could harm the engine itself. */
#ifndef USERSWAP_HELPER_H
#define USERSWAP_HELPER_H

#include <stdint.h>

enum {
	USERSWAP_MAILBOX_MAGIC = 0x75737731, /* "usw1": a new engine knows by it that it can take over */
	USERSWAP_MAILBOX_ITEMS = 128,
	USERSWAP_MAILBOX_SIZE = 8192,

	/* The helper's file descriptors have fixed numbers, so that a new engine finds them. */
	USERSWAP_HELPER_UFFD = 3,
	USERSWAP_HELPER_MAILBOX = 4,
};

enum userswap_request {
	USERSWAP_NOTHING,	 /* only answer */
	USERSWAP_MOVE,		 /* UFFDIO_MOVE(dst, src, len) with the mailbox's mode */
	USERSWAP_DROP,		 /* forget [src, src + len) of the staging area, without an event */
	USERSWAP_POPULATE_WRITE, /* madvise(src, len, MADV_POPULATE_WRITE) */
	USERSWAP_MADVISE,	 /* madvise(src, len, dst) */
	USERSWAP_EXIT,		 /* answer and exit */
};

/* result: bytes moved (MOVE) or 0, or -errno where nothing was done, -ECANCELED where an earlier item failed.
 * error: 0, or the errno that ended the item. A MOVE that stopped midway has result > 0 and error EAGAIN
 * whatever the cause was (the kernel tells no more): asking again for the rest tells. */
struct userswap_item {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	int64_t result;
	int32_t error;
	uint32_t unused;
};

struct userswap_mailbox {
	uint32_t magic;
	uint32_t posted; /* futex; written by the engine */
	uint32_t done;	 /* futex; written by the helper */
	uint32_t request;
	uint32_t count;
	int32_t uffd; /* the helper's own number of the userfaultfd */
	uint32_t pid; /* in the helper's own namespace: so its faults are signed */
	uint32_t unused;
	uint64_t mode;
	uint64_t region; /* all that is ours in the address space, guard pages included */
	uint64_t region_length;
	uint64_t staging;
	uint64_t staging_length;
	struct userswap_item items[USERSWAP_MAILBOX_ITEMS];
};

_Static_assert(sizeof(struct userswap_mailbox) <= USERSWAP_MAILBOX_SIZE, "the mailbox is two pages");

/* The code to copy into the target, and where it is entered (a byte offset). */
const void *userswap_helper_code(void);
uint64_t userswap_helper_code_length(void);
uint64_t userswap_helper_entry(void);

#endif
