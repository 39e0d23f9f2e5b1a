# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead in address order, and at equal distances.

A fault that continues a stream, upwards or downwards, makes its window grow from one page to 2 MiB; one that
continues none starts a stream of one page in place of the stream longest unused. So random access brings in
single pages, and a program may read up to 16 streams at once.

A fault that continues no stream may be as far from one before as that one was from another: a program reads down
the column of a matrix. What follows at the same distance is brought in with it, more each time. A distance that has
been met once is believed at once elsewhere: the next column. (As the reference prediction table of a processor, which
goes by the instruction that reads: Chen and Baer, "Effective hardware-based data prefetching for high-performance
processors", 1995. Here a fault goes with the nearest before it.)
"""

from libc.string cimport memset

from userswap.pagetable cimport PageTable, table_get
from userswap.types cimport is_swapped


cdef int _continues(Stream *stream, uint64_t page) noexcept nogil:
    """1 or -1: the page continues the stream upwards or downwards; 0: it does not."""
    if stream.window == 0:
        return 0
    if stream.direction >= 0 and stream.next <= page <= stream.next + stream.beyond:
        return 1
    if stream.direction <= 0 and page <= stream.below <= page + stream.beyond:
        return -1
    return 0


cdef uint32_t _grown(Streams *streams, uint32_t window) noexcept nogil:
    return min(window * (4 if window < 64 else 2), streams.most)


cdef uint32_t readahead_most(uint64_t limit_pages) noexcept nogil:
    """Pages that one fault brings at most, where there is so much memory."""
    return <uint32_t>min(max(limit_pages >> 7, <uint64_t>32), <uint64_t>WINDOW_MAX)


cdef void readahead_init(Streams *streams, uint32_t most) noexcept nogil:
    memset(streams, 0, sizeof(Streams))
    streams.most = min(most, <uint32_t>WINDOW_MAX)


cdef void readahead_find_strides(Streams *streams) noexcept nogil:
    """Strides are looked for from now on."""
    streams.most_strided = min(streams.most // 2, <uint32_t>STRIDED_MAX)


cdef bint _continues_stride(Stride *stride, int64_t step) noexcept nogil:
    """Whether a fault so far from the last page does. The pages in between may have been present."""
    return step % stride.step == 0 and 0 < step // stride.step <= <int64_t>stride.window


cdef bint _is_known(Streams *streams, int64_t step) noexcept nogil:
    cdef int at
    for at in range(STRIDES):
        if streams.strides[at].window > 0 and streams.strides[at].step == step:
            return True
    return False


cdef Stride *_stride_of(Streams *streams, uint64_t page) noexcept nogil:
    """The stride that the page continues; NULL where there is none that is known, and the page is remembered."""
    cdef Stride *oldest = &streams.strides[0]
    cdef Stride *nearest = NULL
    cdef Stride *stride
    cdef int64_t step, least = STEP_MAX + 1
    cdef int at
    for at in range(STRIDES):
        stride = &streams.strides[at]
        step = <int64_t>(page - stride.last)
        if stride.last_used < oldest.last_used:
            oldest = stride
        if stride.window > 0:
            if _continues_stride(stride, step):
                return stride
        elif stride.last_used > 0 and 0 < max(step, -step) < least:
            least = max(step, -step)
            nearest = stride
    if nearest == NULL:
        memset(oldest, 0, sizeof(Stride))
        nearest = oldest
    step = <int64_t>(page - nearest.last)
    if least <= STEP_MAX and (step == nearest.step or _is_known(streams, step)):
        nearest.window = 1
        nearest.step = step
        return nearest
    nearest.step = step if least <= STEP_MAX else 0
    nearest.last = page
    nearest.last_used = streams.clock
    return NULL


cdef bint _strided_window(Streams *streams, uint64_t page, Window *window) noexcept nogil:
    """As readahead_window, where the page continues a stride."""
    cdef Stride *stride = _stride_of(streams, page) if streams.most_strided > 1 else NULL
    if stride == NULL:
        return False
    stride.window = min(4 * stride.window, streams.most_strided)
    stride.last_used = streams.clock
    window.start = page
    window.step = stride.step
    window.count = stride.window
    if stride.step < 0:
        window.count = <uint32_t>min(<uint64_t>window.count, page // <uint64_t>-stride.step + 1)
    window.confirmed = stride.brought - 1 if stride.brought > 0 else 0
    window.left_count = 0
    window.beyond = 0
    window.direction = 0
    window.stream = STREAMS + <int>(stride - streams.strides)
    return True


cdef void readahead_window(Streams *streams, uint64_t page, Window *window) noexcept nogil:
    """The pages to bring in for a fault at `page`, which is among them. The caller may take fewer (of a stride the
    first ones), says so by changing the window, and calls readahead_done."""
    cdef int at
    cdef int oldest = 0
    cdef int direction = 0
    cdef Stream *stream
    streams.clock += 1
    for at in range(STREAMS):
        stream = &streams.streams[at]
        direction = _continues(stream, page)
        if direction != 0:
            break
        if stream.last_used < streams.streams[oldest].last_used:
            oldest = at
    window.step = 1
    if direction == 0 and _strided_window(streams, page, window):
        return
    if direction == 0:
        at = oldest
        stream = &streams.streams[at]
        stream.window = 1
        stream.brought = 0
        window.confirmed = 0
        window.left_count = 0
    else:
        window.confirmed = stream.brought - 1 if stream.brought > 0 else 0
        window.left_count = stream.brought
        window.left_start = stream.next - stream.brought if direction > 0 else stream.below + 1
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
    if window.step != 1:
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
        stride.last = window.start + <uint64_t>(<int64_t>(window.count - 1) * window.step)
        return
    stream = &streams.streams[window.stream]
    stream.brought = window.count
    stream.beyond = window.beyond
    stream.next = window.start + window.count
    stream.below = window.start - 1 if window.start > 0 else 0
