# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks that are caught (catch.pyx): the engine's part. A thread of its own does what the tracer says.

From BIRTH_COMES to BIRTH_IS or BIRTH_IS_NOT it holds Mm.lock of the one that forks: nothing comes or goes there
meanwhile, and no event is read, so that whoever unmaps memory waits. So when the child is made, what the parent has is
what it had when its page tables were copied. It lasts two milliseconds.

If the engine dies meanwhile, Mm.forking tells the next one, which takes the lock before any other of its threads runs.
What the tracer has said last it hears once more."""

from libc.errno cimport EAGAIN, ENOMEM, ESRCH
from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport pid_t
from posix.unistd cimport close

from userswap.desk cimport BIRTH_COMES, BIRTH_IS, Births, line_answer, line_next
from userswap.enter cimport enter_verify
from userswap.forks cimport forks_caught, forks_caught_done
from userswap.inject cimport USERSWAP_MADVISE, USERSWAP_MAILBOX_SIZE, Helper, helper_call, helper_is_in, helper_take
from userswap.mappings cimport mappings_register, mappings_register_caught
from userswap.mm cimport WHOLE_TABLE_BITS, Mm, guard_of, mm_forget, mm_insert, mm_leave, mm_next, mm_put
from userswap.pagetable cimport table_get
from userswap.ranges cimport ranges_hit
from userswap.system cimport (
    PRIORITY_MONITOR,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_flag,
    sys_crash_point,
    sys_name_thread,
    sys_open_proc,
    sys_page_absent,
    sys_prefer,
    sys_process_dead,
    sys_shared_wake,
    sys_signal_eventfd,
)
from userswap.types cimport PAGE_BYTES, PAGE_SHIFT, is_present

cdef extern from *:
    """
    #include <signal.h>
    #include <sys/mman.h>
    """
    const int SIGKILL
    int kill(pid_t pid, int signal) nogil
    int munmap(void *start, size_t length) nogil

cdef enum:
    LOOK_US = 500000        # whether the engine is to end
    MADV_DONTNEED = 4


# ---- one that is about to fork

cdef bint _is_in(pid_t pid, Mm *mm) noexcept nogil:
    """Whether it is the process' own. Where the kernel does not say, since it must not be looked at any more, it may
    be: then it cannot be traced either, and does not get to fork."""
    cdef int same = helper_is_in(&mm.helper, pid)
    return same == 1 or (same < 0 and same != -ESRCH and mm.pid == pid)


cdef Mm *_mm_of(Engine *engine, pid_t pid) noexcept nogil:
    """The address space of a process, with a reference, or NULL. It may be another one's as well, through which it was
    entered (vfork)."""
    cdef uint32_t position = 0
    cdef Mm *mm
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL or (mm.entered and not mm.detached and _is_in(pid, mm)):
            return mm
        mm_put(engine, mm)


cdef bint _is_at_hand(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    """Whether a write to this page is no fault of ours."""
    cdef uint32_t value = table_get(mm.table, page)
    return not ranges_hit(&mm.ranges, page, page + 1) or (is_present(value) and guard_of(engine, value) == 0)


cdef int _hold(Engine *engine, const Births *births) noexcept nogil:
    cdef uint32_t at
    cdef Mm *mm
    cdef int result = 0
    if engine.forking != NULL:          # since an engine before
        return 0
    mm = _mm_of(engine, births.parent)
    if mm == NULL:
        return -ESRCH
    pthread_mutex_lock(&mm.lock)
    if not mm.entered or mm.dead or mm.detached:
        result = -ESRCH
    for at in range(births.place_count):
        if result == 0 and not _is_at_hand(engine, mm, births.places[at]):
            result = -EAGAIN
    if result == 0:
        store_flag(&mm.forking, True)
        engine.forking = mm
        sys_crash_point(b"birth-held")
        return 0
    pthread_mutex_unlock(&mm.lock)
    mm_put(engine, mm)
    return result


cdef void _let_go(Engine *engine) noexcept nogil:
    cdef Mm *mm = engine.forking
    if mm == NULL:
        return
    engine.forking = NULL
    store_flag(&mm.forking, False)
    pthread_mutex_unlock(&mm.lock)
    mm_put(engine, mm)


# ---- its child

cdef Mm *_known(Engine *engine, const Births *births) noexcept nogil:
    """The child's mm, with a reference, if an engine before has made it."""
    cdef uint32_t position = 0
    cdef Mm *mm
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL or mm.uffd == births.helper.uffd:
            return mm
        mm_put(engine, mm)


cdef int _drop_made(Mm *child, const Births *births) noexcept nogil:
    """Pages that the kernel has made where the child's are swapped: before they are registered, or its helper would
    wait for us. 0 or -errno."""
    cdef uint32_t at
    cdef uint32_t value
    for at in range(births.place_count):
        value = table_get(child.table, births.places[at])
        if value == 0 or is_present(value) or sys_page_absent(child.pagemap, births.places[at]) != 0:
            continue
        child.helper.mailbox.request = USERSWAP_MADVISE
        child.helper.mailbox.count = 1
        child.helper.mailbox.items[0].src = births.places[at] << PAGE_SHIFT
        child.helper.mailbox.items[0].dst = MADV_DONTNEED
        child.helper.mailbox.items[0].len = PAGE_BYTES
        if helper_call(&child.helper) != 0 or child.helper.mailbox.items[0].result != 0:
            return -ESRCH
    return 0


