# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering: a process whose tree nears the limit gets a helper, and its memory into the engine's care.

A process is entered through ptrace, in a few hundred microseconds of which one of its threads is held for a
fraction. The address space of a fork child has been the engine's since the fork (its userfaultfd came with
the event), but nobody says which process it belongs to; that is found out here.

A process that has mapped more than there is room for can go over the limit within one call: one read of a large file
into fresh memory, amid which no thread of it can be stopped. So it is entered as soon as that is seen, and its memory
registered when the limit is near, which can be done from outside, amid a call too.

A thread of its own sees to it, one process after the other, as the monitor asks: the victim may be amid a call that
nobody can interrupt, and meanwhile others fork. What is done by ptrace it has done by the tracer (desk.pxd).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.types cimport pid_t
from posix.unistd cimport close

from userswap.events cimport events_await_parent, events_drain
from userswap.desk cimport desk_await, desk_discard, desk_let_go, desk_make, desk_taken
from userswap.inject cimport HELPER_STAGING, Helper, helper_end, helper_features, helper_is_in
from userswap.limit cimport limit_near, limit_reached_by
from userswap.log cimport log_populate
from userswap.mappings cimport mappings_register, mappings_verify
from userswap.mm cimport MAX_LEFT_ALONE, Entry, LeftAlone, Mm, mm_insert, mm_leave, mm_make, mm_next, mm_put
from userswap.processes cimport NAME_BYTES, Process, tree_is_own
from userswap.spare cimport spare_look
from userswap.system cimport (
    EAGAIN,
    EINVAL,
    ENOMEM,
    ESRCH,
    FOR_EVER_US,
    PRIORITY_MONITOR,
    add_i64,
    load_u32,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_flag,
    sys_crash_point,
    sys_futex_advance,
    sys_futex_wait,
    sys_has_only_forked,
    sys_name_thread,
    sys_open_proc,
    sys_prefer,
    sys_signal_eventfd,
    sys_since_us,
    sys_sleep_us,
)

cdef enum:
    SETTLE_US = 20000
    ENTER_PAGES = 512           # smaller processes are not worth a helper
    ENTER_TRIES = 50
    VERIFY_TRIES = 200


cdef int _make_helper(Engine *engine, pid_t pid, int uffd, Helper *helper) noexcept nogil:
    cdef int result
    cdef uint64_t features = helper_features(not engine.desk.births.caught)
    pthread_mutex_lock(&engine.desk_lock)
    result = desk_make(engine.desk, &engine.stopping, pid, uffd, features, HELPER_STAGING, limit_near(engine), helper)
    pthread_mutex_unlock(&engine.desk_lock)
    return result


cdef int _bind(Engine *engine, Mm *mm, pid_t pid, Helper *helper) noexcept nogil:
    """The helper works for this mm from now on. Returns 0 or -errno, the helper ended."""
    cdef int maps = sys_open_proc(helper.pid, b"maps")
    cdef int pagemap = sys_open_proc(helper.pid, b"pagemap")
    if maps < 0 or pagemap < 0:
        close(maps)
        close(pagemap)
        desk_taken(engine.desk)
        helper_end(helper)
        return -ESRCH
    pthread_mutex_lock(&mm.lock)
    store_flag(&mm.binding, True)
    mm.helper = helper[0]
    mm.maps = maps
    mm.pagemap = pagemap
    mm.pid = pid
    mm.parent = 0
    sys_crash_point(b"enter-bind")
    store_flag(&mm.entered, True)       # all of it is there
    pthread_mutex_unlock(&mm.lock)
    return 0


cdef bint enter_verify(Engine *engine, Mm *mm) noexcept nogil:
    """What is known of a fork child becomes true, after its helper has been bound. False where it changes its mappings
    all the time: it is to be left, and then is served, but not evicted."""
    cdef int _turn
    events_await_parent(engine, mm)
    for _turn in range(VERIFY_TRIES):
        if mappings_verify(engine, mm):
            store_flag(&mm.binding, False)
            return True
        events_drain(engine, mm, NULL)
        sys_sleep_us(100)
    mm.pid = 0
    return False


cdef int _adopt(Engine *engine, Mm *mm, pid_t pid) noexcept nogil:
    """Makes a helper in the process if this address space, the kernel's word of a fork, is the process' own.

    Returns 0, -EINVAL if it is not, or another -errno."""
    cdef Helper helper
    cdef int result = _make_helper(engine, pid, mm.uffd, &helper)
    if result != 0:
        return result
    engine.desk.helper.uffd = -1    # before it is closed: the mm has one
    close(helper.uffd)
    helper.uffd = mm.uffd
    result = _bind(engine, mm, pid, &helper)
    desk_taken(engine.desk)
    sys_crash_point(b"enter-unverified")
    if result == 0 and not enter_verify(engine, mm):
        mm_leave(engine, mm)
        return -EAGAIN
    return result


