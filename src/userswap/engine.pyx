# SPDX-License-Identifier: GPL-2.0-or-later
"""The door between Python and the data plane. Nothing of Python goes further than this file."""

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from userswap.arena cimport (
    arena_begin,
    arena_close,
    arena_fd,
    arena_open,
    arena_reserve,
    arena_set_root,
    buffers_begin,
    buffers_drop_unclaimed,
    buffers_fd,
)
from userswap.check cimport check_ended
from userswap.cipher cimport KEY_BYTES, cipher_available, cipher_make_key
from userswap.desk cimport Desk
from userswap.detach cimport detach_process
from userswap.births cimport births_resume, births_start, births_stop
from userswap.enter cimport enter_start, enter_stop
from userswap.evict cimport evict_start, evict_stop
from userswap.fault cimport workers_start, workers_stop
from userswap.limit cimport limit_change, limit_least, limit_set
from userswap.log cimport (
    BUFFERS_APART,
    BUFFERS_MAX,
    BUFFERS_MIN,
    BUFFERS_PACKING,
    MAX_AREAS,
    NO_BLOCK,
    OPENS,
    Log,
    log_init,
)
from userswap.mm cimport (
    ENTRIES_FOR_EVER,
    MAX_CPUS,
    ROOM_EVENT,
    STOP_EVENT,
    Engine as EngineState,
    LeftAlone,
    Mm,
    mm_end,
    mm_leave,
    mm_next,
    mm_put,
    mms_unclaimed,
)
from userswap.monitor cimport monitor_start, monitor_stop
from userswap.pack cimport pack_init
from userswap.processes cimport (
    ROOTS_MAX,
    Tree,
    tree_add_own,
    tree_attach,
    tree_init,
    tree_leave_out,
    tree_measure_own,
    tree_remove_own,
)
from userswap.readahead cimport readahead_most
from userswap.reclaim cimport reclaim_stamp_shift
from userswap.sampler cimport sampler_await, sampler_start, sampler_stop
from userswap.space cimport space_allocate, space_init
from userswap.stores cimport store_end_waits
from userswap.swapoff cimport Progress, swapoff_area, swapoff_lacks, swapon_area
from userswap.takeover cimport takeover_all, takeover_area, takeover_begin, takeover_claim, takeover_damage
from userswap.tier cimport tier_measure, tier_spare, tier_unspare
from userswap.system cimport (
    EFD_CLOEXEC,
    ENOMEM,
    ENOSPC,
    ESRCH,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLET,
    EPOLLIN,
    UFFD_EVENT_FORK,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    eventfd,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_lock_memory,
    sys_reserve,
    sys_signal_eventfd,
)
from userswap.trace cimport TRACE_LIMIT, trace_flush, trace_make, trace_span
from userswap.types cimport BLOCK_BYTES, CACHED, COUNT_EVER, FILLED, PAGE_SHIFT, entry_make

cdef enum:
    STUCK_SECONDS = 20


class EngineError(Exception):
    """The program cannot be served any longer (or not at all); the text is the reason, one line."""


cdef int64_t _limit_pages(ram_limit_bytes) except -1:
    cdef int64_t pages = ram_limit_bytes >> PAGE_SHIFT
    if pages < limit_least():
        raise EngineError(f"--ram is too small: the least is {limit_least() >> 8}M")
    return pages


cdef int _buffers(int64_t limit_pages, bint packing, bint apart) noexcept nogil:
    """Blocks of memory for what is being packed, or on its way out or in."""
    return (<int>_clamp(limit_pages >> 13, BUFFERS_MIN, BUFFERS_MAX) + packing * BUFFERS_PACKING
            + apart * (1 + packing) * BUFFERS_APART)


cdef int64_t _clamp(int64_t value, int64_t least, int64_t most) noexcept nogil:
    return min(max(value, least), most)


cdef extern from "layout.h":
    const uint64_t USERSWAP_LAYOUT


