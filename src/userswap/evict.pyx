# SPDX-License-Identifier: GPL-2.0-or-later
"""Eviction.

One thread takes pages out, in batches of runs, one address space at a time:

 1. Under Mm.lock: the hand of reclaim chooses runs; dirty pages get an offset each, CACHED; the helper moves
    the runs to its staging area (UFFDIO_MOVE); what has moved becomes "swapped" in the page table.
 2. Without it: the bytes are read from staging, pages of one repeated word become FILLED, the others are
    packed into the open block, STORED. A page given back meanwhile has count 0, and is freed unwritten.
 3. Staging is dropped when it is full, or when nothing more is to be evicted.

Who can run at the same moment, and what they see. Before the move, program threads see their pages, and what
they write is moved with them. From the move on they fault; the fault thread waits for Mm.lock in step 1, finds
a CACHED entry in step 2 and waits for evict_done. Events of the program: those unread make the kernel refuse
the move (EAGAIN), and as they can be read only under Mm.lock, none is applied between the choice and the move.
A clean page needs no step 2: its entry still holds it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from userswap.events cimport events_drain
from userswap.inject cimport (
    USERSWAP_DROP,
    USERSWAP_MOVE,
    USERSWAP_POPULATE_WRITE,
    helper_call,
    userswap_item,
)
from userswap.limit cimport room_give
from userswap.log cimport log_clean, log_commit, log_free_slots, log_freed, log_reserve, log_write_next
from userswap.mm cimport WHOLE_TABLE_BITS, Mm, copy_of, engine_stop, entry_put, mm_next, mm_put
from userswap.pagetable cimport TABLE_LEAF_PAGES, table_get, table_next, table_set, table_visit
from userswap.ranges cimport ranges_hit
from userswap.reclaim cimport reclaim_run
from userswap.space cimport NO_FILL_CODE, space_allocate, space_fill_code, space_free, space_put, space_set, space_word
from userswap.system cimport (
    EAGAIN,
    EBUSY,
    ECANCELED,
    ENOENT,
    ENOSPC,
    add_i64,
    add_u32,
    load_i64,
    load_u32,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_wait,
    sys_futex_wake,
    sys_name_thread,
    sys_page_absent,
    sys_process_dead,
    sys_read_process,
    sys_release,
    sys_reserve,
    sys_sleep_us,
)
from userswap.types cimport (
    AGE_MAX,
    BLOCK_BYTES,
    CACHED,
    FILLED,
    PAGE_BYTES,
    PAGE_SHIFT,
    age_of,
    entry_count,
    entry_make,
    is_present,
    offset_of,
    present_value,
)

cdef enum:
    BATCH_PAGES = 256
    BATCH_RUNS = 64
    UNSHARE_RUNS = 8
    SLOTS_SPARE = 4         # blocks that cleaning needs to work in
    CLEAN_TURNS = 1000      # waits for a block that is in use
    CLEAN_GAIN = 16         # dead pages that a block must have for cleaning to help

cdef struct Run:
    uint64_t page
    uint32_t count          # chosen
    uint32_t moved          # taken out
    uint32_t staged         # place in staging, in pages from the start of the batch
    uint32_t first          # place of its first page in Batch.offsets

cdef struct Batch:
    Run runs[64]            # BATCH_RUNS
    uint32_t run_count
    uint32_t pages
    uint32_t moved
    uint64_t staging        # address of its first page
    uint32_t offsets[256]   # of dirty pages, CACHED; of clean ones, what they had
    uint8_t dirty[256]

cdef struct Unshare:
    uint64_t page
    uint32_t count

cdef struct Forgetting:
    Engine *engine
    int64_t copies

cdef struct Evictor:
    Engine *engine
    uint8_t *pages          # what was read from staging
    uint8_t *scratch        # a block, for cleaning
    uint32_t position       # of the clock, in Engine.mms
    Batch batch
    Unshare unshare[8]      # runs that were refused, perhaps because they are shared
    uint32_t unshare_count
    Unshare unshared[8]     # the last that were made the address space's own, and whose
    uint32_t unshared_count
    uint32_t unshared_mm


# ---- the choice, with Mm.lock held

cdef uint32_t _unspared(Mm *mm, uint64_t page, uint32_t count) noexcept nogil:
    """How many of `count` pages lie before one that must stay."""
    cdef uint32_t at
    if not ranges_hit(&mm.spared, page, page + count):
        return count
    for at in range(count):
        if ranges_hit(&mm.spared, page + at, page + at + 1):
            return at
    return count


cdef bint _choose(Evictor *evictor, Mm *mm) noexcept nogil:
    """Fills the batch from the hand on. False when the hand reached the end of the table and starts anew."""
    cdef Batch *batch = &evictor.batch
    cdef uint32_t start, count
    cdef uint64_t within
    cdef uint32_t *leaf
    batch.run_count = 0
    batch.pages = 0
    while batch.pages < BATCH_PAGES and batch.run_count < BATCH_RUNS:
        leaf = table_next(mm.table, &mm.hand)
        if leaf == NULL:
            mm.hand = 0
            return False
        within = mm.hand % TABLE_LEAF_PAGES
        count = reclaim_run(&leaf[within], <uint32_t>(TABLE_LEAF_PAGES - within), BATCH_PAGES - batch.pages, &start)
        if count == 0:
            mm.hand += TABLE_LEAF_PAGES - within
            continue
        count = _unspared(mm, mm.hand + start, count)
        if count == 0:
            mm.hand += start + 1
            continue
        batch.runs[batch.run_count].page = mm.hand + start
        batch.runs[batch.run_count].count = count
        batch.runs[batch.run_count].moved = 0
        batch.runs[batch.run_count].staged = batch.pages
        batch.runs[batch.run_count].first = batch.pages
        batch.run_count += 1
        batch.pages += count
        mm.hand += start + count
    return True


cdef void _forget_copy(Engine *engine, Mm *mm, uint64_t page, uint32_t value) noexcept nogil:
    """The copy of a clean page is not to be trusted. Space.lock is held."""
    cdef uint64_t freed = space_put(&engine.space, offset_of(value))
    if freed != 0:
        log_freed(&engine.log, freed)
    table_set(mm.table, page, present_value(0, 0))


cdef int _allocate(Evictor *evictor, Mm *mm) noexcept nogil:
    """An offset for each dirty page of the batch. Returns 0 or -ENOSPC, the batch cut short."""
    cdef Engine *engine = evictor.engine
    cdef Batch *batch = &evictor.batch
    cdef uint32_t run, at, value
    cdef uint32_t place = 0
    pthread_mutex_lock(&engine.space.lock)
    for run in range(batch.run_count):
        for at in range(batch.runs[run].count):
            value = table_get(mm.table, batch.runs[run].page + at)
            if engine.ksm and copy_of(engine, value) != 0 and offset_of(value) != engine.zero_offset:
                _forget_copy(engine, mm, batch.runs[run].page + at, value)
                value = 0
            batch.dirty[place] = copy_of(engine, value) == 0
            batch.offsets[place] = offset_of(value)
            if batch.dirty[place]:
                batch.offsets[place] = space_allocate(&engine.space, entry_make(CACHED, 1, 0))
            if batch.offsets[place] == 0:
                pthread_mutex_unlock(&engine.space.lock)
                return -ENOSPC
            place += 1
    pthread_mutex_unlock(&engine.space.lock)
    return 0


# ---- the move, with Mm.lock held

cdef void _refuse(Engine *engine, Mm *mm, uint64_t page) noexcept nogil:
    """The page cannot be taken now (pinned, shared, locked, in a mapping of another kind): not for a while."""
    table_set(mm.table, page, present_value(AGE_MAX, offset_of(table_get(mm.table, page))))
    add_i64(&engine.counters.evict_refused_pinned, 1)


cdef void _request_moves(Batch *batch, Mm *mm, uint32_t first_run) noexcept nogil:
    """Asks for what is left of the runs from `first_run` on."""
    cdef userswap_item *item = &mm.helper.mailbox.items[0]
    cdef Run *run
    cdef uint32_t at
    for at in range(first_run, batch.run_count):
        run = &batch.runs[at]
        item.src = (run.page + run.moved) << PAGE_SHIFT
        item.dst = batch.staging + (<uint64_t>(run.staged + run.moved) << PAGE_SHIFT)
        item.len = <uint64_t>(run.count - run.moved) << PAGE_SHIFT
        item += 1
    mm.helper.mailbox.request = USERSWAP_MOVE
    mm.helper.mailbox.mode = 0
    mm.helper.mailbox.count = batch.run_count - first_run


cdef int _move_once(Evictor *evictor, Mm *mm, uint32_t first_run, uint32_t *failed) noexcept nogil:
    """One call of the helper. Returns 0 when all runs from `first_run` on were moved; else the -errno that
    ended the run *failed; or -1000 - errno when the helper does not answer."""
    cdef Batch *batch = &evictor.batch
    cdef userswap_item *item = &mm.helper.mailbox.items[0]
    cdef uint32_t at, moved
    cdef int result
    _request_moves(batch, mm, first_run)
    result = helper_call(&mm.helper)
    if result != 0:
        return -1000 + result
    for at in range(first_run, batch.run_count):
        moved = 0
        if item.result > 0:
            moved = min(<uint32_t>(item.result >> PAGE_SHIFT), batch.runs[at].count - batch.runs[at].moved)
        batch.runs[at].moved += moved
        batch.moved += moved
        if batch.runs[at].moved < batch.runs[at].count:
            failed[0] = at
            if item.result < 0:
                return <int>item.result
            return -EAGAIN if moved == 0 else 1     # stopped midway: asking for the rest tells why
        item += 1
    return 0


cdef int _move(Evictor *evictor, Mm *mm) noexcept nogil:
    """Moves the batch, going round pages that cannot be moved. Returns 0, -EAGAIN when messages are to be read
    before the rest can be moved, or -errno of a helper that is gone."""
    cdef Batch *batch = &evictor.batch
    cdef uint32_t first = 0
    cdef int result
    batch.moved = 0
    while first < batch.run_count:
        result = _move_once(evictor, mm, first, &first)
        if result == 0:
            return 0
        if result <= -1000:
            return result + 1000
        if result == -EAGAIN:
            mm.hand = batch.runs[first].page + batch.runs[first].moved
            return -EAGAIN
        if result == 1:
            continue
        _stopped_at(evictor, mm, &batch.runs[first], result)
        first += 1
    return 0


cdef void _stopped_at(Evictor *evictor, Mm *mm, Run *run, int result) noexcept nogil:
    cdef uint64_t page = run.page + run.moved
    if result == -ENOENT and sys_page_absent(mm.pagemap, page) == 1 and copy_of(
            evictor.engine, table_get(mm.table, page)) == 0:
        # MADV_FREE had given it back before we knew of the mapping, and the kernel has dropped it since.
        table_set(mm.table, page, 0)
        mm.present -= 1
        add_i64(&evictor.engine.counters.pages_vanished, 1)
    elif result == -EBUSY and evictor.unshare_count < UNSHARE_RUNS and not _unshared(evictor, mm, page):
        evictor.unshare[evictor.unshare_count].page = page
        evictor.unshare[evictor.unshare_count].count = run.count - run.moved
        evictor.unshare_count += 1
    else:
        _refuse(evictor.engine, mm, page)
        _go_round(&evictor.batch, run)


cdef void _go_round(Batch *batch, Run *run) noexcept nogil:
    """The run ends with the page that was refused; what lies behind it is a run of its own."""
    cdef Run *rest = &batch.runs[batch.run_count]
    cdef uint32_t skip = run.moved + 1
    if skip < run.count and batch.run_count < BATCH_RUNS:
        rest.page = run.page + skip
        rest.count = run.count - skip
        rest.moved = 0
        rest.staged = run.staged + skip
        rest.first = run.first + skip
        run.count = skip
        batch.run_count += 1


cdef bint _unshared(Evictor *evictor, Mm *mm, uint64_t page) noexcept nogil:
    """Whether the page has just been made the address space's own: then it is pinned, not shared."""
    cdef uint32_t at
    if evictor.unshared_mm != mm.id:
        return False
    for at in range(evictor.unshared_count):
        if evictor.unshared[at].page <= page < evictor.unshared[at].page + evictor.unshared[at].count:
            return True
    return False


