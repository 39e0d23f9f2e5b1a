# SPDX-License-Identifier: GPL-2.0-or-later
"""Fill: bringing swapped pages back, the one that was faulted on and those beside it.

In three parts: planned under Mm.lock, loaded without it, put in place under it. What can happen meanwhile:
  - Other threads of the program fault on the same page. Its value is BUSY from the moment we decide to fill
    it; they drop their message, and our copy, or our wake if we could not copy, wakes their threads too.
  - The program gives the page back, moves it, or forks, while we read its bytes without the lock. Its value
    is then no longer what we left, and we do not copy. The entry's bytes stay true and its offset is not
    handed out anew, because a fill holds a count of it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from userswap.behind cimport returns_back, returns_sampled, trail_add
from userswap.events cimport events_drain
from userswap.limit cimport room_left, room_take
from userswap.fetch cimport log_fetch, log_in_memory
from userswap.load cimport SEGMENTS, Fill, Segment, load_begin, load_end, load_pages
from userswap.log cimport (
    BLOCK_STORED,
    Block,
    log_free_slots,
    log_is_young,
    log_pin,
    log_unpin,
)
from userswap.mm cimport engine_stop, entry_put, evict_stamp, mm_is_there
from userswap.pagetable cimport table_get, table_set
from userswap.ranges cimport ranges_hit
from userswap.readahead cimport Window, readahead_done, readahead_look_beyond, readahead_window, window_page
from userswap.reclaim cimport LEFT_LEAST, STREAMING, reclaim_age, reclaim_distance
from userswap.slots cimport slots_keep_copies
from userswap.space cimport space_fill_value, space_get, space_word
from userswap.system cimport (
    EAGAIN,
    EEXIST,
    SYS_READS_MAX,
    ENOENT,
    ESRCH,
    add_i64,
    load_u32,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u32,
    sys_crash_point,
    sys_futex_wait,
    sys_now_us,
    sys_pagemap_guard,
    sys_uffd_copy,
    sys_uffd_wake,
)
from userswap.tier cimport tier_fault
from userswap.trace cimport TRACE_FILLED, trace_fault
from userswap.types cimport (
    AGE_FRESH,
    AGE_READAHEAD,
    CACHED,
    FILLED,
    PAGE_BYTES,
    PAGE_SHIFT,
    STORED,
    busy_value,
    entry_payload,
    entry_state,
    is_swapped,
    offset_of,
    present_value,
    stored_block,
    stored_index,
    stored_stamp,
)

cdef enum:
    SAMPLES = 16            # pages of the next windows that are looked at
    AHEAD_BLOCKS = 4        # ... and not fetched if they lie in more blocks
    KEPT_TRIAL = 1024       # pages kept before it is judged whether that is worth it
    KEPT_PAUSE = 4096       # fills without, before it is tried again


# ---- guards

cdef uint32_t fill_unguarded(Mm *mm, uint64_t start, uint64_t page, uint32_t count) noexcept nogil:
    """How many pages may be put in place from `start` on, of a window of `count` that holds `page`; 0 when only
    `page` itself may. MADV_GUARD_INSTALL raises no event, and a copy would overwrite a guard."""
    cdef uint64_t guard
    if count == 1 or not mm.entered:
        return count
    guard = sys_pagemap_guard(mm.pagemap, start << PAGE_SHIFT, (start + count) << PAGE_SHIFT) >> PAGE_SHIFT
    return <uint32_t>(guard - start) if guard > page else 0


cdef uint32_t _unguarded_steps(Mm *mm, uint64_t address, int64_t step, uint32_t count) noexcept nogil:
    """As fill_unguarded, of a stride's pages."""
    cdef uint32_t at
    cdef uint64_t start
    if not mm.entered:
        return count
    for at in range(1, count):
        start = window_page(address, step, at) << PAGE_SHIFT
        if sys_pagemap_guard(mm.pagemap, start, start + PAGE_BYTES) == start:
            return at
    return count


# ---- fill: planning, with Mm.lock held

cdef inline uint64_t _page_of(Fill *fill, uint32_t at) noexcept nogil:
    """Of the fill's pages the one at this place."""
    return window_page(fill.address, fill.step, at)


cdef bint _keep_copies(Engine *engine, Mm *mm, bint write) noexcept nogil:
    """Whether the copies of what is brought in are kept while it stays clean, if where they lie allows it. A kept page
    is write-protected; where most of these are written to all the same, only now and then one is kept, to see if that
    changes."""
    if write or engine.ksm:
        return False
    if mm.kept > KEPT_TRIAL and mm.kept_broken * 2 > mm.kept:
        mm.kept_refused += 1
        if mm.kept_refused < KEPT_PAUSE:
            return False
        mm.kept = 0
        mm.kept_broken = 0
    mm.kept_refused = 0
    return True


