# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of pages, as sorted ranges that neither overlap nor touch. The caller holds the lock of what they are of."""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset


cdef void ranges_free(Ranges *ranges) noexcept nogil:
    free(ranges.items)
    memset(ranges, 0, sizeof(Ranges))


cdef uint32_t _find(Ranges *ranges, uint64_t page) noexcept nogil:
    """The first range that ends above the page."""
    cdef uint32_t low = 0
    cdef uint32_t high = ranges.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if ranges.items[middle].end <= page:
            low = middle + 1
        else:
            high = middle
    return low


cdef uint64_t ranges_end(Ranges *ranges, uint64_t page) noexcept nogil:
    """The end of the range that holds the page; page + 1 when none does."""
    cdef uint32_t at = _find(ranges, page)
    if at < ranges.count and ranges.items[at].start <= page:
        return ranges.items[at].end
    return page + 1


cdef int _splice(Ranges *ranges, uint32_t at, uint32_t remove, uint32_t insert) noexcept nogil:
    """Makes room for `insert` ranges in place of `remove` at `at`. Returns 0 or -ENOMEM."""
    cdef uint32_t count = ranges.count - remove + insert
    cdef Range *grown
    if count > ranges.room:
        grown = <Range *>realloc(ranges.items, 2 * count * sizeof(Range))
        if grown == NULL:
            return -12
        ranges.items = grown
        ranges.room = 2 * count
    memmove(&ranges.items[at + insert], &ranges.items[at + remove], (ranges.count - at - remove) * sizeof(Range))
    ranges.count = count
    return 0


cdef int ranges_add(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Returns 0 or -ENOMEM."""
    cdef uint32_t first = _find(ranges, start - 1 if start > 0 else 0)
    cdef uint32_t last = first
    while last < ranges.count and ranges.items[last].start <= end:
        start = min(start, ranges.items[last].start)
        end = max(end, ranges.items[last].end)
        last += 1
    if _splice(ranges, first, last - first, 1) != 0:
        return -12
    ranges.items[first].start = start
    ranges.items[first].end = end
    return 0


cdef int ranges_remove(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Returns 0 or -ENOMEM."""
    cdef uint32_t at = _find(ranges, start)
    cdef uint64_t tail
    while at < ranges.count and ranges.items[at].start < end:
        tail = ranges.items[at].end
        if ranges.items[at].start < start and tail > end:
            if _splice(ranges, at + 1, 0, 1) != 0:
                return -12
            ranges.items[at].end = start
            ranges.items[at + 1].start = end
            ranges.items[at + 1].end = tail
            return 0
        if ranges.items[at].start < start:
            ranges.items[at].end = start
            at += 1
        elif tail > end:
            ranges.items[at].start = end
            return 0
        else:
            _splice(ranges, at, 1, 0)
    return 0


cdef bint ranges_hit(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Whether any page of [start, end) is in the set."""
    cdef uint32_t at = _find(ranges, start)
    return at < ranges.count and ranges.items[at].start < end


cdef int ranges_copy(Ranges *to, Ranges *source) noexcept nogil:
    """`to` is empty. Returns 0 or -ENOMEM."""
    if source.count == 0:
        return 0
    if _splice(to, 0, 0, source.count) != 0:
        return -12
    memcpy(to.items, source.items, source.count * sizeof(Range))
    return 0