cdef void _take_care(Engine *engine, Mm *mm) noexcept nogil:
    """Of memory that is there already, if it is time."""
    if limit_near(engine):
        spare_look(engine, mm)
        mappings_register(engine, mm)


cdef int _enter_new(Engine *engine, pid_t pid, uint32_t *mm_id) noexcept nogil:
    cdef Helper helper
    cdef Mm *mm
    cdef int result = _make_helper(engine, pid, -1, &helper)
    if result != 0:
        return result
    mm = mm_make(engine, helper.uffd, pid)
    if mm == NULL:
        desk_taken(engine.desk)
        close(helper.uffd)
        helper_end(&helper)
        return -ENOMEM
    result = _bind(engine, mm, pid, &helper)
    if result == 0:
        sys_crash_point(b"enter-bound")
        mm.binding = False
        result = mm_insert(engine, mm)
    desk_taken(engine.desk)
    if result != 0:
        mm_leave(engine, mm)
        mm_put(engine, mm)
        return result
    sys_crash_point(b"enter-inserted")
    mm_id[0] = mm.id
    _take_care(engine, mm)
    return 0


cdef void _await_forks(Engine *engine) noexcept nogil:
    """A process that is there has been told of, if it comes of a fork: its parent went on because the event was read,
    and that is applied under the same hold of its lock. To enter it as a new one would give one address space two mms,
    neither of which knew all of it."""
    cdef uint32_t position = 0
    cdef Mm *mm
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return
        pthread_mutex_lock(&mm.lock)
        pthread_mutex_unlock(&mm.lock)
        mm_put(engine, mm)


cdef int _enter_forked(Engine *engine, pid_t pid, pid_t parent, uint32_t *mm_id) noexcept nogil:
    """Tries the address spaces of forks that are nobody's yet: those of the process' parent, then the others
    (its parent may have died). Returns 0, -EINVAL if it has none of them, or another -errno."""
    cdef Mm *mm
    cdef uint32_t position
    cdef int turn
    cdef int result = -EINVAL
    while engine.finishing != 0 and not engine.stopping:
        sys_sleep_us(100)       # one that is to be left then may be the one
    _await_forks(engine)
    for turn in range(2):
        if turn == 1 and engine.entering_of != 0:
            _may_overdraw(engine, True, 0)
        position = 0
        while result == -EINVAL:
            mm = mm_next(engine, &position)
            if mm == NULL:
                break
            if mm.pid == 0 and not mm.dead and (mm.parent == parent) == (turn == 0):
                result = _adopt(engine, mm, pid)
                if result == 0:
                    mm_id[0] = mm.id
                    _take_care(engine, mm)
            mm_put(engine, mm)
    return result


cdef bint _is_entered(Engine *engine, pid_t pid, uint32_t *mm_id) noexcept nogil:
    """Whether it has been: a child of a fork that was caught is, before the monitor knows of it."""
    cdef uint32_t position = 0
    cdef Mm *mm
    cdef bint found = False
    while not found:
        mm = mm_next(engine, &position)
        if mm == NULL:
            break
        found = mm.entered and mm.pid == pid and helper_is_in(&mm.helper, pid) == 1
        if found:
            mm.unbound = False
            mm_id[0] = mm.id
        mm_put(engine, mm)
    return found


cdef int _enter(Engine *engine, pid_t pid, pid_t parent, uint32_t *mm_id) noexcept nogil:
    """Makes a helper in the process and takes its memory into care. Returns 0 or -errno."""
    cdef int result
    if _is_entered(engine, pid, mm_id):
        return 0
    result = _enter_forked(engine, pid, parent, mm_id)
    return _enter_new(engine, pid, mm_id) if result == -EINVAL else result


cdef bint _wants_entry(Engine *engine, Process *process, bint near) noexcept nogil:
    if not near and not process.wanted and (process.put_off or not limit_reached_by(engine, process.untouched)):
        return False
    if (process.gone or process.mm_id != 0 or process.entering or process.shares or process.unsure or process.helper
            or process.starting or process.left_alone
            or (process.anonymous < ENTER_PAGES and not process.wanted)):
        return False
    if process.wanted:
        return True
    # Most forked children end or run another program in a moment.
    if sys_since_us(process.found_at) > SETTLE_US:
        return True
    return not engine.counters.forks if near else not sys_has_only_forked(process.pid)


cdef void _leave_alone(Engine *engine, Process *process, int error) noexcept nogil:
    cdef LeftAlone *note
    process.left_alone = True
    process.refused = error
    pthread_mutex_lock(&engine.reason_lock)
    if engine.left_alone_count < MAX_LEFT_ALONE:
        note = &engine.left_alone[engine.left_alone_count]
        note.pid = process.pid
        note.error = error
        memcpy(note.name, process.name, NAME_BYTES)
        engine.left_alone_count += 1
    pthread_mutex_unlock(&engine.reason_lock)