cdef bint _keeps(Engine *engine, Fill *fill, uint64_t word) noexcept nogil:
    """... and of this page, whose block is pinned. What is in no area yet takes memory, or will: it is not kept where
    that is what the memory tier could have."""
    cdef Block *block = &engine.log.blocks[stored_block(word)]
    if not fill.keep:
        return False
    if entry_state(word) == FILLED:
        return fill.plenty
    if block.state == BLOCK_STORED:
        return slots_keep_copies(&engine.log, block)
    return fill.plenty and not engine.log.packs


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
        segment.direct = False
        segment.read = NULL
        segment.origin = NULL
        segment.packed = entry_state(word) == STORED and engine.log.blocks[stored_block(word)].packed
        segment.keep = _keeps(engine, fill, word)
        segment.hot = (entry_state(word) == STORED and not segment.keep
                       and log_is_young(&engine.log, &engine.log.blocks[stored_block(word)]))
    segment.count += 1
    fill.values[at] = offset
    fill.keeps[at] = segment.keep
    fill.hot[at] = segment.hot
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


cdef void _begin_plan(Engine *engine, Fill *fill, uint64_t word) noexcept nogil:
    """`word` is the entry of the page that the fault is for."""
    fill.count = 0
    fill.segments = 0
    fill.area_reads = 0
    fill.age = AGE_FRESH
    if entry_state(word) == STORED:
        fill.pages_since = reclaim_distance(evict_stamp(engine), stored_stamp(word)) << engine.stamp_shift
        fill.age = reclaim_age(evict_stamp(engine), stored_stamp(word),
                               <uint32_t>(engine.resident >> engine.stamp_shift))


cdef void _plan_pages(Engine *engine, Mm *mm, Fill *fill, uint32_t most) noexcept nogil:
    """Adds pages from where the fill starts on, up to the first that cannot be taken. Space.lock is held."""
    cdef uint64_t page
    cdef uint32_t value
    while fill.count < most:
        page = _page_of(fill, fill.count)
        value = table_get(mm.table, page)
        if not is_swapped(value) or not _plan_page(engine, fill, fill.count, offset_of(value)):
            break
        table_set(mm.table, page, busy_value(offset_of(value)))
        fill.count += 1


cdef bint _plan(Worker *worker, Mm *mm, uint64_t page, Window *window, Fill *fill) noexcept nogil:
    """Plans to bring in the page and those beside it. False when the page is just being evicted."""
    cdef Engine *engine = worker.engine
    cdef int64_t room = max(room_left(engine), <int64_t>1) if not worker.unbounded else <int64_t>window.count
    cdef uint32_t most = <uint32_t>min(<int64_t>window.count, room)
    cdef uint64_t low = page
    cdef uint64_t word
    if window.step == PAGE_BYTES:
        # A downward window starts where the run of swapped pages below the fault does.
        low = _lowest(engine, mm, page, max(window.start, page + 1 - min(<uint64_t>most, page + 1)))
        most = <uint32_t>min(<uint64_t>most, window.start + window.count - low)
        most = fill_unguarded(mm, low, page, most)
    else:
        most = _unguarded_steps(mm, window.address, window.step, most)
    if most == 0:
        low = page
        most = 1
    pthread_mutex_lock(&engine.space.lock)
    word = space_word(&engine.space, offset_of(table_get(mm.table, page)))
    _begin_plan(engine, fill, word)
    fill.step = window.step
    if entry_state(word) == CACHED:
        pthread_mutex_unlock(&engine.space.lock)
        return False
    while True:
        fill.start = low
        fill.address = window.address if window.step != PAGE_BYTES else low << PAGE_SHIFT
        _plan_pages(engine, mm, fill, most)
        if low + fill.count > page or low == page:
            break
        # What lies below could not be taken up to the page itself: that alone, then.
        pthread_mutex_unlock(&engine.space.lock)
        _abandon(worker, mm, fill)
        pthread_mutex_lock(&engine.space.lock)
        low = page
        most = 1
    pthread_mutex_unlock(&engine.space.lock)
    fill.faulted = <uint32_t>(page - fill.start)
    window.start = fill.start
    window.count = fill.count
    return fill.count > 0


cdef void _release(Worker *worker, Fill *fill) noexcept nogil:
    """Lets go of the counts and blocks that a plan holds."""
    cdef Engine *engine = worker.engine
    cdef uint32_t at
    for at in range(fill.count):
        entry_put(engine, fill.values[at])
    for at in range(fill.segments):
        if fill.segment[at].state == STORED:
            log_unpin(&engine.log, fill.segment[at].block)


