# SPDX-License-Identifier: GPL-2.0-or-later
"""The sampler: the thread that adds up how much memory the tree uses.

Nothing tells a user-space pager that a program maps memory or touches what is not registered, so this looks: as often
as the room that is left could be used up at the rate at which memory can be touched at most, that is a few times a
second far below the limit, and once a millisecond near it.

It only reads what is ready to be read, and takes no lock that anybody holds for long: while a process is entered, a
fork is understood or thousands of mappings are registered, memory is touched as fast as ever, and faults get room by
the last sample. All that may take longer is the monitor's, which is woken after each sample.
"""

from libc.stdint cimport int64_t, uint64_t

from userswap.arena cimport arena_pages
from userswap.limit cimport limit_may_be_late, limit_near, limit_near_at, room_sampled
from userswap.processes cimport TOUCH_PAGES_A_MS, tree_find, tree_own_pages, tree_sample
from userswap.system cimport (
    PRIORITY_SAMPLER,
    load_i64,
    load_u32,
    pthread_create,
    pthread_join,
    sys_futex_advance,
    sys_name_thread,
    sys_poll_in,
    sys_prefer,
    sys_sleep_us,
)

cdef enum:
    INTERVAL_MAX_US = 250000
    INTERVAL_ENTERED_US = 50000     # who has ended, or runs another program, is to be left
    INTERVAL_MIN_US = 1000
    AWAIT_US = 200
    AWAIT_TURNS = 5000
    OWN_EVERY = 16              # samples of the engine's own memory, far below the limit


cdef void _sample(Engine *engine) noexcept nogil:
    cdef int64_t granted = load_i64(&engine.granted)
    cdef int64_t copied = load_i64(&engine.copied)
    if limit_near(engine) or engine.samples % OWN_EVERY == 0:
        engine.own_pages = tree_own_pages(&engine.tree) + <int64_t>arena_pages()
    tree_find(&engine.tree)
    room_sampled(engine, tree_sample(&engine.tree, copied) + engine.own_pages, granted)
    sys_futex_advance(&engine.samples)


cdef uint64_t _interval_us(Engine *engine) noexcept nogil:
    cdef int64_t room = limit_near_at(engine) - load_i64(&engine.resident) - engine.tree.hidden
    cdef int64_t most = INTERVAL_ENTERED_US if engine.counters.processes_attached else INTERVAL_MAX_US
    return <uint64_t>min(max(room * 1000 // TOUCH_PAGES_A_MS, <int64_t>INTERVAL_MIN_US), most)


cdef void *_sampler_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    sys_name_thread(b"sampler")
    if sys_prefer(0, PRIORITY_SAMPLER) != 0:
        limit_may_be_late(engine)
    while not engine.stopping:
        _sample(engine)
        sys_poll_in(engine.stop_event, _interval_us(engine))
    return NULL


cdef int sampler_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); sampler_stop cleans up in both cases."""
    engine.sampler_runs = pthread_create(&engine.sampler, NULL, _sampler_main, engine) == 0
    return 0 if engine.sampler_runs else -11


cdef void sampler_await(Engine *engine) noexcept nogil:
    """Until memory has been looked at once, by the monitor too; but not for longer than a second."""
    cdef int _turn
    for _turn in range(AWAIT_TURNS):
        if load_u32(&engine.samples) > 0 and engine.tree.ticks > 0:
            return
        sys_sleep_us(AWAIT_US)


cdef void sampler_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set and stop_event has been signalled."""
    if engine.sampler_runs:
        pthread_join(engine.sampler, NULL)
