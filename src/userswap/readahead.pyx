# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead in address order.

A fault that continues a stream, upwards or downwards, makes its window grow from one page to 2 MiB; one that
continues none starts a stream of one page in place of the stream longest unused. So random access brings in
single pages, and a program may read up to 16 streams at once.
"""

from libc.string cimport memset


cdef int _continues(Stream *stream, uint64_t page) noexcept nogil:
    """1 or -1: the page continues the stream upwards or downwards; 0: it does not."""
    # A window may have ended early at a page that was present: a little beyond its end is its end as well.
    cdef uint64_t slack = stream.window - 1 if stream.window > 1 else 0
    if stream.window == 0:
        return 0
    if stream.direction >= 0 and stream.next <= page <= stream.next + slack:
        return 1
    if stream.direction <= 0 and page <= stream.below <= page + slack:
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


cdef void readahead_window(Streams *streams, uint64_t page, Window *window) noexcept nogil:
    """The pages to bring in for a fault at `page`, which is among them. The caller may take fewer, says so by
    changing the window, and calls readahead_done."""
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
    window.stream = at
    window.count = stream.window
    window.start = page
    if direction < 0:
        window.count = <uint32_t>min(<uint64_t>window.count, page + 1)
        window.start = page + 1 - window.count


cdef void readahead_done(Streams *streams, Window *window) noexcept nogil:
    """The window as it was carried out: the next fault of the stream is expected at its edge."""
    cdef Stream *stream = &streams.streams[window.stream]
    stream.brought = window.count
    stream.next = window.start + window.count
    stream.below = window.start - 1 if window.start > 0 else 0
