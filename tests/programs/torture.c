// SPDX-License-Identifier: GPL-2.0-or-later
//
// The torture test: several processes of several threads do, all at once and at random, whatever a program
// can do to its private anonymous memory, and check every page that they touch against a model.
//
//     torture SECONDS MIB THREADS PROCESSES SEED
//
// MIB is for all processes together. The operations of a thread follow from the seed; how many it gets done,
// and what the others do meanwhile, does not. Ends with one JSON line and status 0, or at the first wrong
// byte with a report and SIGABRT. A thread that stays in one operation for STALL seconds is an error too.
//
// Locks, in this order: `world` (read by each operation, written to fork while nobody writes), then `holes`
// (read while an address range of ours is unmapped, written by whoever lets the kernel choose an address,
// which could else be in such a hole), then the futexes of the board.
#include "model.h"
#include "ring.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum {
	CHUNK = 64,      // pages of a thread's share in the common mapping, before its neighbour's begins
	RANGE = 16,      // pages that one operation touches at most: what fits into a pipe
	COLUMN = 64,     // ... but one that goes down a column
	STEP_MAX = 32,   // pages from one row to the next
	RING_PAGES = 16, // pages that io_uring holds
	MAX_WORKERS = 256,
	STALL = 120,
	HISTORY = 12,
	NAMES = 64,
};

#define OPERATIONS(X)                                                                                        \
	X(verify, 20) X(column, 6) X(write, 20) X(poke, 10) X(dontneed, 6) X(free, 4) X(unmap, 5) X(move, 4)              \
	X(dontunmap, 3) X(resize, 2) X(protect, 4) X(advise, 4) X(lock, 1) X(futex, 2) X(vm_readv, 3)        \
	X(board, 20) X(file, 4) X(direct, 4) X(vector, 3) X(pipe, 4) X(vmsplice, 2) X(socket, 4) X(ring, 4) \
	X(fork, 1) X(fork_world, 0) X(vfork, 1) X(spawn, 1)

enum operation {
#define X(name, weight) OP_##name,
	OPERATIONS(X)
#undef X
	    OPERATION_COUNT,
};

static const char *const operation_names[] = {
#define X(name, weight) #name,
    OPERATIONS(X)
#undef X
};

struct worker {
	unsigned process, index;
	uint64_t random;
	struct area *areas; // chunks of the common mapping; the last is a mapping of its own, `capacity` large
	size_t area_count, capacity;
	char *scratch; // CHUNK pages of reserved addresses to move to
	int file, direct, pipe[2], sockets[2];
	size_t pipe_pages;
	struct area held; // what io_uring holds
	bool ring_ready;
#if RING_AVAILABLE
	struct ring ring;
#endif
	char name[NAMES];
};

// A page that all threads of a process share. Its lock is a futex, and lies in evictable memory itself.
struct shared_page {
	uint32_t lock; // 0 free, 1 taken, 2 taken and waited for
	struct page model;
};

// What the workers tell the first process, in memory shared between processes.
struct progress {
	uint64_t counts[OPERATION_COUNT], refused;
	uint64_t since; // milliseconds: start of the operation under way; 0 when the worker has ended
	uint32_t operation;
};

static unsigned seconds, threads, processes;
static uint64_t seed, deadline;
static struct progress *progress;
static struct worker workers[MAX_WORKERS]; // of this process
static struct area board;
static struct shared_page *board_pages;
static pthread_rwlock_t world, holes;

__thread const char *whoami = "main";
__thread uint8_t operation_now;
static __thread bool alone; // in a forked child: the only thread, and nobody to lock against
static __thread struct {
	uint16_t operation, count;
	uint32_t first;
	const char *base;
} past[HISTORY];
static __thread unsigned past_count;

const char *operation_name(unsigned operation)
{
	return operation_names[operation];
}

const char *history(void)
{
	static __thread char text[HISTORY * 64];
	size_t used = 0;

	text[0] = 0;
	for (unsigned i = past_count > HISTORY ? past_count - HISTORY : 0; i < past_count && used < sizeof(text) - 64; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s(%p+%u) ",
					 operation_names[past[i % HISTORY].operation],
					 (const void *)(past[i % HISTORY].base + past[i % HISTORY].first * PAGE),
					 past[i % HISTORY].count);
	return text;
}

static uint64_t milliseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t next(struct worker *w)
{
	w->random += 0x9e3779b97f4a7c15u;
	return mix(w->random);
}

