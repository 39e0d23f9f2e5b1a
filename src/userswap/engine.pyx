# SPDX-License-Identifier: GPL-2.0-or-later
"""The door between Python and the data plane. Nothing of Python goes further than this file."""

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from posix.types cimport pid_t

from userswap.evict cimport evict_start, evict_stop
from userswap.fault cimport workers_start, workers_stop
from userswap.inject cimport USERSWAP_MOVE, Helper, helper_call, helper_end, helper_inject
from userswap.limit cimport limit_least, limit_set
from userswap.log cimport MAX_AREAS, log_deinit, log_init
from userswap.mappings cimport mappings_register
from userswap.mm cimport (
    MAX_CPUS,
    ROOM_EVENT,
    STOP_EVENT,
    Engine as EngineState,
    Mm,
    mm_end,
    mm_insert,
    mm_leave,
    mm_make,
    mm_next,
    mm_put,
)
from userswap.monitor cimport ENTER_TRIES, monitor_start, monitor_stop, process_wants_entry
from userswap.processes cimport Process, tree_deinit, tree_init
from userswap.space cimport space_deinit, space_init
from userswap.stores cimport file_store_init
from userswap.system cimport (
    EAGAIN,
    EINVAL,
    ENOMEM,
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLET,
    EPOLLIN,
    ESRCH,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP,
    UFFD_FEATURE_MOVE,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    eventfd,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_open_proc,
    sys_reserve,
    sys_signal_eventfd,
)
from userswap.types cimport BLOCK_BYTES, PAGE_SHIFT

cdef extern from "<unistd.h>" nogil:
    int close(int)
    int getpid()

cdef enum:
    STAGING_BYTES = 4 << 20

cdef uint64_t FEATURES = (
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP
    | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_MOVE
)


class EngineError(Exception):
    """The program cannot be served any longer (or not at all); the text is the reason, one line."""


cdef uint32_t _stamp_shift(int64_t limit_pages) noexcept nogil:
    """The unit of the eviction clock, so that its 12 bits span eight times the memory."""
    cdef uint32_t shift = 0
    while (limit_pages * 8) >> shift > 4096:
        shift += 1
    return shift


cdef int _bind(EngineState *engine, Mm *mm, pid_t pid, Helper *helper) noexcept nogil:
    """The helper works for this mm from now on. Returns 0 or -errno, the helper ended."""
    cdef int maps = sys_open_proc(helper.pid, b"maps")
    cdef int pagemap = sys_open_proc(helper.pid, b"pagemap")
    if maps < 0 or pagemap < 0:
        helper_end(helper)
        return -ESRCH
    pthread_mutex_lock(&mm.lock)
    mm.helper = helper[0]
    mm.maps = maps
    mm.pagemap = pagemap
    mm.pid = pid
    mm.parent = 0
    mm.entered = True
    pthread_mutex_unlock(&mm.lock)
    return 0


cdef bint _same_memory(Helper *helper) noexcept nogil:
    """Whether the helper's userfaultfd is of its own address space: only then does a move of nothing fail for
    the reason that there is nothing (and staging is empty)."""
    helper.mailbox.request = USERSWAP_MOVE
    helper.mailbox.mode = 0
    helper.mailbox.count = 1
    helper.mailbox.items[0].dst = helper.staging
    helper.mailbox.items[0].src = helper.staging + (1 << PAGE_SHIFT)
    helper.mailbox.items[0].len = 1 << PAGE_SHIFT
    return helper_call(helper) == 0 and helper.mailbox.items[0].result != -EINVAL


cdef int _adopt(EngineState *engine, Mm *mm, pid_t pid) noexcept nogil:
    """Makes a helper in the process if this address space, the kernel's word of a fork, is the process' own.

    Returns 0, -EINVAL if it is not, or another -errno."""
    cdef Helper helper
    cdef int result = helper_inject(pid, mm.uffd, FEATURES, STAGING_BYTES, &helper)
    if result != 0:
        return result
    close(helper.uffd)      # the mm has one
    helper.uffd = mm.uffd
    if not _same_memory(&helper):
        helper_end(&helper)
        return -EINVAL
    return _bind(engine, mm, pid, &helper)


