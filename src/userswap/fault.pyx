# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults: the threads that answer them, and the faults that wait for room.

Each CPU has threads of its own, pinned to it, which wait for the faults of all address spaces: waking a
thread on another CPU is the whole cost of a fault, so the one on the faulting CPU runs first and wins. How a
fault is answered is in fill.pyx and touch.pyx.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove

from userswap.codec cimport unpacker_deinit, unpacker_init
from userswap.events cimport event_read, events_await_parent, events_drain
from userswap.fill cimport fill_page
from userswap.limit cimport room_awaited, room_left, room_take
from userswap.load cimport load_add_scratch, load_remove_scratch
from userswap.mm cimport MAX_WORKERS, ROOM_EVENT, Deferred, copy_of, engine_stop, mm_get, mm_put
from userswap.pagetable cimport table_get, table_set
from userswap.system cimport (
    EAGAIN,
    PRIORITY_FAULT,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
    add_i64,
    load_u32,
    epoll_event,
    epoll_wait,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_name_thread,
    sys_page_absent,
    sys_pin_to_cpu,
    sys_prefer,
    sys_cpu_to_spare,
    sys_now_us,
    sys_poll_in,
    sys_reads_deinit,
    sys_reads_init,
    sys_since_us,
    sys_uffd_copy,
    sys_uffd_settled,
    sys_uffd_wake,
    uffd_msg,
)
from userswap.touch cimport touch_page, touch_takes_page, touch_unprotect
from userswap.watch cimport watch_in_vain, watch_served, watch_serving
from userswap.warm cimport warm_keep, warm_start, warm_stop
from userswap.types cimport PAGE_BYTES, PAGE_SHIFT, is_busy, is_present

cdef enum:
    THREADS_A_CPU = 2
    SOON_US = 60            # a fault after which the next one comes so soon is waited for
    EAGER_TURNS = 4         # ... unless so many times none came
    DEFERRED_LOOK = 256     # waiting faults among which the same one is looked for


# ---- a fault

