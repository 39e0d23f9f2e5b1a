# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace of a run, as it is recorded.

Nothing is recorded where it would have to be waited for: a use of a page that is in memory is not known. So it tells
what less memory had to be brought in, or more has to, by a rule that evicts much like ours; of more memory truly (trace
stripping: Smith, "Two methods for the efficient analysis of memory address trace data", 1977).

Records are collected, and written 4096 at a time or once a second. An engine that dies takes what it has collected with
it, and another one goes on with the file. What cannot be written ends the trace, not the run."""

from libc.errno cimport EINTR, EIO, errno
from libc.stdlib cimport calloc
from posix.unistd cimport write

from userswap.system cimport (
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_now_us,
    sys_since_us,
)

cdef enum:
    TICK_SHIFT = 6              # us to ticks
    WRITE_US = 1000000


cdef Trace *trace_make(int fd) noexcept nogil:
    """To a file that is open for appending. NULL without memory."""
    cdef Trace *trace = <Trace *>calloc(1, sizeof(Trace))
    if trace != NULL:
        trace.fd = fd
        trace.written_at = sys_now_us()
        pthread_mutex_init(&trace.lock, NULL)
    return trace


cdef void _write(Trace *trace) noexcept nogil:
    """Its lock is held."""
    cdef const char *at = <const char *>trace.records
    cdef size_t left = trace.count * sizeof(TraceRecord)
    cdef ssize_t done
    while left > 0 and trace.error == 0:
        done = write(trace.fd, at, left)
        if done > 0:
            at += done
            left -= <size_t>done
        elif done == 0 or errno != EINTR:
            trace.error = errno if done < 0 else EIO
    trace.count = 0
    trace.written_at = sys_now_us()


cdef void _add(Trace *trace, uint32_t kind, uint32_t mm_id, uint64_t page, uint16_t before,
               uint16_t count) noexcept nogil:
    cdef TraceRecord *record
    pthread_mutex_lock(&trace.lock)
    if trace.error == 0:
        record = &trace.records[trace.count]
        record.what = <uint64_t>kind | page << TRACE_KIND_BITS | (
            <uint64_t>mm_id << (TRACE_KIND_BITS + TRACE_PAGE_BITS))
        record.ticks = <uint32_t>(sys_now_us() >> TICK_SHIFT)
        record.before = before
        record.count = count
        trace.count += 1
        if trace.count == TRACE_RECORDS:
            _write(trace)
    pthread_mutex_unlock(&trace.lock)


cdef void trace_fault(Trace *trace, uint32_t kind, uint32_t mm_id, uint64_t page, uint64_t start,
                      uint32_t count) noexcept nogil:
    """A fault on `page`, by which `count` pages from `start` on, that one among them, were put in place."""
    if trace != NULL and count > 0:
        _add(trace, kind, mm_id, page, <uint16_t>(page - start), <uint16_t>count)


cdef void trace_span(Trace *trace, uint32_t kind, uint32_t mm_id, uint64_t start, uint64_t count) noexcept nogil:
    """So many pages from `start` on."""
    if trace != NULL and count > 0:
        _add(trace, kind, mm_id, start, <uint16_t>(count >> 16), <uint16_t>count)


cdef void trace_look(Trace *trace) noexcept nogil:
    """Now and then."""
    if trace != NULL and trace.count > 0 and sys_since_us(trace.written_at) > WRITE_US:
        trace_flush(trace)


cdef int trace_flush(Trace *trace) noexcept nogil:
    """Returns 0, or the errno for which the trace has ended."""
    if trace == NULL:
        return 0
    pthread_mutex_lock(&trace.lock)
    _write(trace)
    pthread_mutex_unlock(&trace.lock)
    return trace.error