static size_t below(struct worker *w, size_t n)
{
	return (size_t)(next(w) % n);
}

static void share(pthread_rwlock_t *lock)
{
	if (!alone)
		REQUIRE(!pthread_rwlock_rdlock(lock));
}

static void own(pthread_rwlock_t *lock)
{
	if (!alone)
		REQUIRE(!pthread_rwlock_wrlock(lock));
}

static void let_go(pthread_rwlock_t *lock)
{
	if (!alone)
		REQUIRE(!pthread_rwlock_unlock(lock));
}

// ---- operations on a range of pages that the thread owns

struct range {
	struct area *area;
	size_t first, count;
	char *at;
};

static struct range some_range(struct worker *w, size_t limit)
{
	struct area *a = &w->areas[below(w, 8) ? below(w, w->area_count) : w->area_count - 1];
	size_t count = 1 + below(w, limit < a->pages ? limit : a->pages);
	size_t first = below(w, a->pages - count + 1);

	return (struct range){a, first, count, page_at(a, first)};
}

static void op_verify(struct worker *w, struct range r)
{
	(void)w;
	range_verify(r.area, r.first, r.count);
}

/* Pages at equal distances from each other, upwards or downwards, read or written. */
static void op_column(struct worker *w, struct range r)
{
	size_t step = 2 + below(w, STEP_MAX - 1);
	bool writes = below(w, 2), down = below(w, 2);
	size_t rows = down ? r.first / step : (r.area->pages - 1 - r.first) / step;

	rows = rows < COLUMN ? rows : COLUMN - 1;
	for (size_t row = 0, i = r.first; row <= rows; row++, i += down ? -step : step)
		if (writes)
			page_write(page_at(r.area, i), &r.area->model[i]);
		else
			page_verify(page_at(r.area, i), &r.area->model[i]);
}

static void op_write(struct worker *w, struct range r)
{
	(void)w;
	range_write(r.area, r.first, r.count);
}

static void op_poke(struct worker *w, struct range r)
{
	for (size_t i = r.first; i < r.first + r.count; i++)
		if (r.area->model[i].state == WRITTEN)
			page_poke(page_at(r.area, i), &r.area->model[i], below(w, WORDS));
}

static void op_dontneed(struct worker *w, struct range r)
{
	(void)w;
	REQUIRE(!madvise(r.at, r.count * PAGE, MADV_DONTNEED));
	range_is_now(r.area, r.first, r.count, ZERO);
}

static void op_free(struct worker *w, struct range r)
{
	REQUIRE(!madvise(r.at, r.count * PAGE, MADV_FREE));
	range_is_now(r.area, r.first, r.count, FREED);
	if (below(w, 2))
		range_verify(r.area, r.first, r.count);
}

static struct area *own_mapping(struct worker *w)
{
	return &w->areas[w->area_count - 1];
}

// For operations after which the pages may be several mappings to the kernel: the thread's own mapping stays
// one, since only one can be resized.
static struct range some_chunk_range(struct worker *w)
{
	struct area *a = &w->areas[below(w, w->area_count - 1)];
	size_t count = below(w, 2) ? 1 : 1 + below(w, RANGE), first = below(w, a->pages - count + 1);

	return (struct range){a, first, count, page_at(a, first)};
}

static void op_unmap(struct worker *w, struct range r)
{
	size_t bytes, left;

	r = some_chunk_range(w);
	bytes = r.count * PAGE;
	left = below(w, 4) ? r.count / 2 * PAGE : 0;
	share(&holes);
	REQUIRE(!munmap(r.at, bytes));
	map_at(r.at + left, bytes - left);
	if (left)
		map_at(r.at, left);
	let_go(&holes);
	range_is_now(r.area, r.first, r.count, ZERO);
	if (below(w, 2))
		range_verify(r.area, r.first, r.count);
}

// The kernel refuses to move several mappings at once, perhaps halfway through. Where one of ours ends is
// not ours to know: it depends on what could be merged, and on what an engine has registered.
static bool moved(struct worker *w, char *from, char *to, size_t bytes, int flags)
{
	if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to)
		return true;
	REQUIRE(errno == EFAULT || errno == EINVAL);
	progress[w->process * threads + w->index].refused++;
	return false;
}

static void reserve(char *at, size_t bytes)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	REQUIRE(mmap(at, bytes, PROT_NONE, flags, -1, 0) == at);
}

