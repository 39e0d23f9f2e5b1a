# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace of a run: what became of which pages, in a file that `userswap simulate` reads (simulate.py)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from userswap.system cimport pthread_mutex_t

cdef enum:
    TRACE_RECORDS = 4096
    TRACE_KIND_BITS = 4
    TRACE_PAGE_BITS = 36        # the rest of a word is the number of the address space

cdef enum:                      # what a record tells. Part of the file's format
    TRACE_LIMIT = 1             # the limit, in pages, in place of the page
    TRACE_FOUND = 2             # pages that were there when their mapping was first looked at
    TRACE_TOUCHED = 3           # fresh pages, by a fault
    TRACE_FILLED = 4            # swapped pages brought back, by a fault
    TRACE_WRITTEN = 5           # the first write to a page since, or to its neighbours
    TRACE_EVICTED = 6
    TRACE_GIVEN_BACK = 7
    TRACE_MOVED = 8             # by mremap, from here to where the next record says
    TRACE_MOVED_TO = 9
    TRACE_ENDED = 10            # the address space

# 16 bytes in the file, least significant byte first.
cdef struct TraceRecord:
    uint64_t what               # kind, page, address space, from the lowest bit up
    uint32_t ticks              # of 64 us of the monotonic clock
    uint16_t before             # of the pages, how many lie before the one that faulted
    uint16_t count              # pages; of what no fault tells, `before` holds the upper half of it

cdef struct Trace:
    pthread_mutex_t lock        # comes last, and nothing is taken under it
    int fd
    int error                   # an errno: nothing is recorded since
    uint32_t count
    uint64_t written_at         # us
    TraceRecord records[4096]   # TRACE_RECORDS

cdef Trace *trace_make(int fd) noexcept nogil
cdef void trace_fault(Trace *trace, uint32_t kind, uint32_t mm_id, uint64_t page, uint64_t start,
                      uint32_t count) noexcept nogil
cdef void trace_span(Trace *trace, uint32_t kind, uint32_t mm_id, uint64_t start, uint64_t count) noexcept nogil
cdef void trace_look(Trace *trace) noexcept nogil
cdef int trace_flush(Trace *trace) noexcept nogil
