# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim: which pages to evict. Pure functions of page values."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STREAMING = 128         # pages of a window that shows a stream
    STAMP_LAST = 0xFFF      # the greatest stamp of the eviction clock
    LEFT_LEAST = 64         # pages that a stream has left behind to be worth a note

cdef uint32_t reclaim_run(uint32_t *values, uint32_t count, uint32_t most, uint32_t *start) noexcept nogil
cdef uint32_t reclaim_stamp_shift(uint64_t pages) noexcept nogil
cdef uint32_t reclaim_distance(uint32_t now, uint32_t stamp) noexcept nogil
cdef bint reclaim_is_hot(uint64_t lived, uint64_t stored) noexcept nogil
cdef uint32_t reclaim_age(uint32_t now, uint32_t stamp, uint32_t resident) noexcept nogil
