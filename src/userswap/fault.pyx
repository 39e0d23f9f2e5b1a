# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults: the threads that answer them, and the events that come on the same descriptors.

Each CPU has threads of its own, pinned to it, which wait for the faults of all address spaces: waking a
thread on another CPU is the whole cost of a fault, so the one on the faulting CPU runs first and wins.

Who can run at the same moment, and what they see:
  - Other threads of the program fault on the same page. Its value is BUSY from the moment we decide to fill
    it; they drop their message, and our copy, or our wake if we could not copy, wakes their threads too.
  - The program gives the page back, moves it, or forks, while we read its bytes without the lock. Its value
    is then no longer what we left, and we do not copy. The entry's bytes stay true and its offset is not
    handed out anew, because a fill holds a count of it.
  - An event is in the queue, not read. The kernel then refuses to copy (EAGAIN): we read, apply, look again.
  - The evictor wants the page. It takes only PRESENT ones, under the lock.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from userswap.limit cimport room_awaited, room_left, room_take
from userswap.log cimport log_free_slots, log_pin, log_read_later, log_unpin
from userswap.mappings cimport mappings_protect, mappings_unshared
from userswap.mm cimport (
    MAX_WORKERS,
    ROOM_EVENT,
    Deferred,
    Pending,
    copy_of,
    engine_stop,
    entry_put,
    mm_forget,
    mm_fork,
    mm_get,
    mm_insert,
    mm_move,
    mm_put,
    mm_removed,
)
from userswap.pagetable cimport table_get, table_set
from userswap.ranges cimport ranges_add, ranges_end, ranges_hit, ranges_remove
from userswap.readahead cimport WINDOW_MAX, Window, readahead_done, readahead_window
from userswap.reclaim cimport reclaim_age
from userswap.space cimport space_fill_value, space_get, space_word
from userswap.system cimport (
    EAGAIN,
    EEXIST,
    PRIORITY_FAULT,
    SYS_READS_MAX,
    ENOENT,
    ESRCH,
    UFFD_EVENT_FORK,
    UFFD_EVENT_PAGEFAULT,
    UFFD_EVENT_REMAP,
    UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
    add_i64,
    epoll_event,
    epoll_wait,
    load_u32,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_wait,
    sys_name_thread,
    sys_page_absent,
    sys_pagemap_guard,
    sys_pin_to_cpu,
    sys_prefer,
    sys_cpu_to_spare,
    sys_now_us,
    sys_poll_in,
    sys_reads_deinit,
    sys_reads_finish,
    sys_reads_init,
    sys_reads_start,
    sys_release,
    sys_reserve,
    sys_signal_eventfd,
    sys_sleep_us,
    sys_uffd_copy,
    sys_uffd_read,
    sys_uffd_settled,
    sys_uffd_unprotect,
    sys_uffd_wake,
    uffd_msg,
)
from userswap.types cimport (
    AGE_FRESH,
    AGE_READAHEAD,
    CACHED,
    FILLED,
    PAGE_BYTES,
    PAGE_SHIFT,
    STORED,
    age_of,
    busy_value,
    entry_payload,
    entry_state,
    is_busy,
    is_present,
    is_swapped,
    offset_of,
    present_value,
    stored_block,
    stored_index,
    stored_stamp,
)

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef enum:
    THREADS_A_CPU = 2
    SEGMENTS = 64           # pieces that one fill is put together from
    STREAMING = 16          # a window from which on pages come and go in order
    KEPT_TRIAL = 1024       # pages kept before it is judged whether that is worth it
    KEPT_PAUSE = 4096       # fills without, before it is tried again
    SOON_US = 60            # a fault after which the next one comes so soon is waited for
    EAGER_TURNS = 4         # ... unless so many times none came
    DEFERRED_LOOK = 256     # waiting faults among which the same one is looked for

# A part of a fill: pages that lie together.
cdef struct Segment:
    uint32_t first          # in the window
    uint32_t count
    uint32_t state          # FILLED or STORED
    uint32_t block
    uint32_t index
    uint64_t word           # FILLED: the repeated word
    uint8_t *data           # STORED: the block in memory, or NULL

cdef struct Fill:
    uint64_t start          # page
    uint32_t count
    uint32_t faulted        # the page that the fault is for, in the window
    bint keep
    uint32_t values[512]    # offsets
    uint32_t segments
    Segment segment[64]
    uint32_t area_reads
    uint32_t age            # of the page faulted on


