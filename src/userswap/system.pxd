# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls of the data plane (system.h), and the atomics: each returns a value >= 0, or -errno."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport pid_t

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_create(pthread_t *, pthread_attr_t *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)

cdef extern from "system.h" nogil:
    enum:
        EAGAIN, EBUSY, ENOENT, EEXIST, ESRCH, ENOSPC, EIO, ENOMEM, EINVAL, EPERM, EFAULT, ECANCELED, EBADMSG
        ENOSYS, ETIMEDOUT

    enum:
        EPOLLIN
        EPOLLET
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC
        EFD_CLOEXEC
        EFD_NONBLOCK

    ctypedef union epoll_data:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    int eventfd(unsigned int, int)
    int sched_getcpu()

    enum:
        UFFD_EVENT_PAGEFAULT
        UFFD_EVENT_FORK
        UFFD_EVENT_REMAP
        UFFD_EVENT_REMOVE
        UFFD_EVENT_UNMAP
        UFFD_PAGEFAULT_FLAG_WRITE
        UFFD_PAGEFAULT_FLAG_WP
        UFFD_FEATURE_EVENT_FORK
        UFFD_FEATURE_EVENT_REMAP
        UFFD_FEATURE_EVENT_REMOVE
        UFFD_FEATURE_EVENT_UNMAP
        UFFD_FEATURE_PAGEFAULT_FLAG_WP
        UFFD_FEATURE_THREAD_ID
        UFFD_FEATURE_EXACT_ADDRESS
        UFFD_FEATURE_MOVE

    struct uffd_msg_pagefault:
        uint64_t flags
        uint64_t address
        uint32_t thread "feat.ptid"     # as it sees itself
    struct uffd_msg_fork:
        uint32_t ufd
    struct uffd_msg_remap:
        uint64_t from_ "from"
        uint64_t to
        uint64_t len
    struct uffd_msg_remove:
        uint64_t start
        uint64_t end
    struct uffd_msg_arg:
        uffd_msg_pagefault pagefault
        uffd_msg_fork fork
        uffd_msg_remap remap
        uffd_msg_remove remove
    struct uffd_msg:
        uint8_t event
        uffd_msg_arg arg

    enum:
        PAGE_IS_PFNZERO
        PAGE_IS_WRITTEN
    struct page_region:
        uint64_t start
        uint64_t end
        uint64_t categories
    struct procmap_query:
        uint64_t vma_start
        uint64_t vma_end
        uint64_t vma_flags
        uint64_t vma_page_size
        uint64_t inode
    enum:
        PROCMAP_QUERY_VMA_READABLE
        PROCMAP_QUERY_VMA_WRITABLE
        PROCMAP_QUERY_VMA_EXECUTABLE
        PROCMAP_QUERY_VMA_SHARED
        PROCMAP_QUERY_FILE_BACKED_VMA

    uint64_t sys_now_us()
    uint64_t sys_since_us(uint64_t then)
    void sys_sleep_us(uint64_t)
    void sys_futex_wait(uint32_t *word, uint32_t value, uint64_t us)
    void sys_futex_advance(uint32_t *word)
    void sys_shared_wait(uint32_t *word, uint32_t value, uint64_t us)
    void sys_shared_wake(uint32_t *word)
    const uint64_t FOR_EVER_US
    void *sys_reserve(size_t)
    void sys_populate_whole(void *, size_t)
    void sys_populate(void *at, size_t bytes)
    void *sys_reserve_pages(size_t)
    void sys_drop(void *, size_t)
    void sys_release(void *, size_t)
    long sys_pread_all(int, void *, size_t, uint64_t)
    enum:
        SYS_READS_MAX
    ctypedef struct sys_reads "struct sys_reads":
        uint32_t count
    void sys_reads_init(sys_reads *, const uint32_t *spinning)
    void sys_reads_deinit(sys_reads *)
    void sys_reads_add(sys_reads *, int, void *, uint64_t, uint64_t)
    void sys_reads_start(sys_reads *)
    long sys_reads_finish(sys_reads *)
    bint sys_cpu_to_spare(const sys_reads *)
    bint sys_lock_memory()
    int sys_random(void *into, size_t bytes)
    long sys_pwrite_all(int, const void *, size_t, uint64_t)
    int sys_discard(int, uint64_t, uint64_t)
    void *sys_map_shared(int, size_t)
    void *sys_map_anonymous_shared(size_t)
    int sys_memory_file(const char *, uint64_t bytes)
    int sys_resize(int, uint64_t bytes)
    uint64_t sys_file_size(int)
    uint64_t sys_file_pages(int)
    int sys_punch(int, uint64_t at, uint64_t bytes)
    int sys_map_at(int, uint64_t address, uint64_t offset, uint64_t bytes, int writable)
    int sys_ask(int, const void *, size_t, void *, size_t)
    void sys_shut(int)
    long sys_read_process(pid_t, void *, uint64_t, size_t)
    uint64_t sys_uffd_copy(int, uint64_t, const void *, uint64_t, bint protect, int *error)
    int sys_uffd_wake(int, uint64_t, uint64_t)
    int sys_uffd_unregister(int, uint64_t, uint64_t)
    int sys_uffd_register(int, uint64_t, uint64_t)
    int sys_uffd_protect(int, uint64_t, uint64_t)
    int sys_uffd_unprotect(int, uint64_t, uint64_t)
    void sys_uffd_wake_all(int)
    long sys_uffd_read(int, uffd_msg *, size_t)
    long sys_pagemap_scan(int, bint zero_only, uint64_t *, uint64_t, page_region *, size_t)
    uint64_t sys_pagemap_guard(int, uint64_t, uint64_t)
    int sys_next_mapping(int, uint64_t, procmap_query *, char *, uint32_t)
    int sys_same_memory(pid_t, pid_t)
    int sys_has_mapped(pid_t, uint64_t at, int file)
    int sys_page_absent(int, uint64_t)
    int sys_process_dead(int)
    int sys_uffd_alive(int)
    int sys_uffd_settled(int)
    bint sys_poll_in(int, uint64_t)
    long sys_read_small(int, char *, size_t)
    int sys_open_proc(pid_t, const char *)
    ctypedef struct DIR:
        pass
    DIR *sys_open_tasks(pid_t)
    pid_t sys_next_task(DIR *)
    int closedir(DIR *)
    const long SYS_madvise, SYS_process_madvise
    long sys_waiting_call(pid_t, pid_t tid)
    bint sys_has_only_forked(pid_t)
    uint64_t sys_start_time(pid_t)
    int64_t sys_available_pages()
    void sys_pin_to_cpu(int)
    void sys_humble()
    void sys_pause()
    void sys_name_thread(const char *)
    # Real-time priorities, higher first. A thread that is traced may spin in a fault of its own until it is served.
    const int PRIORITY_TRACEE, PRIORITY_FAULT, PRIORITY_MONITOR, PRIORITY_SAMPLER
    int sys_prefer(pid_t, int)
    void sys_step_back()
    uint64_t sys_robust_list(pid_t)
    ctypedef struct sys_schedule "struct sys_schedule":
        pass
    void sys_hurry(pid_t, int, sys_schedule *)
    void sys_unhurry(pid_t, sys_schedule *)
    void sys_signal_eventfd(int)
    void sys_crash_point(const char *)

cdef extern from * nogil:
    """
    #define load_u64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define store_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define load_i64(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define store_i64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define add_i64(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
    #define load_u32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define store_u32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define store_pointer(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define store_u8(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define store_flag(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    /* Two neighbours, the first of which is aligned for both. */
    #define store_pair(p, a, b) \
        __atomic_store_n((uint64_t *)(void *)(p), (uint32_t)(a) | (uint64_t)(uint32_t)(b) << 32, __ATOMIC_RELEASE)
    #define add_u32(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
    """
    uint64_t load_u64(uint64_t *)
    void store_u64(uint64_t *, uint64_t)
    int64_t load_i64(int64_t *)
    void store_i64(int64_t *, int64_t)
    int64_t add_i64(int64_t *, int64_t)
    uint32_t load_u32(uint32_t *)
    void store_u32(uint32_t *, uint32_t)
    void store_pointer(void **, void *)
    void store_u8(uint8_t *, uint8_t)
    void store_flag(bint *, bint)
    void store_pair(uint32_t *, uint32_t, uint32_t)
    uint32_t add_u32(uint32_t *, uint32_t)
