# SPDX-License-Identifier: GPL-2.0-or-later
"""The limit: how much memory is in use, who may take more, who must wait.

    0 ......... near ................ low ......... high ......... limit
                 |                     |              |
                 programs are entered  evictor works  faults wait

What is in use is sampled (sampler.pyx), and between two samples known from what the engine itself put in
place and evicted. Above `high` only memory can grow that the engine has not registered yet: what a program
maps anew and touches until the monitor has seen it, a millisecond or two later. The distance from high to
limit is for that; the one from low to high lets the evictor work ahead of need.
"""

from libc.stdint cimport int64_t, uint64_t

from userswap.log cimport log_is_writing
from userswap.mm cimport engine_stop
from userswap.system cimport (
    add_i64,
    load_i64,
    load_u32,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_i64,
    sys_futex_advance,
    sys_now_us,
    sys_signal_eventfd,
    sys_since_us,
)
from userswap.trace cimport TRACE_LIMIT, trace_span
from userswap.types cimport BLOCK_PAGES

cdef enum:
    SURGE_TICKS = 256       # looks after which the distance shrinks by a sixteenth
    BURST_PAGES = 2048      # what a few processes write after a fork, before they are looked at
    LATE_PAGES = 4096       # what may be touched while the sampler waits for its turn on a CPU


cdef void limit_set(Engine *engine, int64_t pages) noexcept nogil:
    """Before anybody else knows of it: at the start."""
    pthread_mutex_init(&engine.limit_lock, NULL)
    engine.limit = pages
    _set_marks(engine, 0)


cdef void limit_change(Engine *engine, int64_t pages) noexcept nogil:
    """Another limit, at any time. What is over it is evicted, and faults wait meanwhile."""
    pthread_mutex_lock(&engine.limit_lock)
    engine.limit = pages
    _set_marks(engine, min(engine.surge, pages // 8))
    pthread_mutex_unlock(&engine.limit_lock)
    trace_span(engine.trace, TRACE_LIMIT, 0, <uint64_t>pages, 1)
    sys_futex_advance(&engine.evict_wanted)
    sys_signal_eventfd(engine.room_event)


cdef int64_t _reserve(int64_t limit) noexcept nogil:
    return max(limit // 32, <int64_t>3 * BLOCK_PAGES)


cdef void limit_may_be_late(Engine *engine) noexcept nogil:
    """The sampler has no right to run in time: the distance from high to limit is wider for good."""
    pthread_mutex_lock(&engine.limit_lock)
    engine.late = True
    _set_marks(engine, engine.surge)
    pthread_mutex_unlock(&engine.limit_lock)


cdef void _set_marks(Engine *engine, int64_t surge) noexcept nogil:
    """limit_lock is held."""
    engine.surge = surge
    if engine.late:
        surge = max(surge, min(engine.limit // 8, <int64_t>LATE_PAGES))
    engine.high = engine.limit - _reserve(engine.limit) - surge
    engine.low = engine.high - max(engine.limit // 64, <int64_t>3 * BLOCK_PAGES)


cdef void _learn_surge(Engine *engine, int64_t pages) noexcept nogil:
    """A program that came close to the limit all the same (it forks, or maps and touches in bursts) gets a wider
    distance from high to limit, for some seconds."""
    cdef int64_t excess
    pthread_mutex_lock(&engine.limit_lock)
    excess = pages - (engine.limit - _reserve(engine.limit) // 4)
    if 2 * excess > engine.surge:
        _set_marks(engine, min(2 * excess, engine.limit // 8))
    elif engine.surge > 0:
        engine.calm += 1
        if engine.calm % SURGE_TICKS == 0:
            _set_marks(engine, engine.surge * 15 // 16)
    pthread_mutex_unlock(&engine.limit_lock)


cdef void limit_burst(Engine *engine) noexcept nogil:
    """A fork at the limit: what parent and child write to next is theirs alone, and the first of it is not told."""
    cdef int64_t surge
    pthread_mutex_lock(&engine.limit_lock)
    surge = min(max(engine.limit // 16, <int64_t>BURST_PAGES), engine.limit // 8)
    engine.calm = 0
    if engine.surge < surge:
        _set_marks(engine, surge)
    pthread_mutex_unlock(&engine.limit_lock)


cdef int64_t limit_least() noexcept nogil:
    """The least limit, in pages, that there is work in: the engine's own memory at most, and as much again."""
    return 64 << 8


cdef bint limit_near(Engine *engine) noexcept nogil:
    """Whether the programs must be entered now, so that it is done before the limit is reached."""
    return limit_is_near(engine, load_i64(&engine.resident))


cdef bint limit_reached_by(Engine *engine, int64_t pages) noexcept nogil:
    """Whether so many pages more would go over it."""
    return load_i64(&engine.resident) + pages > engine.limit


cdef bint limit_is_near(Engine *engine, int64_t pages) noexcept nogil:
    return pages > limit_near_at(engine)


cdef int64_t limit_near_at(Engine *engine) noexcept nogil:
    """The pages in use from which on programs are entered."""
    return engine.low - max(engine.limit // 8, min(<int64_t>12288, engine.limit // 3))


cdef int64_t room_left(Engine *engine) noexcept nogil:
    """Pages that may be put in place now; may be negative."""
    return engine.high - load_i64(&engine.resident)


cdef void room_take(Engine *engine, int64_t pages) noexcept nogil:
    cdef int64_t resident = add_i64(&engine.resident, pages)
    add_i64(&engine.granted, pages)
    if resident > engine.low:
        sys_futex_advance(&engine.evict_wanted)


cdef bint room_is_awaited(Engine *engine) noexcept nogil:
    """Whether faults wait for room."""
    return load_u32(&engine.deferred_end) != load_u32(&engine.deferred_first)


cdef void room_give(Engine *engine, int64_t pages) noexcept nogil:
    add_i64(&engine.resident, -pages)
    engine.progress_at = sys_now_us()
    if room_is_awaited(engine):
        sys_signal_eventfd(engine.room_event)


cdef void room_awaited(Engine *engine) noexcept nogil:
    """A fault has just been put among those that wait for room."""
    add_i64(&engine.counters.limit_waits, 1)
    sys_futex_advance(&engine.evict_wanted)
    if room_left(engine) > 0:       # it came between the look and the wait
        sys_signal_eventfd(engine.room_event)


cdef void room_check_stuck(Engine *engine) noexcept nogil:
    """Stops the program when faults have waited too long without anything being evicted. A disk that takes its time is
    waited for: what it is to write makes room when it is written."""
    if not room_is_awaited(engine) or log_is_writing(&engine.log):
        engine.waited_since = 0
    elif engine.waited_since == 0:
        engine.waited_since = sys_now_us()
    elif min(sys_since_us(engine.waited_since), sys_since_us(engine.progress_at)) > engine.stuck_us:
        engine_stop(engine, b"the memory in use cannot be brought under the limit: MiB that cannot be evicted",
                    load_i64(&engine.resident) >> 8)


cdef void room_sampled(Engine *engine, int64_t pages, int64_t granted) noexcept nogil:
    """Takes a sample of what is in use; `granted` is the engine's as it was before it."""
    cdef int64_t now = pages + load_i64(&engine.granted) - granted
    store_i64(&engine.resident, now)
    if pages > engine.resident_peak:
        engine.resident_peak = pages
    _learn_surge(engine, pages)
    if now > engine.low:
        sys_futex_advance(&engine.evict_wanted)
    if now < engine.high and room_is_awaited(engine):
        sys_signal_eventfd(engine.room_event)
