/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The resident helper: what runs inside the program's address space.
 *
 * The bytes of the section `userswap_helper` are copied into another process as they are. So nothing in it
 * may need a relocation: no data, no literal pool, no call that leaves the section, no thread-local storage,
 * no stack protector, no jump table. It makes raw system calls and has one page of stack. All signals are
 * blocked for ever; the only way to end it is SIGKILL or USERSWAP_EXIT.
 *
 * If the engine dies the helper waits on, holding the userfaultfd open: that is what keeps the program's
 * evicted pages from turning into zeros. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2", "no-jump-tables", "no-stack-protector", "no-tree-loop-distribute-patterns",                 \
		     "no-reorder-blocks-and-partition")
#endif

#include "helper.h"

#include <asm/unistd.h>
#include <errno.h>
#include <linux/futex.h>
#include <linux/mman.h>
#include <stddef.h>

#include "uapi.h"

/* General registers only: vector code would bring constants in .rodata with it. */
#define HELPER __attribute__((section("userswap_helper"), target("general-regs-only")))
#define INSIDE HELPER static inline __attribute__((always_inline))

extern const char __start_userswap_helper[] __attribute__((visibility("hidden")));
extern const char __stop_userswap_helper[] __attribute__((visibility("hidden")));

INSIDE long call4(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

INSIDE void futex_wait(uint32_t *word, uint32_t value)
{
	call4(__NR_futex, (long)word, FUTEX_WAIT, value, 0);
}

INSIDE void futex_wake(uint32_t *word)
{
	call4(__NR_futex, (long)word, FUTEX_WAKE, 1, 0);
}

INSIDE long uffd_ioctl(const struct userswap_mailbox *box, unsigned long command, void *argument)
{
	return call4(__NR_ioctl, box->uffd, (long)command, (long)argument, 0);
}

INSIDE long move(const struct userswap_mailbox *box, struct userswap_item *item)
{
	struct uffdio_move arg;
	long error;

	arg.dst = item->dst;
	arg.src = item->src;
	arg.len = item->len;
	arg.mode = box->mode;
	arg.move = 0;
	error = uffd_ioctl(box, UFFDIO_MOVE, &arg);
	item->result = arg.move > 0 ? arg.move : error;
	return error;
}

/* The staging area is registered, as the target of a MOVE must be; but forgetting registered pages would
 * raise EVENT_REMOVE and stop the helper until the engine has read it. Hence unregistered in between. */
INSIDE long drop(const struct userswap_mailbox *box, struct userswap_item *item)
{
	struct uffdio_register again;
	long error, dropped;

	again.range.start = item->src;
	again.range.len = item->len;
	again.mode = UFFDIO_REGISTER_MODE_MISSING;
	again.ioctls = 0;
	error = uffd_ioctl(box, UFFDIO_UNREGISTER, &again.range);
	if (error)
		return item->result = error;
	dropped = call4(__NR_madvise, (long)item->src, (long)item->len, MADV_DONTNEED, 0);
	error = uffd_ioctl(box, UFFDIO_REGISTER, &again);
	return item->result = error ? error : dropped;
}

INSIDE long advise(struct userswap_item *item, long advice)
{
	item->result = call4(__NR_madvise, (long)item->src, (long)item->len, advice, 0);
	return item->result;
}

INSIDE long serve_item(const struct userswap_mailbox *box, uint32_t request, struct userswap_item *item)
{
	if (request == USERSWAP_MOVE)
		return move(box, item);
	if (request == USERSWAP_DROP)
		return drop(box, item);
	if (request == USERSWAP_POPULATE_WRITE)
		return advise(item, 23); /* MADV_POPULATE_WRITE, Linux 5.14 */
	if (request == USERSWAP_MADVISE)
		return advise(item, (long)item->dst);
	return item->result = 0;
}

/* Later items of a failed request are left undone, so that the engine can look at what is wrong first. */
INSIDE void serve(struct userswap_mailbox *box, uint32_t request)
{
	uint32_t count = box->count;
	long error = 0;

	if (count > USERSWAP_MAILBOX_ITEMS)
		count = USERSWAP_MAILBOX_ITEMS;
	for (uint32_t i = 0; i < count; i++) {
		struct userswap_item *item = &box->items[i];

		if (error) {
			item->result = -ECANCELED;
			item->error = ECANCELED;
			continue;
		}
		error = serve_item(box, request, item);
		item->error = (int32_t)-error;
	}
}

HELPER __attribute__((noreturn, used)) static void helper_main(struct userswap_mailbox *box)
{
	uint32_t served = __atomic_load_n(&box->done, __ATOMIC_ACQUIRE);

	for (;;) {
		uint32_t posted = __atomic_load_n(&box->posted, __ATOMIC_ACQUIRE);
		uint32_t request;

		if (posted == served) {
			futex_wait(&box->posted, posted);
			continue;
		}
		request = box->request;
		serve(box, request);
		served = posted;
		__atomic_store_n(&box->done, served, __ATOMIC_RELEASE);
		futex_wake(&box->done);
		if (request == USERSWAP_EXIT)
			for (;;)
				call4(__NR_exit_group, 0, 0, 0, 0);
	}
}

const void *userswap_helper_code(void)
{
	return __start_userswap_helper;
}

uint64_t userswap_helper_code_length(void)
{
	return (uint64_t)(__stop_userswap_helper - __start_userswap_helper);
}

uint64_t userswap_helper_entry(void)
{
	return (uint64_t)((const char *)helper_main - __start_userswap_helper);
}