static bool moved_there(struct worker *w, struct range r, struct area there, int flags)
{
	const struct page nothing = {.state = ZERO};

	if (!moved(w, r.at, there.base, r.count * PAGE, flags))
		return false;
	if (!flags)
		map_at(r.at, r.count * PAGE);
	for (size_t i = 0; i < r.count && below(w, 4); i++)
		page_verify(r.at + i * PAGE, &nothing);
	if (below(w, 2))
		fill(r.at, r.count * PAGE, w->random);
	range_verify(&there, 0, r.count / 2);
	range_write(&there, 0, r.count / 3);
	return true;
}

// Move away, check there and here, write both, move back over what was written here.
static void move_and_back(struct worker *w, struct range r, int flags)
{
	struct area there = {w->scratch, r.count, r.area->model + r.first};

	share(&holes);
	if (!moved_there(w, r, there, flags) || !moved(w, w->scratch, r.at, r.count * PAGE, 0)) {
		map_at(r.at, r.count * PAGE);
		range_is_now(r.area, r.first, r.count, ZERO);
	}
	reserve(w->scratch, r.count * PAGE);
	let_go(&holes);
	range_verify(r.area, r.first, r.count);
}

static void op_move(struct worker *w, struct range r)
{
	r = some_chunk_range(w);
	move_and_back(w, r, 0);
}

static void op_dontunmap(struct worker *w, struct range r)
{
	r = some_chunk_range(w);
	move_and_back(w, r, MREMAP_DONTUNMAP);
}

// A new mapping in place of the thread's own, where the kernel would not resize it.
static char *replace(struct area *a, size_t pages)
{
	REQUIRE(errno == EFAULT);
	REQUIRE(!munmap(a->base, a->pages * PAGE));
	range_is_now(a, 0, a->pages, ZERO);
	return map(pages * PAGE);
}

