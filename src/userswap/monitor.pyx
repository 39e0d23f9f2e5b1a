# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor: the thread that looks at the tree after each sample of its memory.

It measures what the processes share, has those entered that use memory where it is short, registers what they map, and
leaves what is gone.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close

from userswap.births cimport births_bind
from userswap.blocks cimport log_changed
from userswap.check cimport check_running
from userswap.enter cimport enter_next
from userswap.forks cimport forks_protect
from userswap.inject cimport helper_is_idle, helper_is_in
from userswap.limit cimport limit_is_near, limit_near, limit_near_at, room_check_stuck
from userswap.mappings cimport mappings_look_again, mappings_promote, mappings_protect, mappings_register
from userswap.mm cimport Mm, engine_stop, mm_end, mm_get, mm_leave, mm_next, mm_put, mm_settled
from userswap.spare cimport spare_look
from userswap.system cimport (
    FOR_EVER_US,
    PRIORITY_MONITOR,
    load_i64,
    load_u32,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_advance,
    sys_futex_wait,
    sys_name_thread,
    sys_now_us,
    sys_poll_in,
    sys_prefer,
    sys_process_dead,
    sys_read_small,
    sys_signal_eventfd,
    sys_since_us,
    sys_uffd_alive,
)
from userswap.trace cimport trace_look
from userswap.watch cimport watch_look
from userswap.processes cimport (
    Process,
    tree_begin_look,
    tree_end_look,
    tree_is_due,
    tree_measure_own,
    tree_measure_shared,
)

cdef enum:
    CHECK_EVERY = 16
    TIER_EVERY = 16
    PAUSE_US = 1000             # others must run, too
    KSM_EVERY_US = 1000000
    RESCAN_US = 20000           # mappings are looked at at least so often where memory is short


cdef void _leave(Engine *engine, Process *process) noexcept nogil:
    """The process has exited, or runs another program now: its old address space is left."""
    cdef Mm *mm = mm_get(engine, process.mm_id)
    process.mm_id = 0
    if mm == NULL:
        return
    mm_leave(engine, mm)
    mm_put(engine, mm)


cdef bint _is_due(Mm *mm, Process *process) noexcept nogil:
    """Whether its mappings are to be looked at. Not all the time, where there are very many."""
    cdef uint64_t since = sys_since_us(mm.scanned_at)
    if mm.rescan or mm.mapped_pages != process.mapped:
        return since > min(2 * mm.scan_us, <uint64_t>RESCAN_US)
    return since > max(<uint64_t>RESCAN_US, 8 * mm.scan_us)


cdef void _look_at_process(Engine *engine, Process *process, bint near) noexcept nogil:
    cdef Mm *mm
    if process.mm_id == 0:
        return
    mm = mm_get(engine, process.mm_id)
    if mm == NULL:
        process.mm_id = 0
        return
    if mm.detaching:
        pass
    elif process.gone or helper_is_in(&mm.helper, process.pid) == 0:
        _leave(engine, process)
    elif mm.helper_failed or sys_process_dead(mm.helper.pidfd):
        engine_stop(engine, b"the helper of a process was ended by somebody else: process", process.pid)
    elif mm.helper_busy:
        mm.helper_busy = not helper_is_idle(&mm.helper)
        mm.unsharing = mm.helper_busy
    elif mm.found:
        mappings_look_again(engine, mm)
    elif near and _is_due(mm, process):
        mm.mapped_pages = process.mapped
        mappings_register(engine, mm)
        mappings_promote(engine, mm)
        spare_look(engine, mm)
    mm_put(engine, mm)


cdef void _look_at_mms(Engine *engine, bint near) noexcept nogil:
    """Ends address spaces that no process has any more: the userfaultfd tells, whoever shared them. Protects what
    forks have left shared, where memory is short or it could not be at once."""
    cdef uint32_t position = 0
    cdef Mm *mm
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return
        watch_look(engine, mm)
        if not mm.entered and not sys_uffd_alive(mm.uffd):
            mm_end(engine, mm)
            sys_signal_eventfd(engine.attention)
        elif mm.protect_wanted or mm.departed != NULL or (near and mm.exposed):
            pthread_mutex_lock(&mm.lock)
            mm_settled(engine, mm)
            if near and mm.exposed:
                forks_protect(engine, mm)
            if mm.protect_wanted:
                mm.protect_wanted = not mappings_protect(mm, mm.uffd)
            pthread_mutex_unlock(&mm.lock)
        mm_put(engine, mm)


cdef void _look_for_ksm(Engine *engine) noexcept nogil:
    """Merged pages lose their write protection, so that no copy of a page is known to be true while ksmd runs. It
    merges what it has found unchanged twice; once a second is often enough to see it started."""
    cdef char text[16]
    cdef int fd
    if sys_since_us(engine.ksm_looked_at) < KSM_EVERY_US:
        return
    engine.ksm_looked_at = sys_now_us()
    fd = open(b"/sys/kernel/mm/ksm/run", O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return
    if sys_read_small(fd, text, sizeof(text)) > 0 and text[0] == c'1':
        engine.ksm = True       # for good: what it merged stays merged
    close(fd)


cdef void _measure_shared(Engine *engine, int64_t copied) noexcept nogil:
    """Where it may matter: if memory would be short, were nothing shared."""
    if tree_is_due(&engine.tree) and limit_is_near(engine, engine.tree.most + engine.own_pages):
        tree_measure_shared(&engine.tree, copied, limit_near_at(engine) - load_i64(&engine.resident))


cdef void _look(Engine *engine) noexcept nogil:
    """One look at all."""
    cdef uint32_t at
    cdef bint near
    engine.tree.ticks += 1
    tree_begin_look(&engine.tree)
    _measure_shared(engine, load_i64(&engine.copied))
    near = limit_near(engine)
    if near and engine.log.packs and engine.tree.ticks % TIER_EVERY == 0:
        log_changed(&engine.log)        # for the packer, which splits the memory anew
    if near:
        _look_for_ksm(engine)
        tree_measure_own(&engine.tree)
    births_bind(engine)
    enter_next(engine, near)
    for at in range(engine.tree.look.count):
        _look_at_process(engine, engine.tree.look.items[at], near)
    tree_end_look(&engine.tree)
    _look_at_mms(engine, near)
    room_check_stuck(engine)
    trace_look(engine.trace)
    if engine.checking and engine.tree.ticks % CHECK_EVERY == 0:
        check_running(engine)


cdef void *_monitor_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    sys_name_thread(b"monitor")
    sys_prefer(0, PRIORITY_MONITOR)
    while True:
        seen = load_u32(&engine.samples)
        if engine.stopping:
            break
        _look(engine)
        sys_poll_in(engine.stop_event, PAUSE_US)
        sys_futex_wait(&engine.samples, seen, FOR_EVER_US)
    return NULL


cdef int monitor_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); monitor_stop cleans up in both cases."""
    engine.monitor_runs = pthread_create(&engine.monitor, NULL, _monitor_main, engine) == 0
    return 0 if engine.monitor_runs else -11


cdef void monitor_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set; the sampler has ended."""
    sys_futex_advance(&engine.samples)
    if engine.monitor_runs:
        pthread_join(engine.monitor, NULL)
