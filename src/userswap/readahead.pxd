# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead: what to bring in with a fault. Pure functions of the faults that they are told of."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    STREAMS = 16
    WINDOW_MAX = 512        # pages: 2 MiB

cdef struct Stream:
    uint64_t next           # the fault that would continue it upwards
    uint64_t below          # ... downwards
    uint64_t last_used
    uint32_t window         # pages wanted at the last fault
    uint32_t brought        # ... and brought in
    int32_t direction       # 1, -1, or 0 while unknown

cdef struct Streams:
    Stream streams[16]
    uint64_t clock
    uint32_t most           # pages in a window, at most WINDOW_MAX

cdef struct Window:
    uint64_t start          # pages
    uint32_t count
    uint32_t confirmed      # pages of the window before, which this fault shows to have been used
    uint64_t left_start     # that window: what the stream leaves behind,
    uint32_t left_count     # ... 0: none
    int stream

cdef uint32_t readahead_most(uint64_t limit_pages) noexcept nogil
cdef void readahead_init(Streams *streams, uint32_t most) noexcept nogil
cdef void readahead_window(Streams *streams, uint64_t page, Window *window) noexcept nogil
cdef void readahead_done(Streams *streams, Window *window) noexcept nogil
