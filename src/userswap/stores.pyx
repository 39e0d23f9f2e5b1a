# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of stores: files and block devices by O_DIRECT; and what a class of Python keeps, in a process of its own.

Whole aligned blocks are written, any aligned part is read.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from userswap.cipher cimport cipher_unwrap
from userswap.faulty cimport faulty_wrap
from userswap.system cimport (
    EAGAIN,
    ECANCELED,
    EINVAL,
    EIO,
    ENOMEM,
    add_i64,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_ask,
    sys_discard,
    sys_map_shared,
    sys_pread_all,
    sys_pwrite_all,
    sys_reads,
    sys_reads_add,
    sys_release,
    sys_reserve,
    sys_shut,
)
from userswap.types cimport BLOCK_BYTES

cdef enum:
    MAX_ERRNO = 4095


# ---- counts

cdef void _count_write(Store *store) noexcept nogil:
    add_i64(&store.writes, 1)
    add_i64(&store.bytes_written, BLOCK_BYTES)


cdef void _count_read(Store *store, uint64_t length) noexcept nogil:
    add_i64(&store.reads, 1)
    add_i64(&store.bytes_read, <int64_t>length)


# ---- files and block devices

cdef int _file_write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef int result = <int>sys_pwrite_all(store.fd, data, BLOCK_BYTES, <uint64_t>slot * BLOCK_BYTES)
    if result == 0:
        _count_write(store)
    return result


cdef int _file_read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef int result = <int>sys_pread_all(store.fd, into, length, <uint64_t>slot * BLOCK_BYTES + at)
    if result == 0:
        _count_read(store, length)
    return result


cdef int _file_read_later(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                          uint8_t *into) noexcept nogil:
    sys_reads_add(reads, store.fd, into, length, <uint64_t>slot * BLOCK_BYTES + at)
    _count_read(store, length)
    return 0


cdef int _file_discard(Store *store, uint32_t slot) noexcept nogil:
    cdef int result = sys_discard(store.fd, <uint64_t>slot * BLOCK_BYTES, BLOCK_BYTES)
    if result == 0:
        add_i64(&store.bytes_discarded, BLOCK_BYTES)
    return result


# ---- classes of Python

cdef int _ask(Store *store, uint32_t what, uint32_t slot, uint64_t at, uint64_t length) noexcept nogil:
    """Waits for the answer. Link.lock is held. Returns 0, -ECANCELED when the run is ending, or another -errno."""
    cdef Link *link = store.link
    cdef Question question
    cdef int32_t answer = 0
    question.what = what
    question.slot = slot
    question.at = <uint32_t>at
    question.length = <uint32_t>length
    if not link.broken and sys_ask(store.fd, &question, sizeof(question), &answer, sizeof(answer)) != 0:
        link.broken = True      # for good: an answer that came late would be taken for another one's
    if link.ending:
        return -ECANCELED
    if link.broken or answer > 0 or answer < -MAX_ERRNO or answer == -EAGAIN or answer == -ECANCELED:
        return -EIO
    return answer


cdef int _link_write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef int result
    pthread_mutex_lock(&store.link.lock)
    if not store.link.broken:
        memcpy(store.link.block, data, BLOCK_BYTES)
    result = _ask(store, ASK_WRITE, slot, 0, BLOCK_BYTES)
    pthread_mutex_unlock(&store.link.lock)
    if result == 0:
        _count_write(store)
    return result


cdef int _link_read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef int result
    pthread_mutex_lock(&store.link.lock)
    result = _ask(store, ASK_READ, slot, at, length)
    if result == 0:
        memcpy(into, store.link.block, length)
    pthread_mutex_unlock(&store.link.lock)
    if result == 0:
        _count_read(store, length)
    return result


cdef int _link_read_later(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                          uint8_t *into) noexcept nogil:
    """At once: what is read later is what the kernel reads."""
    return _link_read(store, slot, at, length, into)


cdef int _link_discard(Store *store, uint32_t slot) noexcept nogil:
    cdef int result
    pthread_mutex_lock(&store.link.lock)
    result = _ask(store, ASK_DISCARD, slot, 0, BLOCK_BYTES)
    pthread_mutex_unlock(&store.link.lock)
    if result == 0:
        add_i64(&store.bytes_discarded, BLOCK_BYTES)
    return result


cdef Link *_link_make(int shared) noexcept nogil:
    """NULL without memory."""
    cdef Link *link = <Link *>calloc(1, sizeof(Link))
    if link == NULL:
        return NULL
    link.block = <uint8_t *>sys_map_shared(shared, BLOCK_BYTES)
    if link.block == NULL:
        free(link)
        return NULL
    pthread_mutex_init(&link.lock, NULL)
    return link


cdef void store_end_waits(Store *store) noexcept nogil:
    """From now on nobody waits for a process that keeps blocks, however long that would take: -ECANCELED."""
    if store.link != NULL:
        store.link.ending = True
        sys_shut(store.fd)


# ---- making

cdef int _init(Store *store, int fd, uint64_t size) noexcept nogil:
    """All but the functions. Returns 0 or -errno."""
    memset(store, 0, sizeof(Store))
    if size < BLOCK_BYTES or size // BLOCK_BYTES >= <uint64_t>1 << 31:
        return -EINVAL
    store.fd = fd
    store.slots = <uint32_t>(size // BLOCK_BYTES)
    store.returned = <uint32_t *>sys_reserve(store.slots * sizeof(uint32_t))
    return -ENOMEM if store.returned == NULL else 0


cdef int file_store_init(Store *store, int fd, uint64_t size) noexcept nogil:
    """`fd` is open O_RDWR | O_DIRECT and stays its owner's; `size` in bytes. Returns 0 or -errno."""
    cdef int result = _init(store, fd, size)
    store.write = _file_write
    store.read = _file_read
    store.read_later = _file_read_later
    store.discard = _file_discard
    return result if result != 0 else faulty_wrap(store)


cdef int store_init(Store *store, int fd, int shared, uint64_t size) noexcept nogil:
    """As file_store_init; or, where `shared` is not negative, what a process keeps: `fd` is the socket to it, `shared`
    a file in memory of BLOCK_BYTES that cannot shrink. Both stay their owner's."""
    cdef int result
    if shared < 0:
        return file_store_init(store, fd, size)
    result = _init(store, fd, size)
    store.write = _link_write
    store.read = _link_read
    store.read_later = _link_read_later
    store.discard = _link_discard
    if result != 0:
        return result
    store.link = _link_make(shared)
    if store.link == NULL:
        store_deinit(store)
        return -ENOMEM
    return faulty_wrap(store)


cdef void store_deinit(Store *store) noexcept nogil:
    sys_release(store.returned, store.slots * sizeof(uint32_t))
    store.returned = NULL
    cipher_unwrap(store)
    free(<void *>store.faulty)
    store.faulty = NULL
    if store.link != NULL:
        sys_release(store.link.block, BLOCK_BYTES)
        pthread_mutex_destroy(&store.link.lock)
        free(store.link)
        store.link = NULL