// The thread's own mapping grows and shrinks, in place or to another address.
static void op_resize(struct worker *w, struct range r)
{
	struct area *a = own_mapping(w);
	size_t pages = w->capacity / 4 + below(w, w->capacity * 3 / 4);
	char *base;

	(void)r;
	own(&holes);
	base = mremap(a->base, a->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
	if (base == MAP_FAILED) {
		progress[w->process * threads + w->index].refused++;
		base = replace(a, pages);
	}
	let_go(&holes);
	for (size_t i = a->pages; i < pages; i++) {
		a->model[i].state = ZERO;
		a->model[i].poke = 0;
	}
	a->base = base;
	a->pages = pages;
	range_verify(a, pages - RANGE, RANGE);
}

static void op_protect(struct worker *w, struct range r)
{
	size_t bytes = r.count * PAGE;

	if (below(w, 2)) {
		REQUIRE(!mprotect(r.at, bytes, PROT_READ));
		range_verify(r.area, r.first, r.count);
		REQUIRE(read(w->file, r.at, 0) == 0);
		REQUIRE(syscall(SYS_getcwd, r.at, (long)bytes) == -1 && errno == EFAULT);
	} else {
		REQUIRE(!mprotect(r.at, bytes, PROT_NONE));
		REQUIRE(syscall(SYS_write, w->pipe[1], r.at, (long)1) == -1 && errno == EFAULT);
	}
	REQUIRE(!mprotect(r.at, bytes, PROT_READ | PROT_WRITE));
	range_verify(r.area, r.first, r.count);
}

// Advice that may change where pages are, and never what they hold. Some kernels know less of it.
// MADV_PAGEOUT is not among it: under Linux 6.18 alone, without swap or userswap, it was seen to drop, once in
// some ten thousand calls, a page that had been freed by MADV_FREE and written again, with forks going on. Why
// is not known; what the kernel loses by itself cannot be held against an engine.
static void op_advise(struct worker *w, struct range r)
{
	static const int advice[] = {MADV_COLD,   MADV_WILLNEED,      MADV_RANDOM,        MADV_NORMAL,
				     MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE};
	static const int whole[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE};

	if (below(w, 8))
		madvise(r.at, r.count * PAGE, advice[below(w, sizeof(advice) / sizeof(advice[0]))]);
	else
		madvise(r.area->base, r.area->pages * PAGE, whole[below(w, 2)]);
	range_verify(r.area, r.first, r.count);
}

static void op_lock(struct worker *w, struct range r)
{
	(void)w;
	if (mlock(r.at, r.count * PAGE)) {
		REQUIRE(errno == ENOMEM || errno == EPERM || errno == EAGAIN);
		return;
	}
	range_write(r.area, r.first, r.count / 2);
	range_verify(r.area, r.first, r.count);
	REQUIRE(!munlock(r.at, r.count * PAGE));
}

static long futex(uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

// The kernel compares the word itself: it must find what the model says.
static void op_futex(struct worker *w, struct range r)
{
	struct timespec soon = {0, 1};
	size_t i = below(w, WORDS);
	const struct page *p = &r.area->model[r.first];
	uint32_t *word = (uint32_t *)(r.at + i * 8), value = (uint32_t)(p->state == ZERO ? 0 : model_word(p, i));

	if (p->state == FREED)
		return;
	REQUIRE(futex(word, FUTEX_WAIT, value + 1, &soon) == -1 && errno == EAGAIN);
	REQUIRE(futex(word, FUTEX_WAKE, 1, NULL) == 0);
	REQUIRE(futex(word, FUTEX_WAIT, value, &soon) == -1 && (errno == ETIMEDOUT || errno == EINTR));
}

// ---- operations that copy pages through the kernel

static void copied(struct range from, struct range to)
{
	memmove(to.area->model + to.first, from.area->model + from.first, from.count * sizeof(struct page));
	for (size_t i = to.first; i < to.first + to.count; i++)
		to.area->model[i].by = operation_now;
	range_verify(to.area, to.first, to.count);
}

// A second range of as many pages that does not overlap with the first; false if there was none.
static bool some_target(struct worker *w, struct range from, struct range *to)
{
	*to = some_range(w, RANGE);
	to->count = from.count;
	if (to->first + to->count > to->area->pages)
		return false;
	if (to->at < from.at + from.count * PAGE && from.at < to->at + to->count * PAGE)
		return false;
	range_settle(from.area, from.first, from.count);
	return true;
}

static void op_vm_readv(struct worker *w, struct range r)
{
	struct range to;
	struct iovec local, remote = {r.at, r.count * PAGE};

	if (!some_target(w, r, &to))
		return;
	local = (struct iovec){to.at, r.count * PAGE};
	REQUIRE(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)(r.count * PAGE));
	copied(r, to);
}

static void through_file(struct worker *w, struct range r, int fd)
{
	struct range to;
	off_t offset = (off_t)(below(w, 256) * PAGE);

	if (!some_target(w, r, &to))
		return;
	REQUIRE(pwrite(fd, r.at, r.count * PAGE, offset) == (ssize_t)(r.count * PAGE));
	REQUIRE(pread(fd, to.at, r.count * PAGE, offset) == (ssize_t)(r.count * PAGE));
	copied(r, to);
}

static void op_file(struct worker *w, struct range r)
{
	through_file(w, r, w->file);
}

static void op_direct(struct worker *w, struct range r)
{
	through_file(w, r, w->direct);
}

static void op_vector(struct worker *w, struct range r)
{
	struct iovec out[RANGE], in[RANGE];
	struct range to;
	int n = (int)r.count;

	if (!some_target(w, r, &to))
		return;
	// Backwards on both sides.
	for (int i = 0; i < n; i++) {
		out[i] = (struct iovec){r.at + (n - 1 - i) * (ssize_t)PAGE, PAGE};
		in[i] = (struct iovec){to.at + (n - 1 - i) * (ssize_t)PAGE, PAGE};
	}
	REQUIRE(pwritev(w->file, out, n, 0) == (ssize_t)(r.count * PAGE));
	REQUIRE(preadv(w->file, in, n, 0) == (ssize_t)(r.count * PAGE));
	copied(r, to);
}

static void read_whole(int fd, char *at, size_t bytes)
{
	while (bytes) {
		ssize_t got = read(fd, at, bytes);

		REQUIRE(got > 0);
		at += got;
		bytes -= (size_t)got;
	}
}

static void op_pipe(struct worker *w, struct range r)
{
	struct range to;

	if (r.count > w->pipe_pages || !some_target(w, r, &to))
		return;
	REQUIRE(write(w->pipe[1], r.at, r.count * PAGE) == (ssize_t)(r.count * PAGE));
	read_whole(w->pipe[0], to.at, r.count * PAGE);
	copied(r, to);
}

// The pipe holds the pages themselves, not copies of them.
static void op_vmsplice(struct worker *w, struct range r)
{
	struct iovec vector = {r.at, r.count * PAGE};
	struct range to;

	if (r.count > w->pipe_pages || !some_target(w, r, &to))
		return;
	REQUIRE(vmsplice(w->pipe[1], &vector, 1, 0) == (ssize_t)(r.count * PAGE));
	range_verify(r.area, r.first, r.count);
	read_whole(w->pipe[0], to.at, r.count * PAGE);
	copied(r, to);
}

static void op_socket(struct worker *w, struct range r)
{
	struct range to;

	r.count = r.count > 8 ? 8 : r.count; // what a socket takes without a reader
	if (!some_target(w, r, &to))
		return;
	REQUIRE(send(w->sockets[1], r.at, r.count * PAGE, 0) == (ssize_t)(r.count * PAGE));
	REQUIRE(recv(w->sockets[0], to.at, r.count * PAGE, MSG_WAITALL) == (ssize_t)(r.count * PAGE));
	copied(r, to);
}

static void op_ring(struct worker *w, struct range r)
{
#if RING_AVAILABLE
	struct page before[RING_PAGES];
	const size_t bytes = RING_PAGES * PAGE;
	char *at = w->held.base;

	(void)r;
	if (!w->ring_ready)
		return;
	range_verify(&w->held, 0, RING_PAGES);
	range_write(&w->held, 0, RING_PAGES);
	memcpy(before, w->held.model, sizeof(before));
	REQUIRE(ring_fixed(&w->ring, IORING_OP_WRITE_FIXED, w->direct, at, bytes, 0) == (int)bytes);
	range_write(&w->held, 0, RING_PAGES);
	REQUIRE(ring_fixed(&w->ring, IORING_OP_READ_FIXED, w->direct, at, bytes, 0) == (int)bytes);
	memcpy(w->held.model, before, sizeof(before));
	range_verify(&w->held, 0, RING_PAGES);
	if (!below(w, 8)) {
		REQUIRE(!ring_unregister(&w->ring));
		range_verify(&w->held, 0, RING_PAGES);
		REQUIRE(!ring_register(&w->ring, at, bytes));
	}
#else
	(void)w;
	(void)r;
#endif
}

// ---- the board: pages that all threads share

static void lock_page(struct shared_page *s)
{
	uint32_t seen = 0;

	if (__atomic_compare_exchange_n(&s->lock, &seen, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(&s->lock, 2, __ATOMIC_ACQUIRE))
		futex(&s->lock, FUTEX_WAIT, 2, NULL);
}

static void unlock_page(struct shared_page *s)
{
	if (__atomic_exchange_n(&s->lock, 0, __ATOMIC_RELEASE) == 2)
		futex(&s->lock, FUTEX_WAKE, 1, NULL);
}

static void board_step(struct worker *w, char *at, struct page *p)
{
	off_t end = 512 * PAGE;

	page_verify(at, p);
	switch (below(w, 8)) {
	case 0:
		REQUIRE(!madvise(at, PAGE, MADV_DONTNEED));
		p->state = ZERO;
		break;
	case 1:
		// Through the kernel, and the same bytes back.
		REQUIRE(pwrite(w->file, at, PAGE, end) == (ssize_t)PAGE);
		REQUIRE(pread(w->file, at, PAGE, end) == (ssize_t)PAGE);
		page_verify(at, p);
		break;
	case 2:
	case 3:
		if (p->state == WRITTEN)
			page_poke(at, p, below(w, WORDS));
		break;
	case 4:
		break;
	default:
		page_write(at, p);
	}
}

static void op_board(struct worker *w, struct range r)
{
	// The threads of a process meet at a few places, and those wander over the whole board.
	size_t first = (size_t)(milliseconds() / 64 * RANGE % board.pages);

	for (size_t n = 0; n < r.count; n++) {
		size_t i = below(w, 2) ? (first + below(w, RANGE)) % board.pages : below(w, board.pages);

		lock_page(&board_pages[i]);
		board_step(w, page_at(&board, i), &board_pages[i].model);
		unlock_page(&board_pages[i]);
	}
}

// ---- operations that make processes

static void verify_everything(struct worker *w)
{
	for (size_t i = 0; i < w->area_count; i++)
		range_verify(&w->areas[i], 0, w->areas[i].pages);
	if (w->ring_ready)
		range_verify(&w->held, 0, RING_PAGES);
}

static void verify_process(void)
{
	for (unsigned i = 0; i < threads; i++)
		verify_everything(&workers[i]);
	for (size_t i = 0; i < board.pages; i++)
		page_verify(page_at(&board, i), &board_pages[i].model);
}

static void run_operation(struct worker *w, enum operation operation);

// What a child does: files, pipes and rings it shares with its parent, so it leaves them alone.
static void child_main(struct worker *w, int depth, bool whole)
{
	static const enum operation safe[] = {OP_verify, OP_write, OP_poke,      OP_dontneed, OP_free,   OP_unmap,
					      OP_move,   OP_resize, OP_dontunmap, OP_vm_readv, OP_advise, OP_futex};
	pid_t grandchild;

	alone = true;
	snprintf(w->name, sizeof(w->name), "process %u thread %u child depth %d", w->process, w->index, depth);
	if (whole)
		verify_process();
	for (int i = 0; i < 8; i++)
		run_operation(w, OP_verify);
	for (int i = 0; i < 24; i++)
		run_operation(w, safe[below(w, sizeof(safe) / sizeof(safe[0]))]);
	if (depth < 2 && below(w, 2)) {
		grandchild = fork();
		if (!grandchild) {
			child_main(w, depth + 1, false);
			_exit(0);
		}
		for (int i = 0; i < 8; i++)
			run_operation(w, OP_write);
		wait_for(grandchild);
	}
	if (!below(w, 16))
		verify_everything(w);
}

static void op_fork(struct worker *w, struct range r)
{
	pid_t child = fork();

	if (!child) {
		child_main(w, 1, false);
		_exit(0);
	}
	range_write(r.area, r.first, r.count);
	for (int i = 0; i < 4; i++)
		op_write(w, some_range(w, RANGE));
	let_go(&world);
	wait_for(child);
	share(&world);
}

// Nobody else is in an operation: the child can check all that the process has.
static void op_fork_world(struct worker *w, struct range r)
{
	pid_t child;

	(void)r;
	let_go(&world);
	own(&world);
	child = fork();
	if (!child) {
		child_main(w, 1, true);
		_exit(0);
	}
	let_go(&world);
	share(&world);
	wait_for(child);
}

static void op_vfork(struct worker *w, struct range r)
{
	pid_t child;

	(void)w;
	child = vfork();
	if (!child) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	range_verify(r.area, r.first, r.count);
	wait_for(child);
}

static void op_spawn(struct worker *w, struct range r)
{
	char *arguments[] = {(char *)"true", NULL}, *environment[] = {NULL};
	pid_t child;
	int error;

	(void)w;
	own(&holes); // it maps a stack
	error = posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environment);
	let_go(&holes);
	REQUIRE(!error);
	range_verify(r.area, r.first, r.count);
	wait_for(child);
}

// ---- a worker's life

static void (*const operations[])(struct worker *, struct range) = {
#define X(name, weight) op_##name,
    OPERATIONS(X)
#undef X
};

static enum operation choose(struct worker *w)
{
	static const uint8_t weights[] = {
#define X(name, weight) weight,
	    OPERATIONS(X)
#undef X
	};
	size_t total = 0, drawn;

	// Costly ones by the thousand, so that they do not crowd out the rest.
	if (!below(w, 1000))
		return OP_fork_world;
	for (size_t i = 0; i < OPERATION_COUNT; i++)
		total += weights[i];
	drawn = below(w, total);
	for (size_t i = 0;; i++) {
		if (drawn < weights[i]) {
			if ((i == OP_fork || i == OP_vfork || i == OP_spawn) && below(w, 4))
				return OP_verify;
			return (enum operation)i;
		}
		drawn -= weights[i];
	}
}

static void run_operation(struct worker *w, enum operation operation)
{
	struct range r = some_range(w, RANGE);
	unsigned slot = past_count++ % HISTORY;

	past[slot].operation = (uint16_t)operation;
	past[slot].base = r.area->base;
	past[slot].first = (uint32_t)r.first;
	past[slot].count = (uint16_t)r.count;
	operation_now = (uint8_t)operation;
	operations[operation](w, r);
}

static void *work(void *argument)
{
	struct worker *w = argument;
	struct progress *p = &progress[w->process * threads + w->index];

	whoami = w->name;
	for (uint64_t done = 0; milliseconds() < deadline; done++) {
		// Each once, then at random: a short run on a slow machine has done everything too.
		enum operation operation = done < OPERATION_COUNT ? (enum operation)done : choose(w);

		p->operation = operation;
		p->since = milliseconds();
		share(&world);
		run_operation(w, operation);
		let_go(&world);
		p->counts[operation]++;
	}
	p->since = milliseconds();
	p->operation = OP_verify;
	share(&world);
	verify_everything(w);
	let_go(&world);
	p->since = 0;
	return NULL;
}

static struct area new_area(char *base, size_t pages, struct page *model, uint64_t first_id)
{
	for (size_t i = 0; i < pages; i++)
		model[i] = (struct page){.id = first_id + i};
	return (struct area){base, pages, model};
}

static int temporary_file(int flags)
{
	const char *folder = getenv("TMPDIR");
	char name[4096];
	int fd;

	snprintf(name, sizeof(name), "%s/torture-XXXXXX", folder ? folder : "/var/tmp");
	fd = mkostemp(name, flags | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "torture: %s: %s\n", name, strerror(errno));
		exit(2);
	}
	unlink(name);
	return fd;
}

