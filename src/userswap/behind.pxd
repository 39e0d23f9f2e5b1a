# SPDX-License-Identifier: GPL-2.0-or-later
"""What streams leave behind, and whether that should be evicted before other pages. Pure functions of what they are
told."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef enum:
    TRAIL_PIECES = 8
    SAMPLES = 4096
    SAMPLE_LISTS = 1024

cdef enum:                  # what chose a page for eviction
    BY_HAND = 0
    AS_BEHIND = 1

# The pages that streams of one address space have gone over last, oldest first.
cdef struct Trail:
    uint64_t start[8]       # TRAIL_PIECES
    uint32_t count[8]
    uint32_t first
    uint32_t end

cdef struct Sample:         # one page that was evicted
    uint64_t page
    uint64_t evicted_at     # in evictions
    uint64_t away           # how many there were until it came back; 0: it has not
    uint32_t mm_id          # 0: none
    uint32_t kind
    uint16_t next           # of its list, plus 1; 0: none

# How soon pages come back that were chosen in this way or that. One thread at a time uses it.
cdef struct Returns:
    Sample samples[4096]    # SAMPLES, in the order of their eviction, the oldest overwritten
    uint16_t lists[1024]    # SAMPLE_LISTS: the place of the first, plus 1; 0: none
    uint32_t end            # where the next one goes
    uint64_t judged_at      # in evictions
    uint32_t turn
    bint behind             # what streams leave behind goes first

cdef void trail_add(Trail *trail, uint64_t start, uint32_t count) noexcept nogil
cdef bint trail_any(Trail *trail) noexcept nogil
cdef bint trail_take(Trail *trail, uint32_t most, uint64_t *start, uint32_t *count) noexcept nogil

cdef bint returns_sampled(uint32_t mm_id, uint64_t page, uint64_t resident) noexcept nogil
cdef void returns_evicted(Returns *returns, uint32_t mm_id, uint64_t page, uint32_t kind, uint64_t now) noexcept nogil
cdef void returns_back(Returns *returns, uint32_t mm_id, uint64_t page, uint64_t now) noexcept nogil
cdef uint32_t returns_next_kind(Returns *returns, uint64_t now, uint64_t resident) noexcept nogil
