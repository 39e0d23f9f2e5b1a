# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's way into another process: making the resident helper, asking it, ending it."""
from libc.errno cimport ENOMEM, ENOSYS, EPERM
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.system cimport (
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP,
    UFFD_FEATURE_EXACT_ADDRESS,
    UFFD_FEATURE_MOVE,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_THREAD_ID,
    load_u32,
    sys_has_mapped,
    sys_same_memory,
)
from userswap.tracee cimport Tracee

cdef extern from "<sys/mman.h>" nogil:
    const int PROT_READ, PROT_WRITE, MAP_SHARED
    void *mmap(void *start, size_t length, int protection, int flags, int fd, long offset)
    void *MAP_FAILED
    int munmap(void *start, size_t length)

cdef extern from "helper.h" nogil:
    enum:
        USERSWAP_MAILBOX_MAGIC
        USERSWAP_MAILBOX_ITEMS
        USERSWAP_MAILBOX_SIZE
        USERSWAP_HELPER_UFFD
        USERSWAP_HELPER_MAILBOX
        USERSWAP_NOTHING
        USERSWAP_MOVE
        USERSWAP_DROP
        USERSWAP_POPULATE_WRITE
        USERSWAP_MADVISE
        USERSWAP_EXIT

    ctypedef struct userswap_item "struct userswap_item":
        uint64_t dst
        uint64_t src
        uint64_t len
        int64_t result      # bytes moved, 0, or -errno
        int32_t error       # 0, or what ended the item

    ctypedef struct userswap_mailbox "struct userswap_mailbox":
        uint32_t magic
        uint32_t posted
        uint32_t done
        uint32_t request
        uint32_t count
        int32_t uffd
        uint32_t pid            # as its faults are signed
        uint64_t mode
        uint64_t region
        uint64_t region_length
        uint64_t staging
        uint64_t staging_length
        userswap_item items[128]

cdef struct Helper:
    pid_t pid
    pid_t own_pid               # in its own namespace, as the program would know it
    int pidfd
    int uffd                    # the engine's copy; whoever called helper_inject closes it
    pid_t target
    int target_pidfd
    int cpu                     # the CPU that the helper is pinned to, -1: none yet
    int mailbox_fd
    userswap_mailbox *mailbox   # as this process has it mapped
    uint64_t own_start[4]       # ours in the target: never to be registered or evicted; unused ones are 0
    uint64_t own_end[4]
    uint64_t staging
    uint64_t staging_length
    uint64_t stopped_ns         # how long the target's thread was stopped (its other threads ran on)

# One thread of the target, the one that was stopped, is held until `made` returns. It gets the helper, and does what
# has to be done before the thread may go on.
cdef struct Hold:
    void (*made)(Hold *hold, Helper *helper) noexcept nogil

# What every one gets: how long its staging is, and the features of its userfaultfd. `told`: those of forks as well, for
# which the kernel wants CAP_SYS_PTRACE.
cdef enum:
    HELPER_STAGING = 4 << 20

cdef inline uint64_t helper_features(bint told) noexcept nogil:
    return (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE
            | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_MOVE | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS
            | (UFFD_FEATURE_EVENT_FORK if told else 0))

# Put a helper into `target` (a process, not a thread), open a userfaultfd in it and give it `uffd_features`.
# With `uffd` >= 0 that one is used instead, which the kernel made when a process with a helper forked; the
# engine gets one more copy of it. -EINVAL then also means that it is another process'. `hold` may be NULL.
# 0 or -errno; on failure nothing stays behind and `out` is as it was. Waits for at most some seconds.
#   -ESRCH    gone, or a zombie             -EPERM    another user's, Yama, no full userfaultfd
#   -EBUSY    traced by someone else        -ENOEXEC  runs 32-bit code
#   -EAGAIN   no thread could be stopped in time, or clone was refused (a process limit)
#   -EACCES   a sandbox or a rule against new code      -EINVAL   no such `uffd_features` here
# No other thread of the caller may wait for any child, or for the target, in the meantime: it would be told
# of our stops. Watch programs by pidfd, and reap them once they are dead.
cdef int helper_inject(pid_t target, int uffd, uint64_t uffd_features, uint64_t staging_length, Hold *hold,
                       Helper *out) noexcept nogil

# The same for the child of a fork that the caller has seized since before its first instruction, and that is at its
# first stop; a userfaultfd is opened in it. It stays stopped: held_release is owed, where this has not failed.
cdef int held_inject(Tracee *held, uint64_t uffd_features, uint64_t staging_length, Helper *out) noexcept nogil
cdef int held_release(Tracee *held) noexcept nogil

# A thread that was seized and interrupted, and is at an event stop, goes on with what it was at. 0 or -errno.
cdef int bystander_release(pid_t target, pid_t tid) noexcept nogil

# Each process but ours has one more filter of seccomp than we have, which is ours and lets a clone of ours pass.
cdef void inject_expect_filter() noexcept nogil

# What one process of ours has made another one of ours uses, which has the same table of files: the first unmaps the
# mailbox, the second maps it. 0 or -ENOMEM.
cdef inline void helper_hand_over(Helper *helper) noexcept nogil:
    munmap(helper.mailbox, USERSWAP_MAILBOX_SIZE)
    helper.mailbox = NULL

cdef inline int helper_take(Helper *helper) noexcept nogil:
    cdef void *mapped = mmap(NULL, USERSWAP_MAILBOX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, helper.mailbox_fd, 0)
    helper.mailbox = <userswap_mailbox *>mapped if mapped != MAP_FAILED else NULL
    return 0 if helper.mailbox != NULL else -ENOMEM

# Whether it is in the address space that the process has now: 1, 0 or -errno. Containers often forbid kcmp(2): then by
# what only that address space has mapped, as children of the program do not get it.
cdef inline int helper_is_in(const Helper *helper, pid_t pid) noexcept nogil:
    cdef int same = sys_same_memory(pid, helper.pid)
    if same != -EPERM and same != -ENOSYS:
        return same
    return sys_has_mapped(pid, helper.staging - USERSWAP_MAILBOX_SIZE, helper.mailbox_fd)

# Carry out the request in the mailbox. One caller at a time. 0 when the helper has answered (see the items
# for how it went), -ESRCH when it is dead, -ETIMEDOUT when it did not answer (it may still be at work: the
# mailbox is its own, and each further call gives -EBUSY until it is done).
cdef int helper_call(Helper *helper) noexcept nogil

# Whether it has nothing to do.
cdef inline bint helper_is_idle(Helper *helper) noexcept nogil:
    return load_u32(&helper.mailbox.done) == load_u32(&helper.mailbox.posted)

# Undo helper_inject: the helper unmaps all that is ours in the program, ends, and is no zombie of it either. What
# `helper` holds stays the caller's to let go of (helper_end). 0 or -errno:
#   -EAGAIN   it has ended, but no thread of the program could be stopped in time to reap it
# Rules for the caller as for helper_inject.
cdef int helper_remove(const Helper *helper) noexcept nogil

# Kill the helper, wait until it is dead, and let go of all that is in `helper` but its uffd.
cdef void helper_end(Helper *helper) noexcept nogil

# The same without waiting.
cdef void helper_dismiss(Helper *helper) noexcept nogil
