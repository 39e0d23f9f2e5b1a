# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of the program, on the descriptor on which its faults come.

An event is read and applied under Mm.lock, and what is decided from a page table is carried out under the same
hold of it. While an event is in the queue, not read, the kernel refuses to copy or to move (EAGAIN): whoever
meets that calls events_drain and looks again.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport realloc

from userswap.forks cimport forks_child, forks_departing, forks_moved
from userswap.mm cimport (
    Pending,
    engine_stop,
    mm_forget,
    mm_get,
    mm_move,
    mm_put,
    mm_removed,
    mm_settled,
)
from userswap.ranges cimport ranges_add, ranges_hit, ranges_remove
from userswap.system cimport (
    EAGAIN,
    UFFD_EVENT_FORK,
    UFFD_EVENT_PAGEFAULT,
    UFFD_EVENT_REMAP,
    UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP,
    add_i64,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u32,
    store_u8,
    sys_crash_point,
    sys_sleep_us,
    sys_uffd_read,
    sys_uffd_settled,
    sys_uffd_wake,
    uffd_msg,
)
from userswap.trace cimport TRACE_GIVEN_BACK, TRACE_MOVED, TRACE_MOVED_TO, trace_span
from userswap.types cimport PAGE_BYTES, PAGE_SHIFT


# ---- events, with Mm.lock held

