# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of a fill."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from userswap.mm cimport Engine, Worker

cdef enum:
    SEGMENTS = 64           # pieces that one fill is put together from

# A part of a fill: pages that lie together.
cdef struct Segment:
    uint32_t first          # in the window
    uint32_t count
    uint32_t state          # FILLED or STORED
    uint32_t block
    uint32_t index
    uint64_t word           # FILLED: the repeated word
    uint8_t *data           # STORED: the block in memory, or NULL
    bint direct             # its pages are copied from where they are
    bint packed             # STORED: its pages have different lengths
    bint keep               # their copies, while they stay clean
    bint hot                # STORED: they were evicted a short while ago
    uint8_t *read           # what is read of it from an area, or NULL
    const uint8_t *origin   # packed, read from an area: where its block would begin

cdef struct Fill:
    uint64_t start          # page
    uint64_t address        # in it, as in a row of a matrix
    int64_t step            # bytes from there to the same place in the next page
    uint32_t count
    uint32_t faulted        # the page that the fault is for, in the window
    bint keep               # copies, where nothing else speaks against it
    bint plenty             # of slots are free
    uint32_t values[512]    # offsets
    uint8_t keeps[512]      # ... of which a copy is kept
    uint8_t hot[512]        # ... of which one is given up that has lived for a short time
    uint32_t segments
    Segment segment[64]
    uint32_t area_reads
    uint32_t age            # of the page faulted on
    uint32_t pages_since    # evictions since its own

cdef bint load_add_scratch(Engine *engine) noexcept nogil
cdef void load_remove_scratch(Engine *engine) noexcept nogil
cdef void load_begin(Worker *worker) noexcept nogil
cdef void load_end(Worker *worker) noexcept nogil
cdef int load_pages(Worker *worker, Fill *fill) noexcept nogil