# ---- the thread that does it, and what the monitor asks of it

cdef void _prepare(Engine *engine) noexcept nogil:
    """What the engine will need itself, before memory is short."""
    if not engine.prepared and limit_near(engine):
        log_populate(&engine.log)
        engine.prepared = True


cdef void _may_overdraw(Engine *engine, bint may, pid_t parent) noexcept nogil:
    """A thread that is to be stopped may be amid a fault: it is answered whether there is room or not. So are those of
    all children of its parent (0: all that have no helper yet), as nobody knows which address space is its own."""
    engine.entering_of = parent
    engine.entering = may
    if may:
        sys_signal_eventfd(engine.room_event)


cdef void _end_late_helper(Engine *engine) noexcept nogil:
    """Once the tracer has done what an engine before had asked for: nobody has got to know of that helper."""
    _may_overdraw(engine, True, 0)
    desk_await(engine.desk, &engine.stopping)
    _may_overdraw(engine, False, 0)
    if engine.stopping or engine.desk.line.result != 0 or engine.desk.helper.pid <= 0:
        return
    desk_discard(engine.desk)
    desk_taken(engine.desk)


cdef void *_enter_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    cdef Entry *entry = &engine.entry
    cdef uint32_t seen
    sys_name_thread(b"enter")
    sys_prefer(0, PRIORITY_MONITOR)
    if engine.desk_late:
        _end_late_helper(engine)
    while True:
        seen = load_u32(&entry.asked)
        if engine.stopping:
            break
        if entry.pid == 0 or entry.done:
            _prepare(engine)        # not before: it takes as long as it takes a program to outgrow a small limit
            sys_futex_wait(&entry.asked, seen, FOR_EVER_US)
            continue
        _may_overdraw(engine, True, 0 if entry.again else entry.parent)
        entry.result = -ESRCH if tree_is_own(&engine.tree, entry.pid) else _enter(
            engine, entry.pid, entry.parent, &entry.mm_id)
        desk_let_go(engine.desk)
        _may_overdraw(engine, False, 0)
        entry.done = True
    return NULL


cdef void _entered(Engine *engine, Process *process, Entry *entry) noexcept nogil:
    process.entering = False
    process.tries += 1
    if entry.result == 0:
        process.mm_id = entry.mm_id
        add_i64(&engine.counters.processes_attached, 1)
        sys_signal_eventfd(engine.attention)        # there is a new userfaultfd to keep
    elif entry.result == -ESRCH:
        process.gone = True
    elif entry.early and not process.wanted:
        process.put_off = True
        process.tries = 0
    elif entry.result != -EAGAIN or process.tries >= ENTER_TRIES:
        _leave_alone(engine, process, -entry.result)


cdef Process *_best(Engine *engine, bint near) noexcept nogil:
    """The largest process that uses memory worth evicting; what could not be entered has to wait for its turn."""
    cdef uint32_t at
    cdef Process *best = NULL
    cdef Process *process
    for at in range(engine.tree.look.count):
        process = engine.tree.look.items[at]
        if _wants_entry(engine, process, near) and (best == NULL or process.tries < best.tries or (
                process.tries == best.tries and process.anonymous > best.anonymous)):
            best = process
    return best


cdef void enter_next(Engine *engine, bint near) noexcept nogil:
    """Sees to it that processes are entered, one after the other: those that use memory where it is short, and before
    that those that may take all that is left. The monitor's, at each look; does not wait."""
    cdef Entry *entry = &engine.entry
    cdef Process *best
    cdef uint32_t at
    if entry.pid != 0 and not entry.done:
        return
    for at in range(engine.tree.look.count):
        if engine.tree.look.items[at].entering:
            _entered(engine, engine.tree.look.items[at], entry)
    entry.pid = 0
    best = _best(engine, near)
    if best == NULL:
        if near and not engine.prepared:
            sys_futex_advance(&entry.asked)
        return
    best.entering = True
    entry.parent = best.parent
    entry.again = best.tries > 0
    entry.early = not near
    entry.mm_id = 0
    entry.done = False
    entry.pid = best.pid
    sys_futex_advance(&entry.asked)


cdef int enter_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); enter_stop cleans up in both cases."""
    engine.enterer_runs = pthread_create(&engine.enterer, NULL, _enter_main, engine) == 0
    return 0 if engine.enterer_runs else -11


cdef void enter_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set."""
    sys_futex_advance(&engine.entry.asked)
    if engine.enterer_runs:
        pthread_join(engine.enterer, NULL)
