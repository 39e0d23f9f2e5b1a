# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of pages, as sorted ranges that neither overlap nor touch."""

from libc.stdint cimport uint32_t, uint64_t

cdef struct Range:          # pages [start, end)
    uint64_t start
    uint64_t end

cdef struct Ranges:         # all zero: the empty set
    Range *items
    uint32_t count
    uint32_t room

cdef void ranges_free(Ranges *ranges) noexcept nogil
cdef uint64_t ranges_end(Ranges *ranges, uint64_t page) noexcept nogil
cdef bint ranges_hit(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_add(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_remove(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil
cdef int ranges_copy(Ranges *to, Ranges *source) noexcept nogil