cdef void _mark_moved(Evictor *evictor, Mm *mm) noexcept nogil:
    """What has moved is swapped; offsets that were not needed are freed."""
    cdef Engine *engine = evictor.engine
    cdef Batch *batch = &evictor.batch
    cdef Run *run
    cdef uint32_t at, place, number
    cdef uint32_t zeros = 0
    for number in range(batch.run_count):
        run = &batch.runs[number]
        for at in range(run.count):
            place = run.first + at
            if at < run.moved:
                table_set(mm.table, run.page + at, batch.offsets[place])
                zeros += batch.offsets[place] == engine.zero_offset
                if not batch.dirty[place]:
                    add_i64(&engine.counters.pages_evicted_clean, 1)
            elif batch.dirty[place]:
                pthread_mutex_lock(&engine.space.lock)
                space_free(&engine.space, batch.offsets[place])
                pthread_mutex_unlock(&engine.space.lock)
    mm.present -= batch.moved
    mm.swapped += batch.moved
    mm.staging_pages += batch.moved - zeros     # the shared zero page is no memory of anybody
    engine.evict_clock += batch.moved
    add_i64(&engine.counters.pages_evicted, batch.moved)


# ---- the bytes, without Mm.lock

cdef bint _is_filled(const uint64_t *words) noexcept nogil:
    cdef uint32_t at
    cdef uint64_t differ = 0
    if words[0] != words[1] or words[0] != words[511]:
        return False
    for at in range(PAGE_BYTES // 8):
        differ |= words[at] ^ words[0]
    return differ == 0


cdef uint64_t _fill_code(Engine *engine, const uint64_t *words) noexcept nogil:
    """What codes a page of one repeated word; NO_FILL_CODE for all other pages."""
    cdef uint64_t code = NO_FILL_CODE()
    if _is_filled(words):
        pthread_mutex_lock(&engine.space.lock)
        code = space_fill_code(&engine.space, words[0])
        pthread_mutex_unlock(&engine.space.lock)
    return code


cdef int _store(Evictor *evictor, uint32_t offset, const uint8_t *page) noexcept nogil:
    """Makes a CACHED entry FILLED or STORED, or frees it if its page was given back. Returns 0 or -errno."""
    cdef Engine *engine = evictor.engine
    cdef uint64_t code = _fill_code(engine, <const uint64_t *>page)
    cdef bint filled = code != NO_FILL_CODE()
    cdef uint64_t word
    cdef uint8_t *at = NULL
    cdef int result
    if not filled:
        result = log_reserve(&engine.log, &at)
        if result != 0:
            return result
        memcpy(at, page, PAGE_BYTES)
    pthread_mutex_lock(&engine.space.lock)
    word = space_word(&engine.space, offset)
    if entry_count(word) == 0:
        space_free(&engine.space, offset)
        add_i64(&engine.counters.pages_discarded_in_flight, 1)
    elif filled:
        space_set(&engine.space, offset, entry_make(FILLED, entry_count(word), code))
        add_i64(&engine.counters.pages_filled, 1)
    else:
        log_commit(&engine.log, offset, <uint32_t>(engine.evict_clock >> engine.stamp_shift))
    pthread_mutex_unlock(&engine.space.lock)
    return 0


cdef bint _any_dirty(Batch *batch, Run *run) noexcept nogil:
    cdef uint32_t at
    for at in range(run.moved):
        if batch.dirty[run.first + at]:
            return True
    return False


cdef void _store_run(Evictor *evictor, Mm *mm, Run *run) noexcept nogil:
    cdef Batch *batch = &evictor.batch
    cdef uint64_t length = <uint64_t>run.moved << PAGE_SHIFT
    cdef uint32_t at
    cdef int result
    if not _any_dirty(batch, run):
        return
    if sys_read_process(mm.helper.pid, evictor.pages, batch.staging + (<uint64_t>run.staged << PAGE_SHIFT),
                        length) != <long>length:
        mm.helper_failed = True
        memset(evictor.pages, 0, length)
        if not sys_process_dead(mm.helper.target_pidfd) or mm.shared:
            engine_stop(evictor.engine, b"the helper ended while it held memory of process", mm.pid)
            return
    for at in range(run.moved):
        if not batch.dirty[run.first + at]:
            continue
        result = _store(evictor, batch.offsets[run.first + at], evictor.pages + (<uint64_t>at << PAGE_SHIFT))
        if result != 0:
            _space_exhausted(evictor.engine, result)
            return


cdef void _space_exhausted(Engine *engine, int result) noexcept nogil:
    if result == -ECANCELED:
        return
    if result == -ENOSPC:
        engine_stop(engine, b"the swap areas are full", 0)
    else:
        engine_stop(engine, b"the swap areas cannot be written: error", result)


cdef void _drop(Evictor *evictor, Mm *mm) noexcept nogil:
    """Empties the staging area. The helper is ours."""
    cdef int64_t pages = <int64_t>(mm.staging_used >> PAGE_SHIFT)
    if pages == 0:
        return
    mm.helper.mailbox.request = USERSWAP_DROP
    mm.helper.mailbox.count = 1
    mm.helper.mailbox.items[0].src = mm.helper.staging
    mm.helper.mailbox.items[0].len = mm.staging_used
    mm.helper.mailbox.items[0].dst = 0
    if helper_call(&mm.helper) != 0:
        mm.helper_failed = True
    mm.staging_used = 0
    room_give(evictor.engine, mm.staging_pages)
    mm.staging_pages = 0


# ---- pages shared copy-on-write after a fork

cdef void _unshare(Evictor *evictor, Mm *mm) noexcept nogil:
    """Makes pages that UFFDIO_MOVE refused this address space's own, by writing nothing to them: a page that is
    shared with a living relative is copied, one that is so no more becomes exclusive again.

    Without Mm.lock, as the helper may fault: those faults must not wait for room, for which they would wait
    for us (mm.unsharing). A mapping that has changed meanwhile is populated a little; nothing worse."""
    cdef uint32_t at
    if evictor.unshare_count == 0:
        return
    mm.unsharing = True
    for at in range(evictor.unshare_count):
        mm.helper.mailbox.items[at].src = evictor.unshare[at].page << PAGE_SHIFT
        mm.helper.mailbox.items[at].len = <uint64_t>evictor.unshare[at].count << PAGE_SHIFT
        mm.helper.mailbox.items[at].dst = 0
    mm.helper.mailbox.request = USERSWAP_POPULATE_WRITE
    mm.helper.mailbox.count = evictor.unshare_count
    if helper_call(&mm.helper) != 0:
        mm.helper_failed = True
    mm.unsharing = False
    mm.hand = min(mm.hand, evictor.unshare[0].page)
    memcpy(evictor.unshared, evictor.unshare, sizeof(evictor.unshare))
    evictor.unshared_count = evictor.unshare_count
    evictor.unshared_mm = mm.id
    evictor.unshare_count = 0


# ---- a batch

cdef bint _evict_batch(Evictor *evictor, Mm *mm, bint *wrapped) noexcept nogil:
    """Evicts some pages of an mm, its helper_lock held. False when it can give none now."""
    cdef Engine *engine = evictor.engine
    cdef Batch *batch = &evictor.batch
    cdef int result = 0
    cdef uint32_t at
    if (mm.staging_used + (<uint64_t>BATCH_PAGES << PAGE_SHIFT) > mm.helper.staging_length
            or load_i64(&engine.resident) > engine.high):
        _drop(evictor, mm)
    pthread_mutex_lock(&mm.lock)
    if mm.dead or mm.helper_failed:
        pthread_mutex_unlock(&mm.lock)
        wrapped[0] = True
        return False
    wrapped[0] = not _choose(evictor, mm)
    batch.staging = mm.helper.staging + mm.staging_used
    batch.moved = 0
    if batch.pages > 0:
        result = _allocate(evictor, mm)
        if result == 0:
            result = _move(evictor, mm)
            _mark_moved(evictor, mm)
        else:
            _space_exhausted(engine, result)
    pthread_mutex_unlock(&mm.lock)
    if result == -EAGAIN:
        events_drain(engine, mm, NULL)
    elif result != 0:
        mm.helper_failed = True     # the monitor finds out why; faults are served all the same
    for at in range(batch.run_count):
        if batch.runs[at].moved > 0:
            _store_run(evictor, mm, &batch.runs[at])
    if batch.moved > 0:
        mm.staging_used += <uint64_t>batch.pages << PAGE_SHIFT
        add_u32(&engine.evict_done, 1)
        sys_futex_wake(&engine.evict_done)
    if evictor.unshare_count > 0 and not mm.helper_failed:
        _drop(evictor, mm)
        _unshare(evictor, mm)
        return True
    return batch.moved > 0 or result == -EAGAIN


cdef bint _wanted(Engine *engine) noexcept nogil:
    return load_i64(&engine.resident) > engine.low and not engine.stopping


cdef void _forget_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Forgetting *forgetting = <Forgetting *>context
    cdef Engine *engine = forgetting.engine
    cdef uint64_t at
    for at in range(count):
        if (not is_present(values[at]) or copy_of(engine, values[at]) == 0
                or offset_of(values[at]) == engine.zero_offset):
            continue
        entry_put(engine, offset_of(values[at]))
        values[at] = present_value(age_of(values[at]), 0)       # still write-protected: one fault more
        forgetting.copies += 1


cdef int64_t _forget_copies(Engine *engine) noexcept nogil:
    """Gives up the copies that are kept of present pages, as they take the place of what must be swapped. How many
    there were."""
    cdef Forgetting forgetting
    cdef uint32_t position = 0
    cdef Mm *mm
    forgetting.engine = engine
    forgetting.copies = 0
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return forgetting.copies
        pthread_mutex_lock(&mm.lock)
        table_visit(mm.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _forget_values, &forgetting)
        pthread_mutex_unlock(&mm.lock)
        mm_put(engine, mm)


cdef void _make_slots(Evictor *evictor) noexcept nogil:
    """Cleans until there are slots to write to. The copies of pages that are present go first, as soon as cleaning
    alone would gain too little."""
    cdef Engine *engine = evictor.engine
    cdef int gained
    cdef int turns = 0
    while log_free_slots(&engine.log) < SLOTS_SPARE and not engine.stopping:
        gained = log_clean(&engine.log, evictor.scratch)
        if gained == -EAGAIN and turns < CLEAN_TURNS:
            turns += 1
            sys_sleep_us(200)
        elif gained < CLEAN_GAIN and _forget_copies(engine) > 0:
            continue
        elif gained < CLEAN_GAIN:
            if log_free_slots(&engine.log) == 0:
                _space_exhausted(engine, -ENOSPC if gained >= 0 else gained)
                sys_sleep_us(100000)
            return
        add_i64(&engine.counters.blocks_cleaned, 1)


cdef bint _evict_round(Evictor *evictor) noexcept nogil:
    """Goes over the address spaces once, from where the clock stands, while eviction is wanted.

    True if anything was evicted."""
    cdef Engine *engine = evictor.engine
    cdef Mm *mm
    cdef bint wrapped
    cdef bint any = False
    while _wanted(engine):
        mm = mm_next(engine, &evictor.position)
        if mm == NULL:
            evictor.position = 0
            return any
        wrapped = False
        pthread_mutex_lock(&mm.helper_lock)
        while not wrapped and mm.entered and not mm.helper_failed and _wanted(engine):
            _make_slots(evictor)
            if _evict_batch(evictor, mm, &wrapped):
                any = True
        if mm.entered and not mm.helper_failed:
            _drop(evictor, mm)
        pthread_mutex_unlock(&mm.helper_lock)
        if not wrapped and mm.entered and not mm.helper_failed:
            evictor.position -= 1       # the hand is within this one: it goes on here
        mm_put(engine, mm)
    return any


cdef void *_evictor_main(void *argument) noexcept nogil:
    cdef Evictor evictor
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    cdef int barren = 0
    evictor.engine = engine
    evictor.position = 0
    evictor.unshare_count = 0
    evictor.unshared_count = 0
    evictor.unshared_mm = 0
    evictor.pages = <uint8_t *>sys_reserve(<uint64_t>BATCH_PAGES * PAGE_BYTES)
    evictor.scratch = <uint8_t *>sys_reserve(BLOCK_BYTES)
    sys_name_thread(b"evict")
    while not engine.stopping:
        seen = load_u32(&engine.evict_wanted)
        if not _wanted(engine):
            sys_futex_wait(&engine.evict_wanted, seen, 3600000000)
            continue
        # A round that gives nothing has lowered ages: some more may give. After that the rest is the monitor's.
        barren = 0 if _evict_round(&evictor) else barren + 1
        if barren > AGE_MAX + 1:
            sys_sleep_us(2000)
    sys_release(evictor.pages, <uint64_t>BATCH_PAGES * PAGE_BYTES)
    sys_release(evictor.scratch, BLOCK_BYTES)
    return NULL


# ---- writing blocks

cdef void *_writer_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    cdef int result
    sys_name_thread(b"write")
    while not engine.evictor_over:
        seen = load_u32(&engine.log.changed)
        result = log_write_next(&engine.log)
        if result < 0:
            sys_sleep_us(10000)
        elif result == 0:
            sys_futex_wait(&engine.log.changed, seen, 3600000000)
    return NULL


cdef int evict_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); evict_stop cleans up in both cases."""
    engine.evictor_runs = pthread_create(&engine.evictor, NULL, _evictor_main, engine) == 0
    engine.writer_runs = pthread_create(&engine.writer, NULL, _writer_main, engine) == 0
    return 0 if engine.evictor_runs and engine.writer_runs else -11


cdef void evict_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set."""
    add_u32(&engine.evict_wanted, 1)
    sys_futex_wake(&engine.evict_wanted)
    add_u32(&engine.log.changed, 1)
    sys_futex_wake(&engine.log.changed)
    pthread_mutex_lock(&engine.log.lock)
    engine.log.stopping = True
    pthread_mutex_unlock(&engine.log.lock)
    if engine.evictor_runs:
        pthread_join(engine.evictor, NULL)
    engine.evictor_over = True
    add_u32(&engine.log.changed, 1)
    sys_futex_wake(&engine.log.changed)
    if engine.writer_runs:
        pthread_join(engine.writer, NULL)
