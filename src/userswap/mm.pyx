# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces: their life, and what an event of the program does to their page tables.

An mm lives in Engine.mms from mm_insert to mm_end, and in memory until the last mm_put. Whoever finds one by
its id or by mm_next owns a reference.
"""

from libc.stdio cimport snprintf
from posix.unistd cimport close

from userswap.arena cimport arena_give, arena_take
from userswap.inject cimport helper_dismiss
from userswap.log cimport log_freed
from userswap.pagetable cimport (
    TABLE_LEAF_PAGES,
    TABLE_REMOVED,
    PageTable,
    table_free,
    table_get,
    table_make,
    table_set,
    table_visit,
)
from userswap.ranges cimport ranges_free, ranges_remove
from userswap.readahead cimport readahead_find_strides, readahead_init
from userswap.space cimport space_put
from userswap.system cimport (
    EIO,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_flag,
    store_pointer,
    store_u32,
    sys_crash_point,
    sys_now_us,
    sys_signal_eventfd,
    sys_uffd_settled,
)
from userswap.trace cimport TRACE_ENDED, trace_span
from userswap.watch cimport watch_begin, watch_end
from userswap.types cimport AGE_FRESH, is_busy, is_present, offset_of, present_value


# ---- references and the table of mms

cdef Mm *mm_make(Engine *engine, int uffd, pid_t pid) noexcept nogil:
    """A new mm with one reference, not yet in the table; NULL without memory. It owns `uffd`."""
    cdef Mm *mm = <Mm *>arena_take(sizeof(Mm))
    if mm == NULL:
        return NULL
    pthread_mutex_init(&mm.lock, NULL)
    pthread_mutex_init(&mm.helper_lock, NULL)
    readahead_init(&mm.fills, engine.window_most)
    readahead_find_strides(&mm.fills)
    readahead_init(&mm.touches, engine.window_most)
    readahead_init(&mm.unprotects, engine.window_most)
    mm.maps = -1
    mm.pagemap = -1
    mm.table = table_make()
    mm.uffd = uffd
    mm.pid = pid
    mm.refs = 1
    mm.rescan = True
    if mm.table == NULL:
        arena_give(mm, sizeof(Mm))
        return NULL
    return mm


cdef int mm_insert(Engine *engine, Mm *mm) noexcept nogil:
    """Gives the mm its id and its faults to the threads. Returns 0 or -EAGAIN (as -11) when the table is full."""
    cdef uint32_t at, step
    pthread_mutex_lock(&engine.table_lock)
    for step in range(MAX_MMS):
        at = (engine.mm_serial + step) % MAX_MMS
        if engine.mms[at] == NULL:
            mm.id = engine.mm_serial + step
            engine.mm_serial = mm.id + 1
            store_pointer(<void **>&engine.mms[at], mm)     # all of it is there
            sys_crash_point(b"mm-inserted")
            break
    else:
        pthread_mutex_unlock(&engine.table_lock)
        return -11
    pthread_mutex_unlock(&engine.table_lock)
    watch_begin(engine, mm)
    return 0


cdef int mm_insert_as(Engine *engine, Mm *mm, uint32_t id) noexcept nogil:
    """With the id that it had in an engine before. Returns 0, or -EIO where another one has that."""
    if engine.mms[id % MAX_MMS] != NULL:
        return -EIO
    mm.id = id
    engine.mms[id % MAX_MMS] = mm
    watch_begin(engine, mm)
    return 0


cdef Mm *mm_get(Engine *engine, uint32_t id) noexcept nogil:
    """The mm with a reference for the caller, or NULL if it has ended."""
    cdef Mm *mm
    pthread_mutex_lock(&engine.table_lock)
    mm = engine.mms[id % MAX_MMS]
    if mm != NULL and mm.id == id:
        mm.refs += 1
    else:
        mm = NULL
    pthread_mutex_unlock(&engine.table_lock)
    return mm


cdef Mm *mm_next(Engine *engine, uint32_t *position) noexcept nogil:
    """Goes over the table from *position (0 at first) on: the next mm with a reference, or NULL at the end."""
    cdef Mm *mm = NULL
    pthread_mutex_lock(&engine.table_lock)
    while mm == NULL and position[0] < MAX_MMS:
        mm = engine.mms[position[0]]
        position[0] += 1
    if mm != NULL:
        mm.refs += 1
    pthread_mutex_unlock(&engine.table_lock)
    return mm


cdef bint mms_unclaimed(Engine *engine) noexcept nogil:
    """Whether there is the address space of a fork of which nobody knows yet which process has it."""
    cdef uint32_t at
    cdef bint found = False
    pthread_mutex_lock(&engine.table_lock)
    for at in range(MAX_MMS):
        found = found or (engine.mms[at] != NULL and engine.mms[at].pid == 0 and not engine.mms[at].dead)
    pthread_mutex_unlock(&engine.table_lock)
    return found


cdef void mm_put(Engine *engine, Mm *mm) noexcept nogil:
    cdef int refs
    pthread_mutex_lock(&engine.table_lock)
    mm.refs -= 1
    refs = mm.refs
    pthread_mutex_unlock(&engine.table_lock)
    if refs > 0:
        return
    close(mm.uffd)
    table_free(mm.table)
    ranges_free(&mm.ranges)
    ranges_free(&mm.unforked)
    ranges_free(&mm.wiped)
    ranges_free(&mm.spared)
    ranges_free(&mm.taken)
    ranges_free(&mm.doubtful)
    pthread_mutex_destroy(&mm.lock)
    pthread_mutex_destroy(&mm.helper_lock)
    arena_give(mm, sizeof(Mm))


cdef void mm_leave(Engine *engine, Mm *mm) noexcept nogil:
    """Ends the helper, so that it does not hold the address space any longer. Faults are served all the same: another
    process may share it (vfork). Where the evictor has still to store what the helper holds for an engine before,
    it ends that afterwards."""
    mm.leaving = True       # the evictor, which holds the lock for as long as it finds something, lets go
    pthread_mutex_lock(&mm.helper_lock)
    pthread_mutex_lock(&mm.lock)
    if engine.finishing == mm.id and mm.entered:
        engine.finish_leaves = True
    elif mm.entered:
        store_flag(&mm.entered, False)
        sys_crash_point(b"leave-begun")
        pthread_mutex_unlock(&mm.lock)
        close(mm.maps)
        close(mm.pagemap)
        helper_dismiss(&mm.helper)
        pthread_mutex_lock(&mm.lock)
    mm.leaving = False
    pthread_mutex_unlock(&mm.lock)
    pthread_mutex_unlock(&mm.helper_lock)


cdef void mm_end(Engine *engine, Mm *mm) noexcept nogil:
    """The address space is gone: all its entries are put. The caller keeps its own reference."""
    cdef bint listed = False
    watch_end(engine, mm)
    pthread_mutex_lock(&mm.lock)
    mm.dead = True
    sys_crash_point(b"mm-dead")
    trace_span(engine.trace, TRACE_ENDED, mm.id, 0, 1)
    mm_forget(engine, mm, 0, <uint64_t>1 << WHOLE_TABLE_BITS)
    mm_settled(engine, mm)
    pthread_mutex_unlock(&mm.lock)
    pthread_mutex_lock(&engine.table_lock)
    if engine.mms[mm.id % MAX_MMS] == mm:
        engine.mms[mm.id % MAX_MMS] = NULL
        listed = True
    pthread_mutex_unlock(&engine.table_lock)
    if listed:
        mm_put(engine, mm)


# ---- what events do to the page table; Mm.lock is held

cdef void entry_put(Engine *engine, uint32_t offset) noexcept nogil:
    """One page table (or fill) less names the offset; its block is told if that was the last."""
    cdef uint64_t freed
    pthread_mutex_lock(&engine.space.lock)
    freed = space_put(&engine.space, offset)
    if freed != 0:
        log_freed(&engine.log, freed)
    pthread_mutex_unlock(&engine.space.lock)


cdef struct _Change:
    Engine *engine
    Mm *mm
    uint64_t shift
    int64_t discarded


cdef void _forget_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef _Change *change = <_Change *>context
    cdef uint64_t at
    cdef uint32_t value
    for at in range(count):
        if values[at] == 0:
            continue
        value = values[at]
        values[at] = 0      # before its entry may be another page's
        sys_crash_point(b"forget-value")
        if is_present(value):
            change.mm.present -= 1
        else:
            change.mm.swapped -= 1
            change.discarded += 1
        if offset_of(value) != 0:
            entry_put(change.engine, offset_of(value))


cdef int64_t mm_forget(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    """The program has given the pages back; returns how many were swapped. A thread that is filling one sees its
    value changed, and does not."""
    cdef _Change change
    change.engine = engine
    change.mm = mm
    change.discarded = 0
    table_visit(mm.table, page, count, _forget_values, &change)
    return change.discarded


cdef void mm_is_there(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    """A doubtful page has been brought back by an engine before. Perhaps it was written to since: its copy is
    nothing."""
    cdef uint32_t offset = offset_of(table_get(mm.table, page))
    table_set(mm.table, page, present_value(AGE_FRESH, 0))
    ranges_remove(&mm.doubtful, page, page + 1)
    mm.present += 1
    mm.swapped -= 1
    entry_put(engine, offset)


cdef void _stamp_removed(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    (values - page % TABLE_LEAF_PAGES)[TABLE_REMOVED] = (<uint32_t *>context)[0]


cdef void mm_removed(Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    """Notes that the kernel has been asked to drop these pages, and does so a little later or, after MADV_FREE, may
    never do it."""
    cdef uint32_t now = <uint32_t>(sys_now_us() // 1000) | 1
    mm.removed_at = sys_now_us()
    table_visit(mm.table, page, count, _stamp_removed, &now)


cdef void _move_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef _Change *change = <_Change *>context
    cdef uint64_t at
    cdef uint32_t value
    for at in range(count):
        value = values[at]
        if value == 0:
            continue
        # Nobody fills the page at its new place: who was at it finds its value gone.
        if is_busy(value):
            value = offset_of(value)
        sys_crash_point(b"move-value")
        if table_set(change.mm.table, page + at + change.shift, value) != 0:
            engine_stop(change.engine, b"no memory for a page table", 0)
        values[at] = 0


cdef void mm_move(Engine *engine, Mm *mm, uint64_t from_page, uint64_t to_page, uint64_t count) noexcept nogil:
    """mremap: the pages are now elsewhere, and what was there is gone. Where it ended amid the work, the engine that
    comes after calls it again. Mm.move_step is to be set to 0 when all is done."""
    cdef _Change change
    if mm.move_step == 0:
        mm_forget(engine, mm, to_page, count)
        store_u32(&mm.move_step, 1)
        sys_crash_point(b"move-forgotten")
    change.engine = engine
    change.mm = mm
    change.shift = to_page - from_page
    table_visit(mm.table, from_page, count, _move_values, &change)


cdef void _put_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef uint64_t at
    for at in range(count):
        if values[at] != 0:
            entry_put(<Engine *>context, values[at])


cdef void mm_settled(Engine *engine, Mm *mm) noexcept nogil:
    """Forgets what has departed, unless an event is under way: then a fork may be still to be told for which it
    counts."""
    cdef PageTable *departed = mm.departed
    if departed == NULL or not (mm.dead or sys_uffd_settled(mm.uffd)):
        return
    store_pointer(<void **>&mm.departed, NULL)      # before what it names may be free
    table_visit(departed, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _put_values, engine)
    table_free(departed)


cdef void _check_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef _Change *change = <_Change *>context
    cdef uint64_t at
    for at in range(count):
        if values[at] == 0:
            continue
        if is_present(values[at]):
            change.discarded += 1
        else:
            change.shift += 1


cdef void mm_check(Engine *engine, Mm *mm) noexcept nogil:
    """Invariants of an mm, with its lock held: a violation stops the program."""
    cdef _Change change
    change.shift = 0
    change.discarded = 0
    table_visit(mm.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _check_values, &change)
    if change.discarded != mm.present or <int64_t>change.shift != mm.swapped:
        engine_stop(engine, b"invariant: counts of present and swapped pages", mm.present - change.discarded)


cdef void engine_stop_at(Engine *engine, const char *reason, long detail, int area, uint64_t at) noexcept nogil:
    """As engine_stop, of something at a place of a swap area, in bytes."""
    cdef char text[256]
    if detail != 0:
        snprintf(text, sizeof(text), b"%s: error (%ld), in swap area %d at byte %lu", reason, detail, area, at)
    else:
        snprintf(text, sizeof(text), b"%s, in swap area %d at byte %lu", reason, area, at)
    engine_stop(engine, text, 0)


cdef void engine_stop(Engine *engine, const char *reason, long detail) noexcept nogil:
    """The program must be stopped: the first reason is kept, and control() raises it."""
    pthread_mutex_lock(&engine.reason_lock)
    if engine.reason[0] == 0:
        if detail != 0:
            snprintf(engine.reason, REASON_BYTES, b"%s (%ld)", reason, detail)
        else:
            snprintf(engine.reason, REASON_BYTES, b"%s", reason)
    pthread_mutex_unlock(&engine.reason_lock)
    sys_signal_eventfd(engine.attention)