def layout():
    """The digest of all structures. An engine takes over from one of the same layout only."""
    return f'{USERSWAP_LAYOUT:016x}'


cdef class Engine:
    """The engine of one tree of processes: its swapper space, its areas, its threads.

    ram_limit_bytes: what the tree and the engine may have resident together.
    keeper_pid: the keeper; all below it that is not ours is the tree.
    own_pids: the processes that are ours, this one included. Their memory counts.
    desk: where the tracer is asked (Tracer.desk).
    may_spin: threads may look again and again for what they wait for, where a CPU is idle.
    entry_bits: the layout of entries, 64 or 32.
    left: what an engine that died has left, to go on with: its files(), and of each area what it had open and what is
        open for it now, as (fd then, fd, shared). None for a new one. The rest is as it was for that engine.
    encrypt: what goes to swap areas, with a key that nobody else has.
    drops_behind: what streams leave behind may be evicted first.
    trace: a file that is open for appending: what is to be recorded of the run. -1: nothing.
    Raises EngineError when the limit is too small or memory is short."""

    cdef EngineState *_state
    cdef bint _watching
    cdef bint _took_over
    cdef Progress[16] _progress     # MAX_AREAS

    def __cinit__(self, ram_limit_bytes, keeper_pid, own_pids, size_t desk, may_spin, entry_bits=64, left=None,
                  encrypt=False, drops_behind=False, int trace=-1):
        cdef EngineState *engine
        cdef EngineState *old = NULL
        cdef int64_t pages = _limit_pages(ram_limit_bytes)
        sys_lock_memory()
        if left is not None:
            old = <EngineState *>arena_open(left[0])
            if old == NULL:
                raise EngineError("what the engine before has left cannot be read")
        if arena_begin() != 0 or buffers_begin(-1 if left is None else left[1]) != 0:
            raise EngineError("no files in memory can be had for the engine")
        if old != NULL and takeover_claim(old) != 0:
            raise EngineError("what the engine before has left is damaged")
        self._state = engine = <EngineState *>arena_reserve(sizeof(EngineState))
        if engine == NULL:
            raise EngineError("no memory for the engine")
        limit_set(engine, pages)
        engine.stamp_shift = reclaim_stamp_shift(pages)
        engine.mm_serial = 1
        engine.may_spin = may_spin
        engine.checking = "USERSWAP_CHECK" in os.environ
        engine.packing = os.environ.get("USERSWAP_PACK") != "0"
        engine.stuck_us = int(os.environ.get("USERSWAP_STUCK_SECONDS", STUCK_SECONDS)) * 1000000
        engine.drops_behind = drops_behind
        if trace >= 0:
            engine.trace = trace_make(trace)
            if engine.trace == NULL:
                raise EngineError("no memory for the trace")
            trace_span(engine.trace, TRACE_LIMIT, 0, pages, 1)
        engine.window_most = readahead_most(pages)
        pthread_mutex_init(&engine.table_lock, NULL)
        pthread_mutex_init(&engine.reason_lock, NULL)
        pthread_mutex_init(&engine.desk_lock, NULL)
        pthread_mutex_init(&engine.deferred_lock, NULL)
        pthread_mutex_init(&engine.returns_lock, NULL)
        pthread_mutex_init(&engine.scratch_lock, NULL)
        apart = pages >> 13 >= BUFFERS_MAX or "USERSWAP_APART" in os.environ
        if space_init(&engine.space, entry_bits) != 0 or log_init(
                &engine.log, &engine.space, _buffers(pages, engine.packing, apart)) != 0 or pack_init(
                &engine.pack) != 0:
            raise EngineError("no memory for the swapper space")
        engine.log.apart = apart
        if encrypt:
            self._encrypt(old)
        engine.zero_offset = space_allocate(&engine.space, entry_make(FILLED, COUNT_EVER, 0))
        engine.shared_offset = space_allocate(&engine.space, entry_make(CACHED, COUNT_EVER, 0))
        engine.hot_offset = space_allocate(&engine.space, entry_make(CACHED, COUNT_EVER, 0))
        engine.desk = <Desk *>desk
        self._open(keeper_pid)
        for pid in own_pids:
            tree_add_own(&engine.tree, pid)
        if old != NULL:
            self._take_over(old, left[2])
        arena_set_root(engine)

    cdef _encrypt(self, EngineState *old):
        cdef Log *log = &self._state.log
        if not cipher_available():
            raise EngineError("no library to encrypt with: libcrypto.so.3")
        if old == NULL and cipher_make_key(log.key) != 0:
            raise EngineError("no random key can be had")
        if old != NULL:
            memcpy(log.key, old.log.key, KEY_BYTES)
            log.mediums = old.log.mediums
        log.encrypts = True

    cdef _take_over(self, EngineState *old, areas):
        cdef EngineState *engine = self._state
        cdef int area
        cdef int result = 0
        now = {then: (fd, shared) for then, fd, shared in areas}
        for area in range(min(old.log.area_count, <int>MAX_AREAS)):
            engine.log.area_count = area + 1
            engine.log.areas[area].gone = old.log.areas[area].gone
            if not old.log.areas[area].gone:
                fd, shared = now.get(old.log.areas[area].fd, (-1, -1))
                result = result or takeover_area(engine, old, area, fd, shared)
        if result == 0:
            result = takeover_all(engine, old)
        if result != 0:
            damage = (<bytes>takeover_damage()).decode() or os.strerror(-result)
            raise EngineError(f"what the engine before has left cannot be taken over: {damage}")
        self._took_over = True

    def files(self):
        """What another engine needs to go on after this one: descriptors of two files in memory."""
        return arena_fd(), buffers_fd()

    def open_files(self):
        """The descriptors that its state speaks of, as a set. An engine that takes over needs no others of those that
        the one before had."""
        cdef EngineState *engine = self._state
        cdef uint32_t position = 0
        cdef Mm *mm
        cdef int at
        found = {arena_fd(), buffers_fd()}
        if engine.trace != NULL:
            found.add(engine.trace.fd)
        if engine.desk.helper.pid > 0:
            found |= {engine.desk.helper.uffd, engine.desk.helper.pidfd, engine.desk.helper.target_pidfd,
                      engine.desk.helper.mailbox_fd}
        for at in range(engine.log.area_count):
            if not engine.log.areas[at].gone:
                found.add(engine.log.areas[at].fd)
        while True:
            mm = mm_next(engine, &position)
            if mm == NULL:
                return found
            found.add(mm.uffd)
            if mm.event.event == UFFD_EVENT_FORK:
                found.add(<int>mm.event.arg.fork.ufd)
            if mm.entered:
                found |= {mm.maps, mm.pagemap}
            if mm.helper.pid > 0:
                found |= {mm.helper.uffd, mm.helper.pidfd, mm.helper.target_pidfd, mm.helper.mailbox_fd}
            mm_put(engine, mm)

    def flush_trace(self):
        """Writes what has been recorded until now. Raises OSError where the trace has ended, as it could not be
        written; it does not go on."""
        cdef int error
        with nogil:
            error = trace_flush(self._state.trace)
        if error:
            raise OSError(error, os.strerror(error))

    def area_files(self):
        """The number of each swap area, by its descriptor."""
        cdef Log *log = &self._state.log
        cdef int at
        pthread_mutex_lock(&log.lock)
        found = {log.areas[at].fd: at for at in range(log.area_count) if not log.areas[at].gone}
        pthread_mutex_unlock(&log.lock)
        return found

    def change_limit(self, ram_limit_bytes):
        """Another limit, at any time. Where it is lower what is too much is evicted, and faults wait meanwhile. Raises
        EngineError when it is too small."""
        limit_change(self._state, _limit_pages(ram_limit_bytes))
        tier_measure(self._state)

    def swapon(self, int fd, uint64_t size, int priority, bint frees, int shared=-1):
        """Adds a swap area, at any time; returns its number. Higher priorities are used first, equal ones in the order
        in which they came. `frees`: pages that come in from it give up their copies at once, not when it fills. The fd
        is open O_RDWR | O_DIRECT; or, with the file in memory `shared`, the socket to a process of store_process.py.
        It stays the caller's, to be closed after swapoff() or close()."""
        result = swapon_area(&self._state.log, fd, shared, size, priority, frees)
        if result == -ENOSPC:
            raise EngineError(f"more than {MAX_AREAS} swap areas")
        if result < 0:
            raise EngineError(f"swap area: {os.strerror(-result)}")
        return result

    def swapoff(self, int area):
        """Moves all that an area holds to the others, or into memory, and forgets it. To be called by a thread of its
        own: it lasts. Raises OSError, with the area in use as before: ENOSPC (at once) where these cannot hold it,
        ECANCELED after cancel_swapoff(), or what the medium says."""
        cdef int result
        cdef Progress *progress = &self._progress[area]
        memset(progress, 0, sizeof(Progress))
        with nogil:
            progress.memory_blocks = tier_spare(self._state, swapoff_lacks(&self._state.log, area))
            result = swapoff_area(&self._state.log, &self._state.pack, area, progress)
            tier_unspare(self._state, progress.memory_blocks - progress.kept_blocks)
        if result != 0:
            raise OSError(-result, os.strerror(-result))

    def end_waits(self):
        """No thread waits any more for a process that keeps blocks. The tree has ended: nobody wants what they
        keep."""
        cdef Log *log = &self._state.log
        cdef int at
        pthread_mutex_lock(&log.lock)
        for at in range(log.area_count):
            store_end_waits(&log.areas[at])
        pthread_mutex_unlock(&log.lock)

    def add_own(self, int pid):
        """A process counts as the engine's own, and is not of the tree; nor is what it starts. Nothing, if it is gone
        already, or too many are: then it counts as one of the tree, which is never entered (Tracer.spare)."""
        tree_add_own(&self._state.tree, pid)

    def own_processes(self):
        """The pids of those that are ours."""
        cdef Tree *tree = &self._state.tree
        pthread_mutex_lock(&tree.lock)
        pids = [tree.own[at].pid for at in range(tree.own_count)]
        pthread_mutex_unlock(&tree.lock)
        return pids

    def processes(self):
        """The pids of the tree, as it was last looked at."""
        cdef Tree *tree = &self._state.tree
        cdef uint32_t at
        pthread_mutex_lock(&tree.lock)
        pids = [tree.all.items[at].pid for at in range(tree.all.count) if not tree.all.items[at].gone]
        pthread_mutex_unlock(&tree.lock)
        return pids

    def parents(self):
        """Of each pid of the tree its parent's, as they were when it was last looked at: of one whose parent has ended
        since that one's."""
        cdef Tree *tree = &self._state.tree
        cdef uint32_t at
        pthread_mutex_lock(&tree.lock)
        pids = {tree.all.items[at].pid: tree.all.items[at].parent for at in range(tree.all.count)
                if not tree.all.items[at].gone and not tree.all.items[at].helper}
        pthread_mutex_unlock(&tree.lock)
        return pids

    def remove_own(self, int pid):
        """It has ended."""
        tree_remove_own(&self._state.tree, pid)

    def cancel_swapoff(self, int area):
        self._progress[area].cancel = True

    def swapoff_progress(self, int area):
        """Of the last swapoff of this area: bytes moved, bytes that there were to move, page table entries visited."""
        return self._progress[area].bytes_moved, self._progress[area].bytes_total, self._progress[area].entries_visited

    def areas(self):
        """Of each swap area: number, priority, size and use in bytes, whether it is being emptied."""
        cdef Log *log = &self._state.log
        cdef int at
        found = []
        pthread_mutex_lock(&log.lock)
        for at in range(log.area_count):
            if not log.areas[at].gone:
                found.append((at, log.areas[at].priority, log.areas[at].slots * <uint64_t>BLOCK_BYTES,
                              (log.areas[at].slot_end - log.areas[at].returned_count) * <uint64_t>BLOCK_BYTES,
                              bool(log.areas[at].closing)))
        pthread_mutex_unlock(&log.lock)
        return found

    def _open(self, keeper_pid):
        cdef EngineState *engine = self._state
        cdef epoll_event event
        cdef int cpu
        cdef int cpus = min(os.sysconf("SC_NPROCESSORS_ONLN"), MAX_CPUS)
        engine.attention = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.room_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        engine.zeros = <unsigned char *>sys_reserve(BLOCK_BYTES)
        if (min(engine.attention, engine.stop_event, engine.room_event) < 0 or engine.zeros == NULL
                or tree_init(&engine.tree, keeper_pid) != 0):
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

    def attach(self, int pid):
        """A process is of the tree as well, from soon on, with all that it starts, and is entered. Raises EngineError
        when too many are."""
        if not tree_attach(&self._state.tree, pid):
            raise EngineError(f"more than {ROOTS_MAX} processes at once")

    def leave_out(self, int pid):
        """A process is not of the tree, though its parent is, nor is what it starts. Raises MemoryError."""
        if not tree_leave_out(&self._state.tree, pid):
            raise MemoryError

    def attached(self, int pid):
        """Whether a process that was attached has been entered; None as long as that is not known. Raises OSError:
        why it cannot be."""
        cdef Tree *tree = &self._state.tree
        cdef uint32_t at
        result = None
        error = 0
        pthread_mutex_lock(&tree.lock)
        for at in range(tree.all.count):
            if tree.all.items[at].pid == pid:
                if tree.all.items[at].gone:
                    error = ESRCH
                elif tree.all.items[at].left_alone:
                    error = tree.all.items[at].refused
                elif tree.all.items[at].mm_id != 0:
                    result = True
        pthread_mutex_unlock(&tree.lock)
        if error:
            raise OSError(error, os.strerror(error))
        return result

    def dependent_processes(self):
        """The pids of the processes of the tree of whose memory something may be in our care: those that have been
        entered, and all as long as the address space of some fork has not been found to be one's."""
        cdef Tree *tree = &self._state.tree
        cdef bint all_may = mms_unclaimed(self._state)
        cdef uint32_t at
        pthread_mutex_lock(&tree.lock)
        pids = [tree.all.items[at].pid for at in range(tree.all.count) if not tree.all.items[at].gone
                and (tree.all.items[at].mm_id != 0 or all_may and not tree.all.items[at].helper)]
        pthread_mutex_unlock(&tree.lock)
        return pids

    def detach(self, int pid):
        """Brings back all that a process has swapped and leaves it as it was before it was entered. To be called by a
        thread of its own: it lasts. Raises OSError: ESRCH when it is not of the tree, ENOMEM at once when memory
        cannot hold what it has swapped, EAGAIN when a zombie was left in it, ECANCELED when the run ends."""
        cdef int result
        cdef int64_t lacking
        with nogil:
            result = detach_process(self._state, pid, &lacking)
        if result == -ENOMEM and lacking > 0:
            raise OSError(ENOMEM, f"{lacking >> 8} MiB more of memory would be needed")
        if result != 0:
            raise OSError(-result, os.strerror(-result))

    def swapped_pages(self, int pid):
        """How many pages of a process are swapped just now."""
        cdef uint32_t position = 0
        cdef Mm *mm
        pages = 0
        while True:
            mm = mm_next(self._state, &position)
            if mm == NULL:
                return pages
            if mm.pid == pid:
                pages += mm.swapped
            mm_put(self._state, mm)

    def watch(self):
        """Starts the threads. What was taken over is this engine's from now on: what was left must not be taken over
        once more. Raises EngineError."""
        cdef EngineState *engine = self._state
        self._watching = True
        tree_measure_own(&engine.tree)
        if self._took_over:
            arena_close()
            buffers_drop_unclaimed()
            with nogil:
                takeover_begin(engine)
                births_resume(engine)
        if (births_start(engine) != 0 or workers_start(engine) != 0 or evict_start(engine) != 0
                or monitor_start(engine) != 0 or enter_start(engine) != 0 or sampler_start(engine) != 0):
            raise EngineError("the engine's threads cannot be started")
        if not self._took_over:
            with nogil:
                sampler_await(engine)

    def fileno(self):
        """An eventfd, readable when control() is to be called."""
        return self._state.attention

    def control(self):
        """Raises EngineError when the program must be stopped."""
        cdef EngineState *engine = self._state
        try:
            os.eventfd_read(engine.attention)
        except BlockingIOError:
            pass
        self._raise_reason()

    def _raise_reason(self):
        if self._state.reason[0] != 0:
            raise EngineError((<bytes>self._state.reason).decode(errors="replace"))

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
        cdef LeftAlone *note
        cdef uint32_t at
        alone = []
        pthread_mutex_lock(&self._state.reason_lock)
        for at in range(self._state.left_alone_count):
            note = &self._state.left_alone[at]
            alone.append((note.pid, (<bytes>note.name).decode(errors="replace"), os.strerror(note.error)))
        pthread_mutex_unlock(&self._state.reason_lock)
        return alone

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
            "entries": engine.space.entries - ENTRIES_FOR_EVER,
            "entry_bits": 32 if engine.space.narrow else 64,
            "blocks": _blocks_in_use(&engine.log),
            "packed_resident_bytes": engine.log.tier_most * BLOCK_BYTES,
            "pages_packed": engine.pack.pages,
            "bytes_packed": engine.pack.bytes,
            "pages_cleaned": engine.pack.cleaned,
            "blocks_cleaned_ahead": engine.pack.ahead,
        }
        figures.update(_counters(engine))
        figures["blocks_cleaned"] += engine.pack.ahead
        for name in ("store_bytes_written", "store_writes", "store_bytes_read", "store_reads", "store_bytes_discarded"):
            figures[name] = 0
        for at in range(engine.log.area_count):
            figures["store_bytes_written"] += engine.log.areas[at].bytes_written
            figures["store_writes"] += engine.log.areas[at].writes
            figures["store_bytes_read"] += engine.log.areas[at].bytes_read
            figures["store_reads"] += engine.log.areas[at].reads
            figures["store_bytes_discarded"] += engine.log.areas[at].bytes_discarded
        written = figures["store_bytes_written"]
        fresh = max(written - engine.pack.cleaned_bytes, 1)
        figures["write_amplification"] = round(written / fresh, 3) if written else 1
        figures["page_table_entries_visited"] = sum(self._progress[at].entries_visited for at in range(MAX_AREAS))
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
            evict_stop(engine)
            workers_stop(engine)
            sampler_stop(engine)
            births_stop(engine)
            enter_stop(engine)
            monitor_stop(engine)
            while True:
                mm = mm_next(engine, &position)
                if mm == NULL:
                    break
                mm_leave(engine, mm)
                mm_end(engine, mm)
                mm_put(engine, mm)
            trace_flush(engine.trace)
            if engine.checking:
                check_ended(engine)
        self._raise_reason()


cdef uint32_t _blocks_in_use(Log *log):
    """Those that hold a page that somebody wants, or are being read. An open one stays open when all of its pages have
    been given back."""
    cdef uint32_t which
    pthread_mutex_lock(&log.lock)
    in_use = log.blocks_used
    for which in range(OPENS):
        if log.open[which] != NO_BLOCK and log.blocks[log.open[which]].live == 0:
            in_use -= 1
    pthread_mutex_unlock(&log.lock)
    return in_use


cdef dict _counters(EngineState *engine):
    return engine.counters