cdef int _enter_new(EngineState *engine, pid_t pid, uint32_t *mm_id) noexcept nogil:
    cdef Helper helper
    cdef Mm *mm
    cdef int result = helper_inject(pid, -1, FEATURES, STAGING_BYTES, &helper)
    if result != 0:
        return result
    mm = mm_make(engine, helper.uffd, pid)
    if mm == NULL:
        close(helper.uffd)
        helper_end(&helper)
        return -ENOMEM
    result = _bind(engine, mm, pid, &helper)
    if result == 0:
        result = mm_insert(engine, mm)
    if result != 0:
        mm_leave(engine, mm)
        mm_put(engine, mm)
        return result
    mm_id[0] = mm.id
    mappings_register(engine, mm)
    return 0


cdef int _enter_forked(EngineState *engine, pid_t pid, pid_t parent, uint32_t *mm_id) noexcept nogil:
    """Tries the address spaces of forks that are nobody's yet: those of the process' parent, then the others
    (its parent may have died). Returns 0, -EINVAL if it has none of them, or another -errno."""
    cdef Mm *mm
    cdef uint32_t position
    cdef int turn
    cdef int result = -EINVAL
    for turn in range(2):
        position = 0
        while result == -EINVAL:
            mm = mm_next(engine, &position)
            if mm == NULL:
                break
            if mm.pid == 0 and not mm.dead and (mm.parent == parent) == (turn == 0):
                result = _adopt(engine, mm, pid)
                if result == 0:
                    mm_id[0] = mm.id
                    mappings_register(engine, mm)
            mm_put(engine, mm)
    return result


cdef int _enter(EngineState *engine, pid_t pid, pid_t parent, uint32_t *mm_id) noexcept nogil:
    """Makes a helper in the process and takes its memory into care. Returns 0 or -errno."""
    cdef int result = _enter_forked(engine, pid, parent, mm_id)
    return _enter_new(engine, pid, mm_id) if result == -EINVAL else result


cdef pid_t _next_to_enter(EngineState *engine, pid_t *parent) noexcept nogil:
    """The largest process that is to be entered, or 0."""
    cdef uint32_t at
    cdef pid_t pid = 0
    cdef int64_t most = 0
    cdef Process *process
    pthread_mutex_lock(&engine.tree.lock)
    for at in range(engine.tree.count):
        process = &engine.tree.processes[at]
        if process.anonymous > most and process_wants_entry(engine, process):
            most = process.anonymous
            pid = process.pid
            parent[0] = process.parent
    pthread_mutex_unlock(&engine.tree.lock)
    return pid


cdef bint _entered(EngineState *engine, pid_t pid, uint32_t mm_id, int result) noexcept nogil:
    """Notes how it went. True if the process is left alone from now on."""
    cdef uint32_t at
    cdef bint alone = False
    cdef Process *process
    pthread_mutex_lock(&engine.tree.lock)
    for at in range(engine.tree.count):
        process = &engine.tree.processes[at]
        if process.pid != pid or process.gone:
            continue
        if result == 0:
            process.mm_id = mm_id
            engine.counters.processes_attached += 1
        elif result == -ESRCH:
            process.gone = True
        elif result != -EAGAIN or process.tries >= ENTER_TRIES:
            process.left_alone = -result
            alone = True
        process.tries += 1
        break
    else:
        mm_id = 0
    pthread_mutex_unlock(&engine.tree.lock)
    return alone


