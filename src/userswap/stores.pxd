# SPDX-License-Identifier: GPL-2.0-or-later
"""A store keeps blocks, in slots of one swap area, and nothing else.

Its functions may wait for the medium and are called without any lock. They return 0 or -errno. Which slot is
in use is not the store's business: the log (log.pyx) hands slots out.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from userswap.system cimport sys_reads

cdef struct Store:
    int (*write)(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil
    int (*read)(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil
    # Begins a read that sys_reads_finish ends; `reads` has room for one more.
    int (*read_later)(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                      uint8_t *into) noexcept nogil
    # What it kept there is not wanted any more: the medium may have the place back.
    int (*discard)(Store *store, uint32_t slot) noexcept nogil
    uint32_t slots              # size, in blocks
    int fd
    int priority                # higher ones are used first
    bint closing                # no slot is handed out: it is being emptied
    bint gone                   # emptied: its place in the table is free
    # Slots: handed out from a stack of those that came back, else in order, so that a file grows as needed.
    uint32_t slot_end
    uint32_t *returned
    uint32_t returned_count
    uint32_t discarded          # the lowest of these have been discarded
    bint never_discards         # the medium refused
    int64_t bytes_written
    int64_t writes
    int64_t bytes_read
    int64_t reads
    int64_t bytes_discarded

cdef int file_store_init(Store *store, int fd, uint64_t size) noexcept nogil
cdef void store_deinit(Store *store) noexcept nogil