static void open_ring(struct worker *w, struct page *model, uint64_t first_id)
{
	w->held = new_area(map(RING_PAGES * PAGE), RING_PAGES, model, first_id);
#if RING_AVAILABLE
	range_write(&w->held, 0, RING_PAGES);
	w->ring_ready = !ring_open(&w->ring) && !ring_register(&w->ring, w->held.base, RING_PAGES * PAGE);
#endif
}

static void open_files(struct worker *w)
{
	w->file = temporary_file(0);
	w->direct = temporary_file(O_DIRECT);
	REQUIRE(!ftruncate(w->file, 1024 * PAGE) && !ftruncate(w->direct, 1024 * PAGE));
	REQUIRE(!pipe2(w->pipe, O_CLOEXEC));
	REQUIRE(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, w->sockets));
	w->pipe_pages = (size_t)fcntl(w->pipe[1], F_GETPIPE_SZ) / PAGE;
}

// `common` holds the chunks of all threads in turn; what a thread owns lies between its neighbours'.
static void make_worker(struct worker *w, unsigned process, unsigned index, char *common, size_t chunks)
{
	size_t pages = chunks * CHUNK, large = pages / 3 + 4 * RANGE;
	struct page *model = map((pages + large + RING_PAGES) * sizeof(*model));
	uint64_t id = ((uint64_t)process << 48) | ((uint64_t)index << 40);

	w->process = process;
	w->index = index;
	w->random = mix(seed ^ id);
	w->capacity = large;
	w->area_count = chunks + 1;
	w->areas = map(w->area_count * sizeof(*w->areas));
	for (size_t c = 0; c < chunks; c++)
		w->areas[c] = new_area(common + (c * threads + index) * CHUNK * PAGE, CHUNK, model + c * CHUNK, id + c * CHUNK);
	w->areas[chunks] = new_area(map(large * PAGE), large, model + pages, id + pages);
	w->scratch = mmap(NULL, CHUNK * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(w->scratch != MAP_FAILED);
	open_files(w);
	open_ring(w, model + pages + large, id + pages + large);
	snprintf(w->name, sizeof(w->name), "process %u thread %u", process, index);
}

static void make_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attributes;

	REQUIRE(!pthread_rwlockattr_init(&attributes));
	// Who waits to write must not starve behind readers.
	REQUIRE(!pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
	REQUIRE(!pthread_rwlock_init(lock, &attributes));
}

static void make_board(unsigned process, size_t pages)
{
	board = (struct area){map(pages * PAGE), pages, NULL};
	board_pages = map(pages * sizeof(*board_pages));
	for (size_t i = 0; i < pages; i++)
		board_pages[i].model.id = ((uint64_t)process << 48) + ((uint64_t)255 << 40) + i;
}

static _Noreturn void process_main(unsigned process, size_t pages, struct area *heirloom)
{
	size_t chunks = pages * 5 / 8 / CHUNK / threads + 1;
	char *common = map(chunks * threads * CHUNK * PAGE);
	pthread_t ids[MAX_WORKERS];

	whoami = "process";
	make_lock(&world);
	make_lock(&holes);
	make_board(process, pages / 8 + RANGE);
	for (unsigned i = 0; i < threads; i++)
		make_worker(&workers[i], process, i, common, chunks);
	// What was inherited is shared with the other processes, page by page, until somebody writes.
	range_verify(heirloom, 0, heirloom->pages);
	range_write(heirloom, process * heirloom->pages / processes, heirloom->pages / processes);
	for (unsigned i = 0; i < threads; i++)
		REQUIRE(!pthread_create(&ids[i], NULL, work, &workers[i]));
	for (unsigned i = 0; i < threads; i++)
		REQUIRE(!pthread_join(ids[i], NULL));
	verify_process();
	range_verify(heirloom, 0, heirloom->pages);
	exit(0);
}

// ---- the first process: starts the others, watches them, sums up

// What is mapped about an address.
static void show_mappings(uintptr_t address)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	uintptr_t start, end;

	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &start, &end) == 2 && start < address + CHUNK * PAGE &&
		    end > address - CHUNK * PAGE)
			fprintf(stderr, "torture: mapped: %s", line);
}

