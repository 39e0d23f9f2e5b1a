# SPDX-License-Identifier: GPL-2.0-or-later
"""Adding swap areas to a running engine, and emptying them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from userswap.log cimport Log
from userswap.pack cimport Pack

# How far a swapoff has come: read by others at any time.
cdef struct Progress:
    int64_t bytes_total
    int64_t bytes_moved
    int64_t blocks_moved
    int64_t entries_visited  # of page tables: none
    uint32_t memory_blocks  # that may be moved into memory: the caller has the room for them
    uint32_t kept_blocks    # ... that were
    bint cancel             # set by who wants it to stop

cdef int swapon_area(Log *log, int fd, int shared, uint64_t size, int priority, bint frees) noexcept nogil
cdef uint32_t swapoff_lacks(Log *log, int area) noexcept nogil
cdef int swapoff_area(Log *log, Pack *pack, int area, Progress *progress) noexcept nogil
