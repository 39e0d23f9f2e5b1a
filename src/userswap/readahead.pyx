# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead in address order, and at equal distances.

A fault that continues a stream, upwards or downwards, makes its window grow from one page to 2 MiB; one that
continues none starts a stream of one page in place of the stream longest unused. So random access brings in
single pages, and a program may read up to 16 streams at once. Where a program's streams mostly end after a few pages,
as in the nodes of a tree, that is noticed, and windows stay small.

A fault that continues no stream may be as far from one before as that one was from another: a program reads down
the column of a matrix. What follows at the same distance, in bytes, is brought in with it, more each time. A distance
that has been met once is believed at once elsewhere: the next column. (As the reference prediction table of a
processor, which goes by the instruction that reads: Chen and Baer, "Effective hardware-based data prefetching for
high-performance processors", 1995. Here a fault goes with the nearest before it.)
"""

from libc.string cimport memset

from userswap.pagetable cimport PageTable, table_get
from userswap.types cimport PAGE_BYTES, PAGE_SHIFT, is_swapped

cdef enum:
    JUDGED = 64             # windows of a level after which the older half counts less
    KNOWN = 8               # ... before which nothing is known of it
    EXPLORED = 16           # of so many faults one may have a larger window all the same
    WORTH_FOUR = 16         # windows of about four pages of which one must be followed by another
    WORTH_SIXTEEN = 8       # ... of about sixteen


cdef int _continues(Stream *stream, uint64_t page) noexcept nogil:
    """1 or -1: the page continues the stream upwards or downwards; 0: it does not."""
    if stream.window == 0:
        return 0
    if stream.direction >= 0 and stream.next <= page <= stream.next + stream.beyond:
        return 1
    if stream.direction <= 0 and page <= stream.below <= page + stream.beyond:
        return -1
    return 0


cdef int _level(uint32_t window) noexcept nogil:
    """Of a small window."""
    cdef int level = 0
    while window > 1:
        window >>= 1
        level += 1
    return level


cdef void _judge(Streams *streams, const Stream *stream, bint went_on) noexcept nogil:
    """What came of the stream's last window. Where what followed was present, that the next fault is elsewhere says
    nothing."""
    cdef int level
    if stream.brought == 0 or stream.brought >= SMALL or (stream.cut and not went_on):
        return
    level = _level(stream.brought)
    streams.ended[level] += 1
    streams.went_on[level] += went_on
    if streams.ended[level] == JUDGED:
        streams.ended[level] //= 2
        streams.went_on[level] //= 2


cdef uint32_t _grown(Streams *streams, uint32_t window) noexcept nogil:
    """The next window. As large as the last one, where of those that are larger too few were followed by another to be
    worth what the others bring in in vain; but for some, by which it is seen whether that is still so. Beyond SMALL
    pages only what has gone on for long comes to be asked."""
    cdef uint32_t grown = min(window * (4 if window < 64 else 2), streams.most)
    cdef uint32_t worth = WORTH_FOUR if grown < 8 else WORTH_SIXTEEN
    cdef int level
    if grown >= SMALL:
        return grown
    level = _level(grown)
    if (streams.ended[level] >= KNOWN and worth * streams.went_on[level] < streams.ended[level]
            and streams.clock % EXPLORED != 0):
        return window
    return grown


cdef uint32_t readahead_most(uint64_t limit_pages) noexcept nogil:
    """Pages that one fault brings at most, where there is so much memory."""
    return <uint32_t>min(max(limit_pages >> 7, <uint64_t>32), <uint64_t>WINDOW_MAX)


cdef void readahead_init(Streams *streams, uint32_t most) noexcept nogil:
    memset(streams, 0, sizeof(Streams))
    streams.most = min(most, <uint32_t>WINDOW_MAX)


cdef void readahead_find_strides(Streams *streams) noexcept nogil:
    """Strides are looked for from now on."""
    streams.most_strided = min(streams.most // 2, <uint32_t>STRIDED_MAX)


cdef bint _continues_stride(Stride *stride, uint64_t address) noexcept nogil:
    """Whether it lies in a page that the stride comes to. Those in between may have been present."""
    cdef int64_t away = <int64_t>(address - stride.last)
    cdef int64_t turn = (2 * away + stride.step) // (2 * stride.step)     # the nearest, where it is one
    return 0 < turn <= <int64_t>stride.window and (
        window_page(stride.last, stride.step, <uint32_t>turn) == address >> PAGE_SHIFT)


cdef bint _is_known(Streams *streams, int64_t step) noexcept nogil:
    cdef int at
    for at in range(STRIDES):
        if streams.strides[at].window > 0 and streams.strides[at].step == step:
            return True
    return False


cdef Stride *_stride_of(Streams *streams, uint64_t address) noexcept nogil:
    """The stride that the address continues; NULL where there is none that is known, and the address is remembered."""
    cdef Stride *oldest = &streams.strides[0]
    cdef Stride *nearest = NULL
    cdef Stride *stride
    cdef int64_t step, pages, least = STEP_MAX + 1
    cdef int at
    for at in range(STRIDES):
        stride = &streams.strides[at]
        step = <int64_t>(address - stride.last)
        if stride.last_used < oldest.last_used:
            oldest = stride
        if stride.window > 0:
            if _continues_stride(stride, address):
                return stride
        elif stride.last_used > 0 and STEP_LEAST <= max(step, -step) < least:
            least = max(step, -step)
            nearest = stride
    if nearest == NULL:
        memset(oldest, 0, sizeof(Stride))
        oldest.last = address
        oldest.last_used = streams.clock
        return NULL
    step = <int64_t>(address - nearest.last)
    pages = <int64_t>((address >> PAGE_SHIFT) - (nearest.last >> PAGE_SHIFT))
    if step == nearest.step or pages == nearest.pages or _is_known(streams, step):
        nearest.window = 1
        if step != nearest.step and pages == nearest.pages:     # each time somewhere else in the page
            step = pages * PAGE_BYTES
        nearest.step = step
        return nearest
    nearest.step = step
    nearest.pages = pages
    nearest.last = address
    nearest.last_used = streams.clock
    return NULL


cdef bint _strided_window(Streams *streams, Window *window) noexcept nogil:
    """As readahead_window, where the address continues a stride."""
    cdef Stride *stride = _stride_of(streams, window.address) if streams.most_strided > 1 else NULL
    if stride == NULL:
        return False
    stride.window = min(4 * stride.window, streams.most_strided)
    stride.last_used = streams.clock
    window.start = window.address >> PAGE_SHIFT
    window.step = stride.step
    window.count = stride.window
    if stride.step < 0:
        window.count = <uint32_t>min(<uint64_t>window.count, window.address // <uint64_t>-stride.step + 1)
    window.confirmed = stride.brought - 1 if stride.brought > 0 else 0
    window.left_count = 0
    window.beyond = 0
    window.direction = 0
    window.stream = STREAMS + <int>(stride - streams.strides)
    return True


cdef void readahead_window(Streams *streams, uint64_t address, Window *window) noexcept nogil:
    """The pages to bring in for a fault at `address`, whose page is among them. The caller may take fewer (of a stride
    the first ones), says so by changing the window, and calls readahead_done."""
    cdef int at
    cdef int oldest = 0
    cdef int direction = 0
    cdef uint64_t page = address >> PAGE_SHIFT
    cdef Stream *stream
    streams.clock += 1
    for at in range(STREAMS):
        stream = &streams.streams[at]
        direction = _continues(stream, page)
        if direction != 0:
            break
        if stream.last_used < streams.streams[oldest].last_used:
            oldest = at
    window.address = address
    window.step = PAGE_BYTES
    if direction == 0 and _strided_window(streams, window):
        return
    if direction == 0:
        at = oldest
        stream = &streams.streams[at]
        _judge(streams, stream, False)
        stream.window = 1
        stream.brought = 0
        window.confirmed = 0
        window.left_count = 0
    else:
        window.confirmed = stream.brought - 1 if stream.brought > 0 else 0
        window.left_count = stream.brought
        window.left_start = stream.next - stream.brought if direction > 0 else stream.below + 1
        _judge(streams, stream, True)
        stream.window = _grown(streams, stream.window)
    stream.direction = direction
    stream.last_used = streams.clock
    window.direction = direction
    window.beyond = stream.window - 1
    window.stream = at
    window.count = stream.window
    window.start = page
    if direction < 0:
        window.count = <uint32_t>min(<uint64_t>window.count, page + 1)
        window.start = page + 1 - window.count


cdef void readahead_look_beyond(PageTable *table, Window *window) noexcept nogil:
    """Of swapped pages, once the window is planned: what is beyond it is present up to where it says, at most as far as
    it said. (A stream that took every fault near its edge for its own would follow a program down a column.)"""
    cdef uint32_t most = window.beyond
    cdef uint64_t next = window.start + window.count if window.direction > 0 else window.start - 1
    if window.step != PAGE_BYTES:
        return
    window.beyond = 0
    while window.beyond < most and not is_swapped(table_get(table, next)):
        window.beyond += 1
        next = <uint64_t>(<int64_t>next + window.direction)


cdef void readahead_done(Streams *streams, Window *window) noexcept nogil:
    """The window as it was carried out: the next fault of the stream is expected at its edge, or one step beyond."""
    cdef Stream *stream
    cdef Stride *stride
    if window.stream >= STREAMS:
        stride = &streams.strides[window.stream - STREAMS]
        stride.brought = window.count
        stride.last = window.address + <uint64_t>(<int64_t>(window.count - 1) * window.step)
        return
    stream = &streams.streams[window.stream]
    stream.brought = window.count
    stream.cut = window.count < stream.window
    stream.beyond = window.beyond
    stream.next = window.start + window.count
    stream.below = window.start - 1 if window.start > 0 else 0