static void on_crash(int number, siginfo_t *info, void *context)
{
	(void)context;
	show_mappings((uintptr_t)info->si_addr);
	fprintf(stderr, "torture: signal %d at address %p (%s)\ntorture: last operations: %s\n", number, info->si_addr,
		whoami, history());
	signal(number, SIG_DFL);
}

static void catch_crashes(void)
{
	struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO};
	struct rlimit none = {0, 0};

	setrlimit(RLIMIT_CORE, &none);
	REQUIRE(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL));
}

static bool stalled(void)
{
	uint64_t now = milliseconds();

	for (unsigned i = 0; i < processes * threads; i++)
		if (progress[i].since && now > progress[i].since + STALL * 1000) {
			fprintf(stderr, "torture: STALLED: process %u thread %u is in %s for %u s\n", i / threads, i % threads,
				operation_names[progress[i].operation], STALL);
			return true;
		}
	return false;
}

static void check_one(struct worker *w, const struct area *a)
{
	range_verify(a, below(w, a->pages), 1);
}

static bool watch(pid_t *children, struct area *heirloom)
{
	struct worker w = {.random = seed};
	unsigned left = processes;
	bool good = true;

	while (left && good) {
		int status;
		pid_t child = waitpid(-1, &status, WNOHANG);

		if (!child) {
			poll(NULL, 0, 50);
			check_one(&w, heirloom);
			good = !stalled();
			continue;
		}
		REQUIRE(child > 0);
		left--;
		good = WIFEXITED(status) && !WEXITSTATUS(status);
		for (unsigned i = 0; i < processes; i++)
			if (children[i] == child)
				children[i] = 0;
		if (!good)
			fprintf(stderr, "torture: a process ended with status %#x\n", status);
	}
	return good;
}

