# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of files and block devices: O_DIRECT, whole aligned blocks written, any aligned part read."""

from libc.string cimport memset

from userswap.system cimport (
    EINVAL,
    ENOMEM,
    add_i64,
    sys_discard,
    sys_pread_all,
    sys_pwrite_all,
    sys_reads,
    sys_reads_add,
    sys_release,
    sys_reserve,
)
from userswap.types cimport BLOCK_BYTES


cdef int _file_write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef int result = <int>sys_pwrite_all(store.fd, data, BLOCK_BYTES, <uint64_t>slot * BLOCK_BYTES)
    if result == 0:
        add_i64(&store.writes, 1)
        add_i64(&store.bytes_written, BLOCK_BYTES)
    return result


cdef int _file_read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef int result = <int>sys_pread_all(store.fd, into, length, <uint64_t>slot * BLOCK_BYTES + at)
    if result == 0:
        add_i64(&store.reads, 1)
        add_i64(&store.bytes_read, <int64_t>length)
    return result


cdef int _file_read_later(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                          uint8_t *into) noexcept nogil:
    sys_reads_add(reads, store.fd, into, length, <uint64_t>slot * BLOCK_BYTES + at)
    add_i64(&store.reads, 1)
    add_i64(&store.bytes_read, <int64_t>length)
    return 0


cdef int _file_discard(Store *store, uint32_t slot) noexcept nogil:
    cdef int result = sys_discard(store.fd, <uint64_t>slot * BLOCK_BYTES, BLOCK_BYTES)
    if result == 0:
        add_i64(&store.bytes_discarded, BLOCK_BYTES)
    return result


cdef int file_store_init(Store *store, int fd, uint64_t size) noexcept nogil:
    """`fd` is open O_RDWR | O_DIRECT and stays its owner's; `size` in bytes. Returns 0 or -errno."""
    memset(store, 0, sizeof(Store))
    if size < BLOCK_BYTES or size // BLOCK_BYTES >= <uint64_t>1 << 31:
        return -EINVAL
    store.write = _file_write
    store.read = _file_read
    store.read_later = _file_read_later
    store.discard = _file_discard
    store.fd = fd
    store.slots = <uint32_t>(size // BLOCK_BYTES)
    store.returned = <uint32_t *>sys_reserve(store.slots * sizeof(uint32_t))
    return -ENOMEM if store.returned == NULL else 0


cdef void store_deinit(Store *store) noexcept nogil:
    sys_release(store.returned, store.slots * sizeof(uint32_t))
