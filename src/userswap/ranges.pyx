# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets of pages, as sorted ranges that neither overlap nor touch. The caller holds the lock of what they are of.

A change makes the array anew, and one store puts it in place of the old one: whoever finds the set after its engine
died finds it as it was before or after. Sets are small, and changed when mappings are."""

from libc.string cimport memcpy, memset

from userswap.arena cimport arena_give, arena_take
from userswap.system cimport store_pointer


cdef RangeBlock *_make(uint64_t count) noexcept nogil:
    """For so many ranges; NULL without memory."""
    cdef uint64_t bytes = sizeof(RangeBlock) + count * sizeof(Range)
    cdef RangeBlock *block = <RangeBlock *>arena_take(bytes)
    if block != NULL:
        block.count = count
        block.bytes = bytes
    return block


cdef void _put(Ranges *ranges, RangeBlock *block) noexcept nogil:
    """The block, or NULL for the empty set, in place of what was there."""
    cdef RangeBlock *old = ranges.block
    store_pointer(<void **>&ranges.block, block)
    ranges.items = <Range *>(block + 1) if block != NULL else NULL
    ranges.count = <uint32_t>block.count if block != NULL else 0
    if old != NULL:
        arena_give(old, old.bytes)


cdef void ranges_free(Ranges *ranges) noexcept nogil:
    _put(ranges, NULL)


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


cdef int _splice(Ranges *ranges, uint32_t first, uint32_t last, const Range *parts, uint32_t count) noexcept nogil:
    """Puts `count` ranges in place of those from `first` up to `last`. Returns 0 or -ENOMEM."""
    cdef uint64_t whole = ranges.count - (last - first) + count
    cdef RangeBlock *block = NULL
    cdef Range *items
    if whole > 0:
        block = _make(whole)
        if block == NULL:
            return -12
        items = <Range *>(block + 1)
        memcpy(items, ranges.items, first * sizeof(Range))
        memcpy(items + first, parts, count * sizeof(Range))
        memcpy(items + first + count, ranges.items + last, (ranges.count - last) * sizeof(Range))
    _put(ranges, block)
    return 0


cdef int ranges_add(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Returns 0 or -ENOMEM."""
    cdef uint32_t first = _find(ranges, start - 1 if start > 0 else 0)
    cdef uint32_t last = first
    cdef Range whole
    whole.start = start
    whole.end = end
    while last < ranges.count and ranges.items[last].start <= end:
        whole.start = min(whole.start, ranges.items[last].start)
        whole.end = max(whole.end, ranges.items[last].end)
        last += 1
    if last == first + 1 and whole.start == ranges.items[first].start and whole.end == ranges.items[first].end:
        return 0
    return _splice(ranges, first, last, &whole, 1)


cdef int ranges_remove(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Returns 0 or -ENOMEM."""
    cdef uint32_t first = _find(ranges, start)
    cdef uint32_t last = first
    cdef Range[2] left
    cdef uint32_t count = 0
    while last < ranges.count and ranges.items[last].start < end:
        last += 1
    if last == first:
        return 0
    if ranges.items[first].start < start:
        left[count].start = ranges.items[first].start
        left[count].end = start
        count += 1
    if ranges.items[last - 1].end > end:
        left[count].start = end
        left[count].end = ranges.items[last - 1].end
        count += 1
    return _splice(ranges, first, last, left, count)


cdef bint ranges_hit(Ranges *ranges, uint64_t start, uint64_t end) noexcept nogil:
    """Whether any page of [start, end) is in the set."""
    cdef uint32_t at = _find(ranges, start)
    return at < ranges.count and ranges.items[at].start < end


cdef int ranges_copy(Ranges *to, Ranges *source) noexcept nogil:
    """`to` is empty. Returns 0 or -ENOMEM."""
    memset(to, 0, sizeof(Ranges))
    if source.count == 0:
        return 0
    return _splice(to, 0, 0, source.items, source.count)


cdef void ranges_move(Ranges *to, Ranges *source) noexcept nogil:
    """In place of what `to` was. `source` is not to be used any more: the caller clears it."""
    _put(to, source.block)