cdef bint _is_there(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    """Whether a page that we think present is. If not, its value is set right: the kernel has dropped a page
    that MADV_FREE had given back before we knew of its mapping, or we have taken what was mapped at an address
    for a moment for what is mapped there now. Mm.lock is held, and no event is under way.

    The child of a fork that has no helper yet has no pagemap either: zeros are put in place, which the kernel
    refuses where there is a page."""
    cdef uint32_t value = table_get(mm.table, page)
    cdef int error = 0
    if not mm.entered and copy_of(engine, value) == 0:
        if sys_uffd_copy(mm.uffd, page << PAGE_SHIFT, engine.zeros, PAGE_BYTES, False, &error) == PAGE_BYTES:
            room_take(engine, 1)
            add_i64(&engine.counters.pages_vanished, 1)
        return True
    if not mm.entered or sys_page_absent(mm.pagemap, page) != 1:
        return True
    table_set(mm.table, page, copy_of(engine, value))
    mm.present -= 1
    if copy_of(engine, value) != 0:
        mm.swapped += 1
    add_i64(&engine.counters.pages_vanished, 1)
    return False


cdef int _serve_once(Worker *worker, Mm *mm, uint64_t address, uint64_t flags) noexcept nogil:
    """With Mm.lock held. 0 when the fault has its answer, or -EAGAIN."""
    cdef uint64_t page = address >> PAGE_SHIFT
    cdef uint32_t value = table_get(mm.table, page)
    if mm.dead or is_busy(value):
        return 0
    if flags & UFFD_PAGEFAULT_FLAG_WP:
        return touch_unprotect(worker, mm, page)
    if is_present(value) and sys_uffd_settled(mm.uffd) and not _is_there(worker.engine, mm, page):
        value = table_get(mm.table, page)
    if is_present(value):       # another thread's fault brought it
        sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
        return 0
    if value == 0:
        return touch_page(worker, mm, page)
    return fill_page(worker, mm, address, (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0)


cdef bint _wants_room(Engine *engine, Mm *mm, uint64_t page, uint64_t flags) noexcept nogil:
    """All faults do, but a write to a page that is present and the program's own. Mm.lock is held."""
    return not (flags & UFFD_PAGEFAULT_FLAG_WP) or touch_takes_page(engine, mm, table_get(mm.table, page))


cdef bint _may_overdraw(Engine *engine, Mm *mm, uint32_t thread) noexcept nogil:
    """Those that others wait for who are to make room: the helper, where it unshares pages, and the child of a fork
    that is being entered. (Amid a system call a thread cannot be stopped before its fault is served.)"""
    if mm.unsharing:
        return thread == mm.helper.mailbox.pid
    return engine.entering and not mm.entered and (
        engine.entering_of == 0 or mm.parent == 0 or mm.parent == engine.entering_of)


cdef bint _is_deferred(Engine *engine, uint32_t mm_id, uffd_msg *message) noexcept nogil:
    """A fault amid a system call is raised again and again once a signal is pending. deferred_lock is held."""
    cdef uint32_t at
    cdef uint32_t first = max(engine.deferred_first, engine.deferred_end - min(engine.deferred_end, DEFERRED_LOOK))
    for at in range(first, engine.deferred_end):
        if (engine.deferred[at].mm_id == mm_id
                and engine.deferred[at].message.arg.pagefault.address >> PAGE_SHIFT == (
                    message.arg.pagefault.address >> PAGE_SHIFT)
                and engine.deferred[at].message.arg.pagefault.flags == message.arg.pagefault.flags):
            return True
    return False


cdef void _serve(Worker *worker, Mm *mm, uffd_msg *message) noexcept nogil:
    pthread_mutex_lock(&mm.lock)
    _serve_locked(worker, mm, message)


cdef void _serve_locked(Worker *worker, Mm *mm, uffd_msg *message) noexcept nogil:
    """With Mm.lock held, which it lets go."""
    cdef uint64_t page = message.arg.pagefault.address >> PAGE_SHIFT
    cdef uint64_t flags = message.arg.pagefault.flags
    cdef int result
    while True:
        if room_left(worker.engine) < 1 and not _may_overdraw(
                worker.engine, mm, message.arg.pagefault.thread) and _wants_room(worker.engine, mm, page, flags):
            pthread_mutex_unlock(&mm.lock)
            _defer(worker.engine, mm, message)
            return
        result = _serve_once(worker, mm, message.arg.pagefault.address, flags)
        pthread_mutex_unlock(&mm.lock)
        if result != -EAGAIN:
            return
        events_drain(worker.engine, mm, worker)
        if worker.engine.stopping:
            return
        pthread_mutex_lock(&mm.lock)


cdef void _serve_pending(Worker *worker, Mm *mm) noexcept nogil:
    """Serves what mm_drain has kept while something else was served."""
    cdef uffd_msg message
    while worker.pending.count > 0 and not worker.engine.stopping:
        worker.pending.count -= 1
        message = worker.pending.messages[worker.pending.count]
        _serve(worker, mm, &message)


cdef bint _more_soon(Worker *worker, Mm *mm) noexcept nogil:
    """Waits a moment for the next message where they have followed each other and some CPU is idle, so that nobody
    else needs this one: to be woken for it takes twice as long."""
    cdef uint64_t start = sys_now_us()
    cdef uint32_t turn = 1
    while worker.eager > 0 and worker.engine.warmer_count == 0 and sys_since_us(start) < SOON_US:
        if sys_poll_in(mm.uffd, 0):
            return True
        if turn % 16 == 0 and not sys_cpu_to_spare(&worker.reads):
            return False
        turn += 1
    worker.eager -= worker.eager > 0
    return False


cdef void _serve_all(Worker *worker, Mm *mm) noexcept nogil:
    """Reads and serves until nothing is left: the descriptor is watched for edges. One that comes too late, as all that
    were woken but one do, does not take the lock from that one."""
    cdef bint any = False
    if mm.unsettled:
        events_await_parent(worker.engine, mm)
    while not worker.engine.stopping:
        if sys_poll_in(mm.uffd, 0) and _serve_next(worker, mm):
            any = True
        elif not any:
            watch_in_vain(worker, mm)
            return
        elif not _more_soon(worker, mm):
            return


cdef bint _serve_next(Worker *worker, Mm *mm) noexcept nogil:
    """False where no fault was left."""
    cdef Engine *engine = worker.engine
    cdef uffd_msg message
    pthread_mutex_lock(&mm.lock)
    if not event_read(engine, mm, &message):
        pthread_mutex_unlock(&mm.lock)
        return False
    if sys_since_us(engine.served_at) < SOON_US:
        worker.eager = EAGER_TURNS
        warm_keep(worker)
    watch_serving(worker, mm)
    _serve_locked(worker, mm, &message)
    _serve_pending(worker, mm)
    watch_served(mm)
    engine.served_at = sys_now_us()
    return True


# ---- faults that wait for room

cdef bint _has_place(Engine *engine) noexcept nogil:
    """Makes a place at the end of the queue: where others have been served, or new. deferred_lock is held."""
    cdef uint32_t room = 2 * engine.deferred_room + 256
    cdef void *grown
    if engine.deferred_end < engine.deferred_room:
        return True
    if engine.deferred_first > engine.deferred_room // 2:
        engine.deferred_end -= engine.deferred_first
        memmove(engine.deferred, &engine.deferred[engine.deferred_first], engine.deferred_end * sizeof(Deferred))
        engine.deferred_first = 0
        return True
    grown = realloc(engine.deferred, room * sizeof(Deferred))
    if grown != NULL:
        engine.deferred = <Deferred *>grown
        engine.deferred_room = room
    return grown != NULL


cdef void _defer(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil:
    pthread_mutex_lock(&engine.deferred_lock)
    if _is_deferred(engine, mm.id, message):
        pthread_mutex_unlock(&engine.deferred_lock)
        return
    if not _has_place(engine):
        pthread_mutex_unlock(&engine.deferred_lock)
        engine_stop(engine, b"no memory for messages", 0)
        return
    engine.deferred[engine.deferred_end].mm_id = mm.id
    engine.deferred[engine.deferred_end].message = message[0]
    engine.deferred_end += 1
    pthread_mutex_unlock(&engine.deferred_lock)
    room_awaited(engine)


cdef bint _take_deferred(Engine *engine, Deferred *fault) noexcept nogil:
    cdef bint found
    pthread_mutex_lock(&engine.deferred_lock)
    found = engine.deferred_first < engine.deferred_end
    if found:
        fault[0] = engine.deferred[engine.deferred_first]
        engine.deferred_first += 1
    if engine.deferred_first == engine.deferred_end:
        engine.deferred_first = 0
        engine.deferred_end = 0
    pthread_mutex_unlock(&engine.deferred_lock)
    return found


cdef void _serve_deferred(Worker *worker) noexcept nogil:
    """There is room again: the oldest first, as long as it lasts. Or a process is being entered: then each once, since
    one may be of a thread that cannot be stopped before it is served, amid process_vm_readv for instance."""
    cdef Engine *engine = worker.engine
    cdef Deferred fault
    cdef Mm *mm
    cdef uint32_t once = load_u32(&engine.deferred_end) - load_u32(&engine.deferred_first)
    while (room_left(engine) > 0 or (engine.entering and once > 0)) and not engine.stopping and _take_deferred(
            engine, &fault):
        once -= once > 0
        mm = mm_get(engine, fault.mm_id)
        if mm != NULL:
            _serve(worker, mm, &fault.message)
            _serve_pending(worker, mm)
            mm_put(engine, mm)


# ---- threads

cdef void *_worker_main(void *argument) noexcept nogil:
    cdef Worker *worker = <Worker *>argument
    cdef Engine *engine = worker.engine
    cdef epoll_event event
    cdef Mm *mm
    sys_name_thread(b"fault")
    sys_pin_to_cpu(worker.cpu)
    sys_prefer(0, PRIORITY_FAULT)
    sys_reads_init(&worker.reads, &engine.spinning if engine.may_spin else NULL)
    while not engine.stopping:
        if epoll_wait(engine.epolls[worker.cpu], &event, 1, -1) != 1:
            continue
        if event.data.u64 == ROOM_EVENT:
            _serve_deferred(worker)
            continue
        mm = mm_get(engine, <uint32_t>event.data.u64)
        if mm != NULL:
            _serve_all(worker, mm)
            mm_put(engine, mm)
    sys_reads_deinit(&worker.reads)
    return NULL


cdef Worker *worker_make(Engine *engine) noexcept nogil:
    """What fills pages in one thread, but for its reads. NULL without memory."""
    cdef Worker *worker = <Worker *>calloc(1, sizeof(Worker))
    if worker == NULL:
        return NULL
    if not load_add_scratch(engine):
        free(worker)
        return NULL
    worker.engine = engine
    unpacker_init(&worker.unpacker)
    return worker


cdef void worker_free(Worker *worker) noexcept nogil:
    load_remove_scratch(worker.engine)
    unpacker_deinit(&worker.unpacker)
    free(worker.pending.messages)
    free(worker)


cdef int workers_start(Engine *engine) noexcept nogil:
    """Returns 0 or -errno; workers_stop cleans up in both cases."""
    cdef int at
    cdef int count = min(engine.cpus * THREADS_A_CPU, <int>MAX_WORKERS)
    cdef Worker *worker
    for at in range(count):
        worker = worker_make(engine)
        if worker == NULL:
            return -12
        worker.cpu = at % engine.cpus
        engine.worker_state[at] = worker
        if pthread_create(&engine.workers[at], NULL, _worker_main, worker) != 0:
            worker_free(worker)
            return -12
        engine.worker_count += 1
    return warm_start(engine)


cdef void workers_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set, and each epoll has an event that says so."""
    cdef int at
    warm_stop(engine)
    for at in range(engine.worker_count):
        pthread_join(engine.workers[at], NULL)
        worker_free(engine.worker_state[at])
    engine.worker_count = 0
