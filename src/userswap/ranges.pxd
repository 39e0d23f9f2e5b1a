# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of pages, as sorted ranges that neither overlap nor touch."""

from libc.stdint cimport uint32_t, uint64_t

cdef struct Range:          # pages [start, end)
    uint64_t start
    uint64_t end

cdef struct RangeBlock:     # never changed: a change makes another one
    uint64_t count
    uint64_t bytes          # of the block, with the ranges that follow

cdef struct Ranges:         # all zero: the empty set
    RangeBlock *block       # the whole truth, in one word
    Range *items            # ... those of the block
    uint32_t count

cdef void ranges_free(Ranges *ranges) noexcept nogil
cdef uint64_t ranges_end(Ranges *ranges, uint64_t page) noexcept nogil
cdef bint ranges_hit(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_add(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_remove(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_copy(Ranges *to, Ranges *source) noexcept nogil
cdef void ranges_move(Ranges *to, Ranges *source) noexcept nogil