cdef void _wake(Mm *mm, Fill *fill) noexcept nogil:
    """Whoever waits for any of the pages."""
    cdef uint32_t at
    if fill.step == PAGE_BYTES and fill.count > 0:
        sys_uffd_wake(mm.uffd, fill.start << PAGE_SHIFT, <uint64_t>fill.count << PAGE_SHIFT)
        return
    for at in range(fill.count):
        sys_uffd_wake(mm.uffd, _page_of(fill, at) << PAGE_SHIFT, PAGE_BYTES)


cdef void _abandon(Worker *worker, Mm *mm, Fill *fill) noexcept nogil:
    """Undoes a plan, with Mm.lock held: what is still BUSY by us is swapped again, and those who wait for it
    are woken to fault anew."""
    cdef uint32_t at
    for at in range(fill.count):
        if table_get(mm.table, _page_of(fill, at)) == busy_value(fill.values[at]):
            table_set(mm.table, _page_of(fill, at), fill.values[at])
    _wake(mm, fill)
    _release(worker, fill)
    fill.count = 0
    fill.segments = 0
    fill.area_reads = 0


cdef void _look_ahead(Engine *engine, Mm *mm, uint64_t page, Window *window) noexcept nogil:
    """A stream's next two windows are read while the program uses this one, if their pages lie in few blocks. Mm.lock
    is held."""
    cdef uint32_t blocks[4]         # AHEAD_BLOCKS
    cdef uint32_t count = 0
    cdef uint32_t sample, at, value
    cdef uint64_t next, word
    if window.count < STREAMING or window.step != PAGE_BYTES:
        return
    pthread_mutex_lock(&engine.space.lock)
    for sample in range(SAMPLES):
        at = sample * 2 * window.count // (SAMPLES - 1)
        next = window.start + window.count + at if page == window.start else window.start - 1 - at
        value = table_get(mm.table, next)
        word = space_word(&engine.space, offset_of(value)) if is_swapped(value) else 0
        if entry_state(word) != STORED or log_in_memory(&engine.log, stored_block(word)):
            continue
        for at in range(count):
            if blocks[at] == stored_block(word):
                break
        else:
            if count == AHEAD_BLOCKS:
                count = 0
                break
            blocks[count] = stored_block(word)
            count += 1
    pthread_mutex_unlock(&engine.space.lock)
    for at in range(count):
        log_fetch(&engine.log, blocks[at])


# ---- fill: putting pages in place, with Mm.lock held

cdef uint32_t _still_ours(Mm *mm, Fill *fill, uint32_t first) noexcept nogil:
    """How many pages from `first` on are still BUSY by us, and keep their copies or not as it does; of a stride one."""
    cdef uint32_t at = first
    cdef uint32_t end = fill.count if fill.step == PAGE_BYTES else first + 1
    while (at < end and fill.keeps[at] == fill.keeps[first]
            and table_get(mm.table, _page_of(fill, at)) == busy_value(fill.values[at])):
        at += 1
    return at - first