cdef class Engine:
    """The engine of one tree of processes: its swapper space, its areas, its threads.

    ram_limit_bytes: what the tree and the engine may have resident together.
    areas: (fd, size in bytes) of each swap area in order of priority, opened O_RDWR | O_DIRECT; the fds stay
        the caller's and must stay open until close().
    front_pid: the process in front of this one, whose memory counts as the engine's.
    Raises EngineError when the limit is too small or memory is short."""

    cdef EngineState *_state
    cdef list _left_alone
    cdef dict _kept            # key of a userfaultfd: address of its Mm, referenced
    cdef bint _watching

    def __cinit__(self, ram_limit_bytes, areas, front_pid):
        cdef EngineState *engine
        cdef int64_t pages = ram_limit_bytes >> PAGE_SHIFT
        self._left_alone = []
        self._kept = {}
        self._state = engine = <EngineState *>sys_reserve(sizeof(EngineState))
        if engine == NULL:
            raise EngineError("no memory for the engine")
        if pages < limit_least(engine):
            raise EngineError(f"--ram is too small: the least is {limit_least(engine) >> 8}M")
        limit_set(engine, pages)
        engine.stamp_shift = _stamp_shift(pages)
        engine.mm_serial = 1
        pthread_mutex_init(&engine.table_lock, NULL)
        pthread_mutex_init(&engine.reason_lock, NULL)
        pthread_mutex_init(&engine.deferred_lock, NULL)
        if space_init(&engine.space) != 0 or log_init(&engine.log, &engine.space) != 0:
            raise EngineError("no memory for the swapper space")
        self._add_areas(areas)
        self._open(front_pid)

    def _add_areas(self, areas):
        cdef EngineState *engine = self._state
        for fd, size in areas:
            if engine.log.area_count == MAX_AREAS:
                raise EngineError(f"more than {MAX_AREAS} swap areas")
            result = file_store_init(&engine.log.areas[engine.log.area_count], fd, size)
            if result != 0:
                raise EngineError(f"swap area: {os.strerror(-result)}")
            engine.log.area_count += 1

    def _open(self, front_pid):
        cdef EngineState *engine = self._state
        cdef epoll_event event
        cdef int cpu
        cdef int cpus = min(os.sysconf("SC_NPROCESSORS_ONLN"), MAX_CPUS)
        engine.attention = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.room_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.own_statm = sys_open_proc(getpid(), b"statm")
        engine.front_statm = sys_open_proc(front_pid, b"statm")
        engine.zeros = <unsigned char *>sys_reserve(BLOCK_BYTES)
        if (min(engine.attention, engine.stop_event, engine.room_event, engine.own_statm, engine.front_statm) < 0
                or engine.zeros == NULL or tree_init(&engine.tree, getpid()) != 0):
            raise EngineError(f"the engine cannot start: {os.strerror(errno)}")
        for cpu in range(cpus):
            engine.epolls[cpu] = epoll_create1(EPOLL_CLOEXEC)
            if engine.epolls[cpu] < 0:
                raise EngineError(f"the engine cannot start: {os.strerror(errno)}")
            event.events = EPOLLIN
            event.data.u64 = STOP_EVENT
            epoll_ctl(engine.epolls[cpu], EPOLL_CTL_ADD, engine.stop_event, &event)
            event.events = EPOLLIN | EPOLLET
            event.data.u64 = ROOM_EVENT
            epoll_ctl(engine.epolls[cpu], EPOLL_CTL_ADD, engine.room_event, &event)
            engine.cpus += 1

    def watch(self, root_pid):
        """Starts the threads. From now on the tree is all that descends from this process; `root_pid` is the
        program. Raises EngineError."""
        cdef EngineState *engine = self._state
        engine.program = root_pid
        self._watching = True
        if workers_start(engine) != 0 or evict_start(engine) != 0 or monitor_start(engine) != 0:
            raise EngineError("the engine's threads cannot be started")

    def fileno(self):
        """An eventfd, readable when control() is to be called."""
        return self._state.attention

    def control(self):
        """Enters processes that are to be entered: ptrace, from the calling thread. Raises EngineError when the
        program must be stopped."""
        cdef EngineState *engine = self._state
        cdef pid_t pid
        cdef pid_t parent = 0
        cdef uint32_t mm_id = 0
        cdef int result
        cdef bint alone
        try:
            os.eventfd_read(engine.attention)
        except BlockingIOError:
            pass
        if engine.reason[0] != 0:
            raise EngineError((<bytes>engine.reason).decode(errors="replace"))
        while True:
            with nogil:
                pid = _next_to_enter(engine, &parent)
                result = _enter(engine, pid, parent, &mm_id) if pid != 0 else 0
                alone = _entered(engine, pid, mm_id, result) if pid != 0 else False
            if alone:
                self._left_alone.append((pid, _name(pid), os.strerror(-result)))
            if pid == 0 or result == -EAGAIN:
                return

    def keep(self):
        """New userfaultfds since the last call, as (key, fd): the front process is to hold a copy of each, so that
        swapped memory does not turn into zeros if this process dies."""
        cdef EngineState *engine = self._state
        cdef uint32_t position = 0
        cdef Mm *mm
        new = []
        while True:
            mm = mm_next(engine, &position)
            if mm == NULL:
                return new
            if mm.id in self._kept or mm.dead:
                mm_put(engine, mm)
            else:
                self._kept[mm.id] = <size_t>mm
                new.append((mm.id, mm.uffd))

    def dropped(self):
        """Keys of userfaultfds whose address space is gone: copies may be closed."""
        cdef EngineState *engine = self._state
        gone = [key for key, at in self._kept.items() if (<Mm *><size_t>at).dead]
        for key in gone:
            mm_put(engine, <Mm *><size_t>self._kept.pop(key))
        return gone

    def tree_alive(self):
        """Whether any address space that was entered is still in use."""
        cdef uint32_t position = 0
        cdef Mm *mm = mm_next(self._state, &position)
        if mm == NULL:
            return False
        mm_put(self._state, mm)
        return True

    def left_alone(self):
        """(pid, name, why) of each process that could not be entered."""
        return list(self._left_alone)

    def statistics(self):
        """The figures of the run so far, by the names that userswap.statistics documents."""
        cdef EngineState *engine = self._state
        cdef int at
        figures = {
            "ram_limit_bytes": engine.limit << PAGE_SHIFT,
            "resident_bytes": engine.resident << PAGE_SHIFT,
            "peak_resident_bytes": engine.resident_peak << PAGE_SHIFT,
            "swap_bytes": engine.log.slots_used * BLOCK_BYTES,
            "swap_peak_bytes": engine.log.slots_peak * BLOCK_BYTES,
            "entries": engine.space.entries,
        }
        figures.update(_counters(engine))
        for name in ("store_bytes_written", "store_writes", "store_bytes_read", "store_reads"):
            figures[name] = 0
        for at in range(engine.log.area_count):
            figures["store_bytes_written"] += engine.log.areas[at].bytes_written
            figures["store_writes"] += engine.log.areas[at].writes
            figures["store_bytes_read"] += engine.log.areas[at].bytes_read
            figures["store_reads"] += engine.log.areas[at].reads
        return figures

    def close(self):
        """Ends the threads and lets go of all address spaces: a program that still has swapped pages must have
        been ended before."""
        cdef EngineState *engine = self._state
        cdef uint32_t position = 0
        cdef Mm *mm
        if not self._watching:
            return
        self._watching = False
        engine.stopping = True
        sys_signal_eventfd(engine.stop_event)
        with nogil:
            workers_stop(engine)
            evict_stop(engine)
            monitor_stop(engine)
            while True:
                mm = mm_next(engine, &position)
                if mm == NULL:
                    break
                mm_leave(engine, mm)
                mm_end(engine, mm)
                mm_put(engine, mm)



def _name(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


cdef dict _counters(EngineState *engine):
    return engine.counters