# ---- events, with Mm.lock held

cdef void _forked(Engine *engine, Mm *mm, int uffd) noexcept nogil:
    cdef Mm *child
    cdef bint mark = mm.present > room_left(engine)     # there might be no room for what they write to from now on
    mappings_unshared(engine, mm)
    child = mm_fork(engine, mm, uffd, mark)
    add_i64(&engine.counters.forks, 1)
    if child == NULL or mm_insert(engine, child) != 0:
        engine_stop(engine, b"too many processes, or no memory for the page table of a fork", 0)
    elif mark:
        mappings_protect(mm)
        mappings_protect(child)
    sys_signal_eventfd(engine.attention)


cdef void _apply(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil:
    cdef uint64_t start = message.arg.remove.start >> PAGE_SHIFT
    cdef uint64_t end = message.arg.remove.end >> PAGE_SHIFT
    cdef uint64_t to_page, count
    if message.event == UFFD_EVENT_REMOVE:
        add_i64(&engine.counters.pages_discarded, mm_forget(engine, mm, start, end - start))
        mm_removed(mm, start, end - start)
    elif message.event == UFFD_EVENT_UNMAP:
        add_i64(&engine.counters.pages_discarded, mm_forget(engine, mm, start, end - start))
        ranges_remove(&mm.ranges, start, end)
        ranges_remove(&mm.wiped, start, end)
        mm.rescan = True
    elif message.event == UFFD_EVENT_REMAP:
        start = message.arg.remap.from_ >> PAGE_SHIFT
        to_page = message.arg.remap.to >> PAGE_SHIFT
        count = message.arg.remap.len >> PAGE_SHIFT
        mm_move(engine, mm, start, to_page, count)
        ranges_add(&mm.ranges, to_page, to_page + count)
        if ranges_hit(&mm.wiped, start, start + count):
            ranges_add(&mm.wiped, to_page, to_page + count)
        mm.rescan = True
    elif message.event == UFFD_EVENT_FORK:
        _forked(engine, mm, <int>message.arg.fork.ufd)


cdef int _read_message(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil:
    """Reads one message; an event is applied at once, for the program goes on when it is read.

    Returns 1 for a page fault in *message, 0 when nothing is left. Mm.lock is held."""
    cdef long result
    while True:
        result = sys_uffd_read(mm.uffd, message, 1)
        if result != 1:
            if result != -EAGAIN and result != 0:      # EMFILE: there is no descriptor for the child of a fork
                engine_stop(engine, b"an event of the program cannot be read: error", result)
            return 0
        mm.messages_read += 1
        if message.event == UFFD_EVENT_PAGEFAULT:
            return 1
        _apply(engine, mm, message)


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


cdef bint mm_drain(Engine *engine, Mm *mm, Worker *worker) noexcept nogil:
    """Reads what is in the way of a copy or move. Page faults among it are kept for `worker`, or woken to be
    raised again when it is NULL. Call without Mm.lock.

    False if there was nothing: then the event is still to be queued, or its maker to run, and if we did not
    sleep it might have to wait for us to leave its CPU."""
    cdef uffd_msg message
    cdef uint64_t before
    pthread_mutex_lock(&mm.lock)
    before = mm.messages_read
    while _read_message(engine, mm, &message):
        if worker != NULL:
            _pending_add(engine, &worker.pending, &message)
        else:
            sys_uffd_wake(mm.uffd, message.arg.pagefault.address & ~<uint64_t>(PAGE_BYTES - 1), PAGE_BYTES)
    before = mm.messages_read - before
    pthread_mutex_unlock(&mm.lock)
    if before == 0:
        sys_sleep_us(100)
    return before != 0


# ---- guards

cdef uint32_t _unguarded(Mm *mm, uint64_t start, uint64_t page, uint32_t count) noexcept nogil:
    """How many pages may be put in place from `start` on, of a window of `count` that holds `page`; 0 when only
    `page` itself may. MADV_GUARD_INSTALL raises no event, and a copy would overwrite a guard."""
    cdef uint64_t guard
    if count == 1 or not mm.entered:
        return count
    guard = sys_pagemap_guard(mm.pagemap, start << PAGE_SHIFT, (start + count) << PAGE_SHIFT) >> PAGE_SHIFT
    return <uint32_t>(guard - start) if guard > page else 0


# ---- first touch

cdef void _trim_untouched(Mm *mm, uint64_t page, Window *window) noexcept nogil:
    """Cuts the window down to pages of which nothing is known, in the page's mapping."""
    cdef uint64_t end = min(window.start + window.count, ranges_end(&mm.ranges, page))
    cdef uint64_t low = page
    cdef uint64_t high = page + 1
    while high < end and table_get(mm.table, high) == 0:
        high += 1
    while low > window.start and table_get(mm.table, low - 1) == 0 and ranges_end(&mm.ranges, low - 1) > page:
        low -= 1
    window.start = low
    window.count = <uint32_t>(high - low)


cdef void _mark_touched(Engine *engine, Mm *mm, uint64_t page, uint64_t count, uint32_t age) noexcept nogil:
    cdef uint64_t at
    for at in range(page, page + count):
        if table_set(mm.table, at, present_value(age, 0)) != 0:
            engine_stop(engine, b"no memory for a page table", 0)
            return
    if count > 0 and ranges_end(&mm.ranges, page) == page + 1:
        ranges_add(&mm.ranges, page, page + count)       # a mapping that grew where it was
    mm.present += <int64_t>count
    room_take(engine, <int64_t>count)
    add_i64(&engine.counters.pages_first_touched, <int64_t>count)


cdef int _touch(Worker *worker, Mm *mm, uint64_t page) noexcept nogil:
    """Hands out fresh memory, with Mm.lock held. Returns 0, or -EAGAIN when messages are to be read first."""
    cdef Engine *engine = worker.engine
    cdef Window window
    cdef int error = 0
    cdef uint64_t done
    readahead_window(&mm.touches, page, &window)
    _trim_untouched(mm, page, &window)
    window.count = _unguarded(mm, window.start, page, window.count)
    if window.count == 0 or window.count > room_left(engine):
        window.start = page
        window.count = 1
    done = sys_uffd_copy(mm.uffd, window.start << PAGE_SHIFT, engine.zeros,
                         <uint64_t>window.count << PAGE_SHIFT, False, &error) >> PAGE_SHIFT
    if done == 0 and window.count > 1 and error != -EAGAIN:
        # The mapping has been split, or is not all empty: only the page itself.
        window.start = page
        window.count = 1
        done = sys_uffd_copy(mm.uffd, page << PAGE_SHIFT, engine.zeros, PAGE_BYTES, False, &error) >> PAGE_SHIFT
    _mark_touched(engine, mm, window.start, done, AGE_READAHEAD if window.count >= STREAMING else AGE_FRESH)
    window.count = <uint32_t>max(done, <uint64_t>1)
    readahead_done(&mm.touches, &window)
    if window.start <= page < window.start + done:
        return 0
    if error == -EAGAIN:
        return -EAGAIN
    if error == -EEXIST:
        _mark_touched(engine, mm, page, 1, AGE_FRESH)
    elif error != -ENOENT and error != -ESRCH and error != 0:
        engine_stop(engine, b"fresh memory could not be handed out", error)
    sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    return 0


# ---- fill: planning, with Mm.lock held

cdef bint _keep_copies(Engine *engine, Mm *mm, bint write) noexcept nogil:
    """Whether the copies of what is brought in are kept while it stays clean. A kept page is write-protected;
    where most of these are written to all the same, only now and then one is kept, to see if that changes."""
    if write or engine.ksm:
        return False
    if mm.kept > KEPT_TRIAL and mm.kept_broken * 2 > mm.kept:
        mm.kept_refused += 1
        if mm.kept_refused < KEPT_PAUSE:
            return False
        mm.kept = 0
        mm.kept_broken = 0
    mm.kept_refused = 0
    return log_free_slots(&engine.log) * 2 > engine.log.slots


cdef bint _extends(Segment *last, uint32_t at, uint64_t word, uint64_t fill_word) noexcept nogil:
    if last.first + last.count != at or last.state != entry_state(word):
        return False
    if last.state == FILLED:
        return last.word == fill_word
    return last.block == stored_block(word) and last.index + last.count == stored_index(word)


cdef bint _plan_page(Engine *engine, Fill *fill, uint32_t at, uint32_t offset) noexcept nogil:
    """Adds a page to the plan: its count and its block are held from now on. False when it does not fit or is
    just being evicted. Space.lock is held."""
    cdef uint64_t word = space_word(&engine.space, offset)
    cdef uint64_t fill_word = 0
    cdef Segment *segment = NULL
    cdef uint8_t *data
    if entry_state(word) == CACHED:
        return False
    if entry_state(word) == FILLED:
        fill_word = space_fill_value(&engine.space, entry_payload(word))
    if fill.segments > 0:
        segment = &fill.segment[fill.segments - 1]
    if segment == NULL or not _extends(segment, at, word, fill_word):
        if fill.segments == SEGMENTS:
            return False
        data = NULL
        if entry_state(word) == STORED:
            data = log_pin(&engine.log, stored_block(word))
            if data == NULL:
                if fill.area_reads == SYS_READS_MAX:
                    log_unpin(&engine.log, stored_block(word))
                    return False
                fill.area_reads += 1
        segment = &fill.segment[fill.segments]
        fill.segments += 1
        segment.first = at
        segment.count = 0
        segment.state = entry_state(word)
        segment.block = stored_block(word)
        segment.index = stored_index(word)
        segment.word = fill_word
        segment.data = data
    segment.count += 1
    fill.values[at] = offset
    space_get(&engine.space, offset)
    return True


cdef uint64_t _lowest(Engine *engine, Mm *mm, uint64_t page, uint64_t low) noexcept nogil:
    """From where on, not below `low`, the pages up to `page` can be taken together: all are swapped and they lie in
    few enough places."""
    cdef uint64_t at = page
    cdef uint64_t word, above
    cdef uint32_t value
    cdef uint32_t places = 1
    pthread_mutex_lock(&engine.space.lock)
    above = space_word(&engine.space, offset_of(table_get(mm.table, page)))
    while at > low:
        value = table_get(mm.table, at - 1)
        if not is_swapped(value):
            break
        word = space_word(&engine.space, offset_of(value))
        if entry_state(word) == CACHED:
            break
        if entry_state(word) != entry_state(above) or (entry_state(word) == STORED and (
                stored_block(word) != stored_block(above) or stored_index(word) + 1 != stored_index(above))) or (
                entry_state(word) == FILLED and entry_payload(word) != entry_payload(above)):
            places += 1
            if places > SYS_READS_MAX:
                break
        above = word
        at -= 1
    pthread_mutex_unlock(&engine.space.lock)
    return at


cdef bint _plan(Worker *worker, Mm *mm, uint64_t page, Window *window, Fill *fill) noexcept nogil:
    """Plans to bring in the page and those beside it. False when the page is just being evicted."""
    cdef Engine *engine = worker.engine
    cdef uint64_t low = page
    cdef uint64_t at
    cdef uint64_t most = min(<uint64_t>window.count, <uint64_t>max(room_left(engine), 1))
    cdef uint64_t word
    cdef uint32_t value
    cdef bint planned = True
    # A downward window starts where the run of swapped pages below the fault does.
    low = _lowest(engine, mm, page, max(window.start, page + 1 - min(most, page + 1)))
    most = min(most, window.start + window.count - low)
    most = _unguarded(mm, low, page, <uint32_t>most)
    if most == 0:
        low = page
        most = 1
    fill.count = 0
    fill.segments = 0
    fill.area_reads = 0
    pthread_mutex_lock(&engine.space.lock)
    word = space_word(&engine.space, offset_of(table_get(mm.table, page)))
    if entry_state(word) == CACHED:
        pthread_mutex_unlock(&engine.space.lock)
        return False
    fill.age = AGE_FRESH
    if entry_state(word) == STORED:
        fill.age = reclaim_age(<uint32_t>(engine.evict_clock >> engine.stamp_shift), stored_stamp(word),
                               <uint32_t>(engine.resident >> engine.stamp_shift))
    while True:
        fill.start = low
        for at in range(low, min(low + most, window.start + window.count)):
            value = table_get(mm.table, at)
            if not is_swapped(value) or not _plan_page(engine, fill, <uint32_t>(at - low), offset_of(value)):
                break
            table_set(mm.table, at, busy_value(offset_of(value)))
            fill.count += 1
        if low + fill.count > page or low == page:
            break
        # What lies below could not be taken up to the page itself: that alone, then.
        pthread_mutex_unlock(&engine.space.lock)
        _abandon(worker, mm, fill)
        pthread_mutex_lock(&engine.space.lock)
        low = page
        most = 1
    planned = fill.count > 0
    pthread_mutex_unlock(&engine.space.lock)
    fill.faulted = <uint32_t>(page - fill.start)
    window.start = fill.start
    window.count = fill.count
    return planned


cdef void _release(Worker *worker, Fill *fill) noexcept nogil:
    """Lets go of the counts and blocks that a plan holds."""
    cdef Engine *engine = worker.engine
    cdef uint32_t at
    for at in range(fill.count):
        entry_put(engine, fill.values[at])
    for at in range(fill.segments):
        if fill.segment[at].state == STORED:
            log_unpin(&engine.log, fill.segment[at].block)


cdef void _abandon(Worker *worker, Mm *mm, Fill *fill) noexcept nogil:
    """Undoes a plan, with Mm.lock held: what is still BUSY by us is swapped again, and those who wait for it
    are woken to fault anew."""
    cdef uint32_t at
    for at in range(fill.count):
        if table_get(mm.table, fill.start + at) == busy_value(fill.values[at]):
            table_set(mm.table, fill.start + at, fill.values[at])
    if fill.count > 0:
        sys_uffd_wake(mm.uffd, fill.start << PAGE_SHIFT, <uint64_t>fill.count << PAGE_SHIFT)
    _release(worker, fill)
    fill.count = 0
    fill.segments = 0
    fill.area_reads = 0


# ---- fill: the bytes, without locks

cdef int _load_segment(Worker *worker, Segment *segment) noexcept nogil:
    cdef uint8_t *into = worker.buffer + <uint64_t>segment.first * PAGE_BYTES
    cdef uint64_t length = <uint64_t>segment.count * PAGE_BYTES
    cdef uint64_t at
    if segment.state == FILLED:
        for at in range(length // 8):
            (<uint64_t *>into)[at] = segment.word
        return 0
    if segment.data != NULL:
        memcpy(into, segment.data + <uint64_t>segment.index * PAGE_BYTES, length)
        return 0
    return log_read_later(&worker.engine.log, &worker.reads, segment.block, segment.index, segment.count, into)


cdef int _load(Worker *worker, Fill *fill) noexcept nogil:
    """Puts the bytes together in the worker's buffer: what is in memory while the areas are being read."""
    cdef uint32_t at
    cdef int turn, error
    cdef int result = 0
    for turn in range(2):
        for at in range(fill.segments):
            if (fill.segment[at].state == STORED and fill.segment[at].data == NULL) == (turn == 0):
                error = _load_segment(worker, &fill.segment[at])
                result = error if error != 0 else result
        if turn == 0:
            sys_reads_start(&worker.reads)
    error = <int>sys_reads_finish(&worker.reads)
    return error if error != 0 else result


# ---- fill: putting pages in place, with Mm.lock held

cdef uint32_t _still_ours(Mm *mm, Fill *fill, uint32_t first) noexcept nogil:
    """How many pages from `first` on are still BUSY by us."""
    cdef uint32_t at = first
    while at < fill.count and table_get(mm.table, fill.start + at) == busy_value(fill.values[at]):
        at += 1
    return at - first


cdef void _mark_filled(Worker *worker, Mm *mm, Fill *fill, uint32_t first, uint32_t count) noexcept nogil:
    cdef uint32_t at, age
    for at in range(first, first + count):
        age = fill.age if at == fill.faulted else AGE_READAHEAD
        if fill.keep:
            table_set(mm.table, fill.start + at, present_value(age, fill.values[at]))
        else:
            table_set(mm.table, fill.start + at, present_value(age, 0))
            entry_put(worker.engine, fill.values[at])
    mm.present += count
    mm.swapped -= count
    if fill.keep:
        mm.kept += count
    room_take(worker.engine, count)
    add_i64(&worker.engine.counters.pages_in, count)


cdef uint32_t _put_run(Worker *worker, Mm *mm, Fill *fill, uint32_t first, uint32_t count,
                       int *error) noexcept nogil:
    cdef uint32_t done = <uint32_t>(sys_uffd_copy(
        mm.uffd, (fill.start + first) << PAGE_SHIFT, worker.buffer + <uint64_t>first * PAGE_BYTES,
        <uint64_t>count << PAGE_SHIFT, fill.keep, error) >> PAGE_SHIFT)
    _mark_filled(worker, mm, fill, first, done)
    return done


cdef bint _put_in_place(Worker *worker, Mm *mm, Fill *fill) noexcept nogil:
    """Copies what is still ours. True when all of it was copied; what was not is swapped again."""
    cdef uint32_t at = 0
    cdef uint32_t count, done
    cdef int error
    cdef bint whole = True
    while at < fill.count and not mm.dead:
        count = _still_ours(mm, fill, at)
        if count == 0:
            whole = False
            at += 1
            continue
        done = _put_run(worker, mm, fill, at, count, &error)
        at += done
        if error == 0:
            continue
        if error == -EAGAIN:
            pthread_mutex_unlock(&mm.lock)
            mm_drain(worker.engine, mm, worker)
            pthread_mutex_lock(&mm.lock)
        elif done == 0 and count > 1 and error == -ENOENT:
            if _put_run(worker, mm, fill, at, 1, &error) == 1:     # the mapping has been split
                at += 1
            elif error != -EAGAIN:
                whole = _give_up(worker, mm, fill, at, error)
                at += 1
        elif done == 0:
            whole = _give_up(worker, mm, fill, at, error)
            at += 1
    return whole and not mm.dead


cdef bint _give_up(Worker *worker, Mm *mm, Fill *fill, uint32_t at, int error) noexcept nogil:
    """A page of ours that cannot be put in place: swapped again. Always False."""
    table_set(mm.table, fill.start + at, fill.values[at])
    if error == -EEXIST:
        engine_stop(worker.engine, b"a page is present that should be swapped", <long>(fill.start + at))
    elif error != -ENOENT and error != -ESRCH:
        engine_stop(worker.engine, b"a page could not be brought back", error)
    return False


cdef int _fill(Worker *worker, Mm *mm, uint64_t page, bint write) noexcept nogil:
    """Brings a swapped page back, with Mm.lock held. Returns 0, or -EAGAIN when it is just being evicted."""
    cdef Engine *engine = worker.engine
    cdef Window window
    cdef Fill fill
    cdef uint32_t at
    cdef uint32_t seen = load_u32(&engine.evict_done)
    cdef int result = 0
    fill.keep = _keep_copies(engine, mm, write)
    readahead_window(&mm.fills, page, &window)
    add_i64(&engine.counters.pages_readahead_used, window.confirmed)
    if not _plan(worker, mm, page, &window, &fill):
        pthread_mutex_unlock(&mm.lock)
        sys_futex_wait(&engine.evict_done, seen, 1000)
        pthread_mutex_lock(&mm.lock)
        return -EAGAIN
    readahead_done(&mm.fills, &window)
    pthread_mutex_unlock(&mm.lock)
    result = _load(worker, &fill)
    if result != 0:
        engine_stop(engine, b"swapped memory could not be read back: error", result)
    pthread_mutex_lock(&mm.lock)
    if result == 0:
        if not _put_in_place(worker, mm, &fill):
            sys_uffd_wake(mm.uffd, fill.start << PAGE_SHIFT, <uint64_t>fill.count << PAGE_SHIFT)
        add_i64(&engine.counters.faults, 1)
        add_i64(&engine.counters.pages_readahead, fill.count - 1)
        if fill.area_reads == 0:
            add_i64(&engine.counters.faults_from_memory, 1)
        if fill.age > AGE_FRESH:
            add_i64(&engine.counters.pages_refaulted, 1)
    _release(worker, &fill)
    return 0


# ---- write to a page whose copy was kept

cdef bint _write_takes_page(Engine *engine, Mm *mm, uint32_t value) noexcept nogil:
    """Whether a write to a present page makes a new one: where it maps the shared zero page, or may be shared with a
    relative."""
    return offset_of(value) != 0 and (mm.shared or offset_of(value) == engine.zero_offset)


cdef bint _give_up_copy(Worker *worker, Mm *mm, uint64_t page, int64_t *room) noexcept nogil:
    """The page's copy is given up, so that it may be written to. False, and nothing done, where the page has no copy
    (and is not marked as shared) or would need more room than there is."""
    cdef uint32_t value = table_get(mm.table, page)
    if not is_present(value) or offset_of(value) == 0:
        return False
    if _write_takes_page(worker.engine, mm, value):
        if room[0] < 1:
            return False
        room[0] -= 1
    table_set(mm.table, page, present_value(age_of(value), 0))
    entry_put(worker.engine, offset_of(value))
    mm.kept_broken += copy_of(worker.engine, value) != 0
    return True


cdef int _unprotect(Worker *worker, Mm *mm, uint64_t page) noexcept nogil:
    """The copy is true no more: forgotten, and the write goes on. Mm.lock is held. 0 or -EAGAIN.

    Only pages without a copy are unprotected: one that kept its copy could be written to without our knowing."""
    cdef Window window
    cdef uint64_t low = page
    cdef uint64_t high = page + 1
    cdef int64_t before = max(room_left(worker.engine), <int64_t>1)
    cdef int64_t room = before
    cdef int result
    add_i64(&worker.engine.counters.faults_write_protected, 1)
    readahead_window(&mm.unprotects, page, &window)
    _give_up_copy(worker, mm, page, &room)
    while high < window.start + window.count and _give_up_copy(worker, mm, high, &room):
        high += 1
    while low > window.start and _give_up_copy(worker, mm, low - 1, &room):
        low -= 1
    room_take(worker.engine, before - room)
    window.start = low
    window.count = <uint32_t>(high - low)
    readahead_done(&mm.unprotects, &window)
    result = sys_uffd_unprotect(mm.uffd, low << PAGE_SHIFT, (high - low) << PAGE_SHIFT)
    if result == -ENOENT and high - low > 1:
        result = sys_uffd_unprotect(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    if result == -EAGAIN:
        return -EAGAIN
    if result != 0:
        sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    return 0


# ---- a fault

cdef bint _is_there(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    """Whether a page that we think present is. If not, its value is set right: the kernel has dropped a page
    that MADV_FREE had given back before we knew of its mapping, or we have taken what was mapped at an address
    for a moment for what is mapped there now. Mm.lock is held, and no event is under way."""
    cdef uint32_t value = table_get(mm.table, page)
    if not mm.entered or sys_page_absent(mm.pagemap, page) != 1:
        return True
    table_set(mm.table, page, copy_of(engine, value))
    mm.present -= 1
    if copy_of(engine, value) != 0:
        mm.swapped += 1
    add_i64(&engine.counters.pages_vanished, 1)
    return False


cdef int _serve_once(Worker *worker, Mm *mm, uint64_t page, uint64_t flags) noexcept nogil:
    """With Mm.lock held. 0 when the fault has its answer, or -EAGAIN."""
    cdef uint32_t value = table_get(mm.table, page)
    if mm.dead or is_busy(value):
        return 0
    if flags & UFFD_PAGEFAULT_FLAG_WP:
        return _unprotect(worker, mm, page)
    if is_present(value) and sys_uffd_settled(mm.uffd) and not _is_there(worker.engine, mm, page):
        value = table_get(mm.table, page)
    if is_present(value):       # another thread's fault brought it
        sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
        return 0
    if value == 0:
        return _touch(worker, mm, page)
    return _fill(worker, mm, page, (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0)


cdef bint _wants_room(Engine *engine, Mm *mm, uint64_t page, uint64_t flags) noexcept nogil:
    """All faults do, but a write to a page that is present and the program's own. Mm.lock is held."""
    return not (flags & UFFD_PAGEFAULT_FLAG_WP) or _write_takes_page(engine, mm, table_get(mm.table, page))


cdef bint _may_overdraw(Engine *engine, Mm *mm) noexcept nogil:
    """Those that others wait for who are to make room: the helper, where it unshares pages, and the child of a fork
    that is being entered. (Amid a system call a thread cannot be stopped before its fault is served.)"""
    return mm.unsharing or (engine.entering and not mm.entered)


cdef bint _is_deferred(Engine *engine, uint32_t mm_id, uffd_msg *message) noexcept nogil:
    """A fault amid a system call is raised again and again once a signal is pending. deferred_lock is held."""
    cdef uint32_t at
    cdef uint32_t first = max(engine.deferred_first, engine.deferred_end - min(engine.deferred_end, DEFERRED_LOOK))
    for at in range(first, engine.deferred_end):
        if (engine.deferred[at].mm_id == mm_id
                and engine.deferred[at].message.arg.pagefault.address == message.arg.pagefault.address
                and engine.deferred[at].message.arg.pagefault.flags == message.arg.pagefault.flags):
            return True
    return False


cdef void _serve(Worker *worker, Mm *mm, uffd_msg *message) noexcept nogil:
    cdef uint64_t page = message.arg.pagefault.address >> PAGE_SHIFT
    cdef uint64_t flags = message.arg.pagefault.flags
    cdef int result = -EAGAIN
    while result == -EAGAIN and not worker.engine.stopping:
        pthread_mutex_lock(&mm.lock)
        if room_left(worker.engine) < 1 and not _may_overdraw(worker.engine, mm) and _wants_room(
                worker.engine, mm, page, flags):
            pthread_mutex_unlock(&mm.lock)
            _defer(worker.engine, mm, message)
            return
        result = _serve_once(worker, mm, page, flags)
        pthread_mutex_unlock(&mm.lock)
        if result == -EAGAIN:
            mm_drain(worker.engine, mm, worker)


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
    while worker.eager > 0 and sys_now_us() - start < SOON_US:
        if sys_poll_in(mm.uffd, 0):
            return True
        if turn % 16 == 0 and not sys_cpu_to_spare(&worker.reads):
            return False
        turn += 1
    worker.eager -= worker.eager > 0
    return False


cdef void _serve_all(Worker *worker, Mm *mm) noexcept nogil:
    """Reads and serves until nothing is left: the descriptor is watched for edges."""
    cdef uffd_msg message
    cdef int found = 1
    cdef bint any = False
    while not worker.engine.stopping:
        pthread_mutex_lock(&mm.lock)
        found = _read_message(worker.engine, mm, &message)
        pthread_mutex_unlock(&mm.lock)
        if found:
            if not any and sys_now_us() - worker.served_at < SOON_US:
                worker.eager = EAGER_TURNS
            any = True
            _serve(worker, mm, &message)
            _serve_pending(worker, mm)
            worker.served_at = sys_now_us()
        elif not any or not _more_soon(worker, mm):
            return


# ---- faults that wait for room

cdef void _defer(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil:
    cdef uint32_t room
    cdef void *grown
    pthread_mutex_lock(&engine.deferred_lock)
    if _is_deferred(engine, mm.id, message):
        pthread_mutex_unlock(&engine.deferred_lock)
        return
    if engine.deferred_end == engine.deferred_room:
        room = 2 * engine.deferred_room + 256
        grown = realloc(engine.deferred, room * sizeof(Deferred))
        if grown == NULL:
            pthread_mutex_unlock(&engine.deferred_lock)
            engine_stop(engine, b"no memory for messages", 0)
            return
        engine.deferred = <Deferred *>grown
        engine.deferred_room = room
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
    """There is room again: the oldest first, as long as it lasts."""
    cdef Engine *engine = worker.engine
    cdef Deferred fault
    cdef Mm *mm
    while room_left(engine) > 0 and not engine.stopping and _take_deferred(engine, &fault):
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
    sys_reads_init(&worker.reads)
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


cdef int workers_start(Engine *engine) noexcept nogil:
    """Returns 0 or -errno; workers_stop cleans up in both cases."""
    cdef int at
    cdef int count = min(engine.cpus * THREADS_A_CPU, <int>MAX_WORKERS)
    cdef Worker *worker
    for at in range(count):
        worker = <Worker *>calloc(1, sizeof(Worker))
        if worker == NULL:
            return -12
        worker.engine = engine
        worker.cpu = at % engine.cpus
        worker.buffer = <uint8_t *>sys_reserve(<uint64_t>WINDOW_MAX * PAGE_BYTES)
        engine.worker_state[at] = worker
        if worker.buffer == NULL or pthread_create(&engine.workers[at], NULL, _worker_main, worker) != 0:
            free(worker)
            return -12
        engine.worker_count += 1
    return 0


cdef void workers_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set, and each epoll has an event that says so."""
    cdef int at
    for at in range(engine.worker_count):
        pthread_join(engine.workers[at], NULL)
        sys_release(engine.worker_state[at].buffer, <uint64_t>WINDOW_MAX * PAGE_BYTES)
        free(engine.worker_state[at].pending.messages)
        free(engine.worker_state[at])
    engine.worker_count = 0