cdef void _unmake(Engine *engine, Mm *child) noexcept nogil:
    """One that is not in the table. Its helper and its userfaultfd are the tracer's."""
    engine.forking.young -= 1
    mm_forget(engine, child, 0, <uint64_t>1 << WHOLE_TABLE_BITS)
    close(child.maps)
    close(child.pagemap)
    munmap(child.helper.mailbox, USERSWAP_MAILBOX_SIZE)
    child.uffd = -1
    child.refs = 1
    mm_put(engine, child)


cdef Mm *_make(Engine *engine, const Births *births) noexcept nogil:
    """In the table, with a reference; or NULL: its helper is still the tracer's."""
    cdef Helper helper = births.helper
    cdef Mm *child
    if helper_take(&helper) != 0:
        return NULL
    child = forks_caught(engine, engine.forking, helper.uffd)
    if child == NULL:
        return NULL
    child.pid = births.child
    child.helper = helper
    child.maps = sys_open_proc(helper.pid, b"maps")
    child.pagemap = sys_open_proc(helper.pid, b"pagemap")
    child.entered = True
    child.binding = True
    child.unbound = True
    child.refs += 1
    sys_crash_point(b"birth-made")
    if (child.maps < 0 or child.pagemap < 0 or _drop_made(child, births) != 0
            or mappings_register_caught(child) != 0 or mm_insert(engine, child) != 0):
        _unmake(engine, child)
        return NULL
    sys_crash_point(b"birth-inserted")
    forks_caught_done(engine, engine.forking)
    return child


cdef int _bear(Engine *engine, const Births *births) noexcept nogil:
    cdef Mm *child = _known(engine, births)
    if child == NULL:
        if engine.forking == NULL:
            return -ESRCH
        child = _make(engine, births)
    _let_go(engine)
    if child == NULL:
        return -ENOMEM
    sys_crash_point(b"birth-let-go")
    if child.binding and not enter_verify(engine, child):
        kill(births.child, SIGKILL)     # it is still held
        mm_leave(engine, child)
    else:
        mappings_register(engine, child)
        engine.any_unbound = True
        sys_signal_eventfd(engine.attention)        # there is a new userfaultfd to keep
    mm_put(engine, child)
    return 0


# ---- which process it is: the monitor's

cdef void births_bind(Engine *engine) noexcept nogil:
    """Children that the monitor knows by now; or that end, or run another program, before."""
    cdef uint32_t position = 0
    cdef uint32_t at
    cdef bint any = False
    cdef Mm *mm
    if not engine.any_unbound:
        return
    engine.any_unbound = False
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            break
        if mm.unbound and not mm.binding and mm.entered:
            for at in range(engine.tree.look.count):
                if engine.tree.look.items[at].pid == mm.pid and engine.tree.look.items[at].mm_id == 0:
                    engine.tree.look.items[at].mm_id = mm.id
                    mm.unbound = False
            if mm.unbound and (sys_process_dead(mm.helper.target_pidfd)
                               or helper_is_in(&mm.helper, mm.pid) == 0):
                mm.unbound = False
                mm_leave(engine, mm)
        any = any or mm.unbound
        mm_put(engine, mm)
    if any:
        engine.any_unbound = True


# ---- the thread

cdef void *_births_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    cdef Births *births = &engine.desk.births
    cdef int result
    sys_name_thread(b"births")
    sys_prefer(0, PRIORITY_MONITOR)
    while not engine.stopping:
        if not line_next(&births.line, LOOK_US):
            continue
        if births.what == BIRTH_COMES:
            result = _hold(engine, births)
        elif births.what == BIRTH_IS:
            result = _bear(engine, births)
        else:
            _let_go(engine)
            result = 0
        sys_crash_point(b"birth-answered")
        line_answer(&births.line, result)
    return NULL


cdef void births_resume(Engine *engine) noexcept nogil:
    """Before any other thread runs: takes the lock that an engine before has held. But where it had made the child
    already, all that is left to do is done without."""
    cdef uint32_t position = 0
    cdef Mm *mm
    cdef Mm *child
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return
        if mm.forking:
            child = _known(engine, &engine.desk.births) if engine.desk.births.what == BIRTH_IS else NULL
            if child == NULL:
                pthread_mutex_lock(&mm.lock)
                engine.forking = mm
                return
            forks_caught_done(engine, mm)
            mm_put(engine, child)
            store_flag(&mm.forking, False)
        mm_put(engine, mm)


cdef int births_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); births_stop cleans up in both cases."""
    if not engine.desk.births.caught:
        return 0
    engine.births_run = pthread_create(&engine.births, NULL, _births_main, engine) == 0
    return 0 if engine.births_run else -11


cdef void births_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set."""
    sys_shared_wake(&engine.desk.births.line.asked)
    if engine.births_run:
        pthread_join(engine.births, NULL)
