# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead: what to bring in with a fault. Pure functions of the faults that they are told of."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from userswap.pagetable cimport PageTable
from userswap.types cimport PAGE_SHIFT

cdef enum:
    STREAMS = 16
    WINDOW_MAX = 512        # pages: 2 MiB
    STRIDES = 16
    STEP_LEAST = 8192       # bytes: a stream has what is closer
    STEP_MAX = 1 << 24
    STRIDED_MAX = 64        # pages in a window of a stride
    SMALL = 32              # pages: of smaller windows it is learnt whether they are worth it

cdef struct Stream:
    uint64_t next           # the fault that would continue it upwards
    uint64_t below          # ... downwards
    uint64_t last_used
    uint32_t window         # pages wanted at the last fault
    uint32_t brought        # ... and brought in
    uint32_t beyond         # pages beyond the edge at which a fault is at the edge, too
    int32_t direction       # 1, -1, or 0 while unknown
    bint cut                # less was brought in than was wanted: what followed was present

# Faults at equal distances: the rows of a column, the records of a field.
cdef struct Stride:
    uint64_t last           # the address of the last fault, or the last at which a page was brought in
    uint64_t last_used
    int64_t step            # bytes, 0 while unknown
    int64_t pages           # what the first step was
    uint32_t window         # pages wanted at the last fault; 0 while no two steps were alike
    uint32_t brought        # ... and brought in

cdef struct Streams:
    Stream streams[16]
    Stride strides[16]
    uint64_t clock
    uint32_t ended[5]       # of small windows of 1, 2 to 3, 4 to 7, ... pages, those of which it is known whether
    uint32_t went_on[5]     # ... the stream went on, of late; and that did
    uint32_t most           # pages in a window, at most WINDOW_MAX
    uint32_t most_strided   # ... of a stride, at most STRIDED_MAX; 0: none is looked for

cdef struct Window:
    uint64_t start          # pages; of a stride, the fault's
    uint64_t address        # of the fault
    int64_t step            # bytes from one of them to the next: PAGE_BYTES, or those of a stride, from the address on
    uint32_t count
    uint32_t beyond         # pages beyond its far edge that may have been present
    uint32_t confirmed      # pages of the window before, which this fault shows to have been used
    uint64_t left_start     # that window: what the stream leaves behind,
    uint32_t left_count     # ... 0: none
    int direction           # 1, -1, or 0 while unknown
    int stream              # STREAMS and more: a stride

cdef inline uint64_t window_page(uint64_t address, int64_t step, uint32_t at) noexcept nogil:
    """The page that lies so many steps from an address."""
    return (address + <uint64_t>(<int64_t>at * step)) >> PAGE_SHIFT

cdef uint32_t readahead_most(uint64_t limit_pages) noexcept nogil
cdef void readahead_init(Streams *streams, uint32_t most) noexcept nogil
cdef void readahead_find_strides(Streams *streams) noexcept nogil
cdef void readahead_window(Streams *streams, uint64_t address, Window *window) noexcept nogil
cdef void readahead_look_beyond(PageTable *table, Window *window) noexcept nogil
cdef void readahead_done(Streams *streams, Window *window) noexcept nogil