cdef void _note_return(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    if returns_sampled(mm.id, page, engine.limit):
        pthread_mutex_lock(&engine.returns_lock)
        returns_back(&engine.returns, mm.id, page, engine.evict_clock)
        pthread_mutex_unlock(&engine.returns_lock)


cdef void _mark_filled(Worker *worker, Mm *mm, Fill *fill, uint32_t first, uint32_t count) noexcept nogil:
    cdef uint32_t at, age
    cdef bint drops_behind = worker.engine.drops_behind
    cdef bint streaming = drops_behind and fill.count >= STREAMING
    for at in range(first, first + count):
        age = fill.age if at == fill.faulted and not streaming else AGE_READAHEAD
        if drops_behind:
            _note_return(worker.engine, mm, _page_of(fill, at))
        if fill.keeps[at]:
            table_set(mm.table, _page_of(fill, at), present_value(age, fill.values[at]))
        else:
            table_set(mm.table, _page_of(fill, at),
                      present_value(age, worker.engine.hot_offset if fill.hot[at] else 0))
            entry_put(worker.engine, fill.values[at])
    mm.present += count
    mm.swapped -= count
    if fill.keeps[first]:
        mm.kept += count
    room_take(worker.engine, count)
    add_i64(&worker.engine.counters.pages_in, count)


cdef const uint8_t *_bytes_from(Worker *worker, Fill *fill, uint32_t first, uint32_t *count) noexcept nogil:
    """Where the bytes of page `first` are; *count becomes how many of the pages lie together there."""
    cdef Segment *segment
    cdef uint32_t at
    for at in range(fill.segments):
        segment = &fill.segment[at]
        if not segment.direct or segment.first + segment.count <= first:
            continue
        if segment.first > first:
            count[0] = min(count[0], segment.first - first)
            break
        count[0] = min(count[0], segment.first + segment.count - first)
        return segment.data + <uint64_t>(segment.index + first - segment.first) * PAGE_BYTES
    return worker.scratch.pages + <uint64_t>first * PAGE_BYTES


cdef uint32_t _put_run(Worker *worker, Mm *mm, Fill *fill, uint32_t first, uint32_t count,
                       int *error) noexcept nogil:
    cdef const uint8_t *data = _bytes_from(worker, fill, first, &count)
    cdef uint32_t done = <uint32_t>(sys_uffd_copy(mm.uffd, _page_of(fill, first) << PAGE_SHIFT, data,
                                                  <uint64_t>count << PAGE_SHIFT, fill.keeps[first],
                                                  error) >> PAGE_SHIFT)
    sys_crash_point(b"fill-copied")
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
            events_drain(worker.engine, mm, worker)
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
    cdef uint64_t page = _page_of(fill, at)
    table_set(mm.table, page, fill.values[at])
    if error == -EEXIST and ranges_hit(&mm.doubtful, page, page + 1):
        mm_is_there(worker.engine, mm, page)
    elif error == -EEXIST:
        engine_stop(worker.engine, b"a page is present that should be swapped", <long>page)
    elif error != -ENOENT and error != -ESRCH:
        engine_stop(worker.engine, b"a page could not be brought back", error)
    return False


cdef void _tell_tier(Engine *engine, Fill *fill, uint64_t us) noexcept nogil:
    """What this fault took, if its page lies in a block."""
    cdef uint32_t at = 0
    while fill.segment[at].first + fill.segment[at].count <= fill.faulted:
        at += 1
    if fill.segment[at].state == STORED:
        tier_fault(engine, fill.segment[at].block, fill.segment[at].data == NULL, fill.pages_since, fill.count, us)


cdef void _record(Engine *engine, Mm *mm, Fill *fill, uint64_t page) noexcept nogil:
    """In the trace, where there is one. Pages of a stride are told of one by one."""
    cdef uint32_t at
    if fill.step == PAGE_BYTES:
        trace_fault(engine.trace, TRACE_FILLED, mm.id, page, fill.start, fill.count)
        return
    for at in range(fill.count if engine.trace != NULL else 0):
        trace_fault(engine.trace, TRACE_FILLED, mm.id, _page_of(fill, at), _page_of(fill, at), 1)


cdef int fill_page(Worker *worker, Mm *mm, uint64_t address, bint write) noexcept nogil:
    """Brings the swapped page that holds the address back, with Mm.lock held. Returns 0, or -EAGAIN when it is just
    being evicted."""
    cdef Engine *engine = worker.engine
    cdef uint64_t page = address >> PAGE_SHIFT
    cdef Window window
    cdef Fill fill
    cdef uint32_t seen = load_u32(&engine.evict_done)
    cdef uint64_t begun
    cdef int result = 0
    fill.keep = _keep_copies(engine, mm, write)
    fill.plenty = log_free_slots(&engine.log) * 2 > engine.log.slots
    readahead_window(&mm.fills, address, &window)
    add_i64(&engine.counters.pages_readahead_used, window.confirmed)
    if not _plan(worker, mm, page, &window, &fill):
        pthread_mutex_unlock(&mm.lock)
        sys_futex_wait(&engine.evict_done, seen, 1000)
        pthread_mutex_lock(&mm.lock)
        return -EAGAIN
    readahead_look_beyond(mm.table, &window)
    readahead_done(&mm.fills, &window)
    if engine.drops_behind and window.left_count >= LEFT_LEAST:
        trail_add(&mm.trail, window.left_start, window.left_count)
        store_u32(&engine.trailing, mm.id)
    _look_ahead(engine, mm, page, &window)
    pthread_mutex_unlock(&mm.lock)
    begun = sys_now_us() if engine.log.packs else 0
    sys_crash_point(b"fill-planned")
    load_begin(worker)
    result = load_pages(worker, &fill)
    if result == 0 and engine.log.packs:
        _tell_tier(engine, &fill, sys_now_us() - begun)
    sys_crash_point(b"fill-loaded")
    pthread_mutex_lock(&mm.lock)
    if result == 0:
        if not _put_in_place(worker, mm, &fill):
            _wake(mm, &fill)
        _record(engine, mm, &fill, page)
        add_i64(&engine.counters.faults, 1)
        add_i64(&engine.counters.pages_readahead, fill.count - 1)
        if fill.area_reads == 0:
            add_i64(&engine.counters.faults_from_memory, 1)
        if fill.age > AGE_FRESH:
            add_i64(&engine.counters.pages_refaulted, 1)
    load_end(worker)
    sys_crash_point(b"fill-marked")
    _release(worker, &fill)
    return 0
