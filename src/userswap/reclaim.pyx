# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim: a clock whose hand goes over the page tables, with ages learnt from refaults.

The kernel tells a user-space pager nothing of accesses to present pages, so what is known of a page is how it
came: first touched, faulted on, read ahead, or faulted on so soon after its eviction that with a little more
protection it would have stayed. The last is the refault distance of Linux' mm/workingset.c: a page that
refaults after fewer evictions than there are resident pages would have been a hit, had it been kept in place
of what was. It gets a greater age, and the hand, which takes pages of age 0 and lowers the age of the others,
passes it several times. A page that came by readahead only has age 0. (The generalised clock: A. J. Smith,
"Sequentiality and prefetching in database systems", 1978.)

The hand goes in address order, so that it finds runs, which cost a seventh of single pages to move, and so
that what is evicted together lies together in a block, where readahead finds it.
"""

from userswap.types cimport AGE_FRESH, AGE_REFAULT, age_of, is_present


cdef uint32_t reclaim_run(uint32_t *values, uint32_t count, uint32_t most, uint32_t *start) noexcept nogil:
    """The first run of pages to evict among `count` values: its length, at most `most`, and in *start its
    start; 0 when there is none. Ages of pages passed over are lowered. The hand is to go on after the run."""
    cdef uint32_t at = 0
    cdef uint32_t run = 0
    while at < count:
        if is_present(values[at]):
            if age_of(values[at]) == 0:
                break
            values[at] -= <uint32_t>1 << 28
        at += 1
    start[0] = at
    while at + run < count and run < most and is_present(values[at + run]) and age_of(values[at + run]) == 0:
        run += 1
    return run


cdef uint32_t reclaim_stamp_shift(uint64_t pages) noexcept nogil:
    """The unit of the eviction clock, so that its 12 bits span eight times the memory."""
    cdef uint32_t shift = 0
    while (pages * 8) >> shift > STAMP_LAST + 1:
        shift += 1
    return shift


cdef uint32_t reclaim_distance(uint32_t now, uint32_t stamp) noexcept nogil:
    """Evictions since the one that was stamped so."""
    return (now - stamp) & STAMP_LAST


cdef uint32_t reclaim_age(uint32_t now, uint32_t stamp, uint32_t resident) noexcept nogil:
    """The age of a page faulted on, from the eviction clock now and at its eviction (12 bits each, in the
    engine's unit of pages) and the number of resident pages in the same unit."""
    return AGE_REFAULT if reclaim_distance(now, stamp) < resident else AGE_FRESH


cdef bint reclaim_is_hot(uint64_t lived, uint64_t stored) noexcept nogil:
    """Whether a page is likely to be swapped for a short time only, as its last copy lived for so many evictions while
    so many pages are stored. A half of these: where nine of ten overwrites go to a tenth of the pages, a copy of one of
    them lives for a ninth of as many evictions on average, one of the others for nine times as many; where all are
    alike, which are taken for hot is chance, and no harm."""
    return lived * 2 < stored