static void sum_up(void)
{
	uint64_t counts[OPERATION_COUNT] = {0}, refused = 0;

	for (unsigned i = 0; i < processes * threads; i++) {
		refused += progress[i].refused;
		for (size_t op = 0; op < OPERATION_COUNT; op++)
			counts[op] += progress[i].counts[op];
	}
	printf("{");
	for (size_t op = 0; op < OPERATION_COUNT; op++)
		printf("\"%s\": %" PRIu64 ", ", operation_names[op], counts[op]);
	printf("\"refused_moves\": %" PRIu64 "}\n", refused);
}

int main(int argc, char **argv)
{
	pid_t children[MAX_WORKERS] = {0};
	struct area heirloom;
	size_t pages;
	bool good;

	if (argc != 6) {
		fprintf(stderr, "usage: torture SECONDS MIB THREADS PROCESSES SEED\n");
		return 2;
	}
	seconds = (unsigned)strtoul(argv[1], NULL, 10);
	pages = strtoul(argv[2], NULL, 10) * MIB / PAGE;
	threads = (unsigned)strtoul(argv[3], NULL, 10);
	processes = (unsigned)strtoul(argv[4], NULL, 10);
	seed = strtoull(argv[5], NULL, 10);
	if (!pages || !threads || !processes || threads * processes > MAX_WORKERS) {
		fprintf(stderr, "torture: every number must be at least 1, and at most %d threads in all\n", MAX_WORKERS);
		return 2;
	}
	catch_crashes();
	deadline = milliseconds() + seconds * 1000;
	progress = mmap(NULL, MAX_WORKERS * sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(progress != MAP_FAILED);
	heirloom = new_area(map(pages / 8 * PAGE), pages / 8, map(pages / 8 * sizeof(struct page)), (uint64_t)0xffff << 48);
	range_write(&heirloom, 0, heirloom.pages);
	for (unsigned i = 0; i < processes; i++) {
		children[i] = fork();
		REQUIRE(children[i] >= 0);
		if (!children[i])
			process_main(i, pages * 7 / 8 / processes, &heirloom);
	}
	good = watch(children, &heirloom);
	for (unsigned i = 0; i < processes; i++)
		if (children[i])
			kill(children[i], SIGKILL);
	if (!good)
		abort();
	range_verify(&heirloom, 0, heirloom.pages);
	sum_up();
	return done();
}