cdef void _note_taken(Engine *engine, Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """A mapping was moved to where, as far as we know, there is one: that has been unmapped by another thread, whose
    event comes after this one though it happened before. It must not take what lies there now. (The ranges of an mm
    without a helper may be out of date.)"""
    cdef uint64_t page = start
    if not mm.entered or not ranges_hit(&mm.ranges, start, end):
        return
    while page < end:
        if ranges_hit(&mm.ranges, page, page + 1) and ranges_add(&mm.taken, page, page + 1) != 0:
            engine_stop(engine, b"no memory for a page table", 0)
        page += 1


cdef void _forget_part(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    forks_departing(engine, mm, page, count)
    trace_span(engine.trace, TRACE_GIVEN_BACK, mm.id, page, count)
    add_i64(&engine.counters.pages_discarded, mm_forget(engine, mm, page, count))
    ranges_remove(&mm.ranges, page, page + count)
    ranges_remove(&mm.wiped, page, page + count)


cdef void _unmapped(Engine *engine, Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t page = start
    if mm.event_step == 0 and not ranges_hit(&mm.taken, start, end):
        _forget_part(engine, mm, start, end - start)
    elif mm.event_step == 0:
        while page < end:
            if not ranges_hit(&mm.taken, page, page + 1):
                _forget_part(engine, mm, page, 1)
            page += 1
    sys_crash_point(b"unmap-taken")
    store_u32(&mm.event_step, 1)
    ranges_remove(&mm.taken, start, end)
    sys_crash_point(b"unmap-done")
    mm.rescan = True


cdef void _moved(Engine *engine, Mm *mm, uint64_t start, uint64_t to_page, uint64_t count) noexcept nogil:
    if mm.event_step == 0:
        _note_taken(engine, mm, to_page, to_page + count)
        forks_departing(engine, mm, start, count)
        forks_departing(engine, mm, to_page, count)
        trace_span(engine.trace, TRACE_MOVED, mm.id, start, count)
        trace_span(engine.trace, TRACE_MOVED_TO, mm.id, to_page, count)
        store_u32(&mm.event_step, 1)
    if mm.event_step == 1:
        mm_move(engine, mm, start, to_page, count)
        sys_crash_point(b"move-moved")
        store_u32(&mm.event_step, 2)
    store_u32(&mm.move_step, 0)
    ranges_add(&mm.ranges, to_page, to_page + count)
    if ranges_hit(&mm.wiped, start, start + count):
        ranges_add(&mm.wiped, to_page, to_page + count)
    if ranges_hit(&mm.doubtful, start, start + count):
        ranges_add(&mm.doubtful, to_page, to_page + count)
    sys_crash_point(b"move-children")
    mm.rescan = True
    forks_moved(engine, mm, start, to_page, count)


cdef void event_apply(Engine *engine, Mm *mm) noexcept nogil:
    """Applies Mm.event. It is forgotten only then: if we end in the middle of it, the engine that comes after calls
    this again. So each step either may be done twice, or is noted in event_step."""
    cdef uffd_msg *message = &mm.event
    cdef uint64_t start = message.arg.remove.start >> PAGE_SHIFT
    cdef uint64_t end = message.arg.remove.end >> PAGE_SHIFT
    if message.event == UFFD_EVENT_REMOVE:
        trace_span(engine.trace, TRACE_GIVEN_BACK, mm.id, start, end - start)
        add_i64(&engine.counters.pages_discarded, mm_forget(engine, mm, start, end - start))
        mm_removed(mm, start, end - start)
    elif message.event == UFFD_EVENT_UNMAP:
        _unmapped(engine, mm, start, end)
    elif message.event == UFFD_EVENT_REMAP:
        _moved(engine, mm, message.arg.remap.from_ >> PAGE_SHIFT, message.arg.remap.to >> PAGE_SHIFT,
               message.arg.remap.len >> PAGE_SHIFT)
    elif message.event == UFFD_EVENT_FORK:
        forks_child(engine, mm, <int>message.arg.fork.ufd)
    sys_crash_point(b"event-applied")
    store_u8(&mm.event.event, 0)
    store_u32(&mm.event_step, 0)
    mm.event_again = False


cdef int event_read(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil:
    """Reads one message; an event is applied at once, for the program goes on when it is read.

    Returns 1 for a page fault in *message, 0 when nothing is left. Mm.lock is held."""
    cdef long result
    mm_settled(engine, mm)
    while True:
        result = sys_uffd_read(mm.uffd, &mm.event, 1)
        if result != 1:
            if result != -EAGAIN and result != 0:      # EMFILE: there is no descriptor for the child of a fork
                engine_stop(engine, b"an event of the program cannot be read: error", result)
            return 0
        mm.messages_read += 1
        sys_crash_point(b"event-read")
        if mm.event.event == UFFD_EVENT_PAGEFAULT:
            message[0] = mm.event
            store_u8(&mm.event.event, 0)
            return 1
        event_apply(engine, mm)


cdef void _pending_add(Engine *engine, Pending *pending, uffd_msg *message) noexcept nogil:
    cdef uint32_t room
    cdef void *grown
    if pending.count == pending.room:
        room = 2 * pending.room + 64
        grown = realloc(pending.messages, room * sizeof(uffd_msg))
        if grown == NULL:
            engine_stop(engine, b"no memory for messages", 0)
            return
        pending.messages = <uffd_msg *>grown
        pending.room = room
    pending.messages[pending.count] = message[0]
    pending.count += 1


cdef bint events_drain(Engine *engine, Mm *mm, Worker *worker) noexcept nogil:
    """Reads what is in the way of a copy or move. Page faults among it are kept for `worker`, or woken to be
    raised again when it is NULL. Call without Mm.lock.

    False if there was nothing: then the event is still to be queued, or its maker to run, and if we did not
    sleep it might have to wait for us to leave its CPU."""
    cdef uffd_msg message
    cdef uint64_t before
    pthread_mutex_lock(&mm.lock)
    before = mm.messages_read
    while event_read(engine, mm, &message):
        if worker != NULL:
            _pending_add(engine, &worker.pending, &message)
        else:
            sys_uffd_wake(mm.uffd, message.arg.pagefault.address & ~<uint64_t>(PAGE_BYTES - 1), PAGE_BYTES)
    before = mm.messages_read - before
    pthread_mutex_unlock(&mm.lock)
    if before == 0:
        sys_sleep_us(100)
    return before != 0


cdef void events_await_parent(Engine *engine, Mm *child) noexcept nogil:
    """The child of a fork is not served before all is told that its parent did about the same time. Call without any
    lock."""
    cdef Mm *parent = mm_get(engine, child.parent_mm)
    while parent != NULL and child.unsettled and not engine.stopping:
        pthread_mutex_lock(&parent.lock)
        if child.unsettled and (parent.dead or sys_uffd_settled(parent.uffd)):
            child.unsettled = False
            parent.young -= 1
        pthread_mutex_unlock(&parent.lock)
        if child.unsettled:
            events_drain(engine, parent, NULL)
    if parent == NULL:
        child.unsettled = False
    else:
        mm_put(engine, parent)
