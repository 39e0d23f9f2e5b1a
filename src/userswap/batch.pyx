# SPDX-License-Identifier: GPL-2.0-or-later
"""A batch of pages on its way out of an address space: chosen, moved to staging, marked as swapped.

All of it happens under one hold of Mm.lock and of Mm.helper_lock (evict.pyx says who sees what meanwhile).
"""

from libc.stdint cimport int64_t

from userswap.behind cimport AS_BEHIND, BY_HAND, returns_evicted, returns_sampled, trail_add, trail_take
from userswap.inject cimport USERSWAP_MOVE, helper_call, userswap_item
from userswap.log cimport log_freed
from userswap.mm cimport copy_of, evict_stamp
from userswap.pagetable cimport TABLE_LEAF_PAGES, table_get, table_next, table_set
from userswap.ranges cimport ranges_hit
from userswap.reclaim cimport reclaim_run
from userswap.space cimport space_allocate, space_free, space_put, space_stamp
from userswap.system cimport (
    EAGAIN,
    EBUSY,
    ENOENT,
    ENOSPC,
    add_i64,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_crash_point,
    sys_page_absent,
)
from userswap.trace cimport TRACE_EVICTED, trace_span
from userswap.types cimport (
    AGE_FRESH,
    AGE_MAX,
    CACHED,
    PAGE_SHIFT,
    age_of,
    entry_make,
    is_present,
    offset_of,
    present_value,
)


# ---- the choice

cdef uint32_t _unspared(Mm *mm, uint64_t page, uint32_t count) noexcept nogil:
    """How many of `count` pages lie before one that must stay."""
    cdef uint32_t at
    if not ranges_hit(&mm.spared, page, page + count):
        return count
    for at in range(count):
        if ranges_hit(&mm.spared, page + at, page + at + 1):
            return at
    return count


cdef void _begin(Batch *batch, uint32_t kind) noexcept nogil:
    batch.run_count = 0
    batch.pages = 0
    batch.kind = kind


cdef void _add(Batch *batch, uint64_t page, uint32_t count) noexcept nogil:
    cdef Run *run = &batch.runs[batch.run_count]
    run.page = page
    run.count = count
    run.moved = 0
    run.staged = batch.pages
    run.first = batch.pages
    batch.run_count += 1
    batch.pages += count


cdef uint32_t _run_behind(Mm *mm, uint64_t page, uint32_t count) noexcept nogil:
    """How many of the pages from `page` on were not wanted again."""
    cdef uint32_t at = 0
    cdef uint32_t value = table_get(mm.table, page)
    while at < count and is_present(value) and age_of(value) <= AGE_FRESH:
        at += 1
        value = table_get(mm.table, page + at)
    return _unspared(mm, page, at)


cdef bint _is_chosen(Batch *batch, uint64_t page, uint32_t count) noexcept nogil:
    """Whether some of it is in the batch already: streams may go over the same pages."""
    cdef uint32_t at
    for at in range(batch.run_count):
        if batch.runs[at].page < page + count and page < batch.runs[at].page + batch.runs[at].count:
            return True
    return False


cdef void batch_choose_behind(Mm *mm, Batch *batch) noexcept nogil:
    """Fills the batch with what streams have left behind. What does not fit in is the hand's."""
    cdef uint64_t start = 0
    cdef uint32_t count = 0
    cdef uint32_t run
    _begin(batch, AS_BEHIND)
    while batch.pages < BATCH_PAGES and trail_take(&mm.trail, BATCH_PAGES - batch.pages, &start, &count):
        while count > 0 and batch.run_count < BATCH_RUNS:
            run = _run_behind(mm, start, count)
            if run > 0 and not _is_chosen(batch, start, run):
                _add(batch, start, run)
            start += max(run, <uint32_t>1)
            count -= max(run, <uint32_t>1)


cdef bint batch_choose(Mm *mm, Batch *batch) noexcept nogil:
    """Fills the batch from the hand on. False when the hand reached the end of the table and starts anew."""
    cdef uint32_t start, count
    cdef uint64_t within
    cdef uint32_t *leaf
    _begin(batch, BY_HAND)
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
        _add(batch, mm.hand + start, count)
        mm.hand += start + count
    return True


cdef void _forget_copy(Engine *engine, Mm *mm, uint64_t page, uint32_t value) noexcept nogil:
    """The copy of a clean page is not to be trusted. Space.lock is held."""
    cdef uint64_t freed
    table_set(mm.table, page, present_value(0, 0))
    freed = space_put(&engine.space, offset_of(value))
    if freed != 0:
        log_freed(&engine.log, freed)


cdef int batch_allocate(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    """An offset for each dirty page of the batch. Returns 0 or -ENOSPC, the batch cut short."""
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
            batch.hot[place] = offset_of(value) == engine.hot_offset
            batch.offsets[place] = offset_of(value)
            if batch.dirty[place]:
                batch.offsets[place] = space_allocate(&engine.space, entry_make(CACHED, 1, 0))
            if batch.offsets[place] == 0:
                pthread_mutex_unlock(&engine.space.lock)
                return -ENOSPC
            place += 1
    pthread_mutex_unlock(&engine.space.lock)
    return 0


# ---- the move

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


cdef bint _count_untold(Batch *batch, Mm *mm, Run *run) noexcept nogil:
    """Adds what a move that stopped has taken without saying so. True if there was any.

    Linux 6.18 (move_pages in mm/userfaultfd.c) does not forget the -EAGAIN of a page table entry that changed while
    it was looked at, as while memory is compacted, or on a first write to the shared zero page. So it takes its next
    try, which moves what follows, for failed as well, and ends with EEXIST on finding the place taken: by what it has
    moved itself."""
    cdef uint64_t staged = (batch.staging >> PAGE_SHIFT) + run.staged
    cdef uint32_t before = run.moved
    while (run.moved < run.count and sys_page_absent(mm.pagemap, staged + run.moved) == 0
            and sys_page_absent(mm.pagemap, run.page + run.moved) == 1):
        run.moved += 1
    batch.moved += run.moved - before
    return run.moved > before


cdef int _move_once(Mm *mm, Batch *batch, uint32_t first_run, uint32_t *failed) noexcept nogil:
    """One call of the helper. Returns 0 when all runs from `first_run` on were moved; else the -errno that
    ended the run *failed; or -1000 - errno when the helper does not answer."""
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
        sys_crash_point(b"evict-moving")
        batch.runs[at].moved += moved
        batch.moved += moved
        if batch.runs[at].moved < batch.runs[at].count:
            failed[0] = at
            if _count_untold(batch, mm, &batch.runs[at]):
                return 1
            if item.result < 0:
                return <int>item.result
            return -EAGAIN if moved == 0 else 1     # stopped midway: asking for the rest tells why
        item += 1
    return 0


cdef int batch_move(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    """Moves the batch, going round pages that cannot be moved. Returns 0, -EAGAIN when messages are to be read
    before the rest can be moved, or -errno of a helper that is gone."""
    cdef uint32_t first = 0
    cdef int result
    batch.moved = 0
    while first < batch.run_count:
        if batch.runs[first].moved == batch.runs[first].count:
            first += 1
            continue
        result = _move_once(mm, batch, first, &first)
        if result == 0:
            return 0
        if result <= -1000:
            return result + 1000
        if result == -EAGAIN:
            if batch.kind == BY_HAND:
                mm.hand = batch.runs[first].page + batch.runs[first].moved
            else:
                trail_add(&mm.trail, batch.runs[first].page + batch.runs[first].moved,
                          batch.runs[first].count - batch.runs[first].moved)
            return -EAGAIN
        if result == 1:
            continue
        _stopped_at(engine, mm, batch, &batch.runs[first], result)
        first += 1
    return 0


cdef void _stopped_at(Engine *engine, Mm *mm, Batch *batch, Run *run, int result) noexcept nogil:
    cdef uint64_t page = run.page + run.moved
    if result == -ENOENT and sys_page_absent(mm.pagemap, page) == 1 and copy_of(
            engine, table_get(mm.table, page)) == 0:
        # MADV_FREE had given it back before we knew of the mapping, and the kernel has dropped it since.
        table_set(mm.table, page, 0)
        mm.present -= 1
        add_i64(&engine.counters.pages_vanished, 1)
    elif result == -EBUSY and batch.refused_count < BATCH_RUNS and not batch_was_unshared(mm, batch, page):
        batch.refused[batch.refused_count].page = page
        batch.refused[batch.refused_count].count = run.count - run.moved
        batch.refused_count += 1
    else:
        _refuse(engine, mm, page)
        _go_round(batch, run)


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


cdef bint batch_was_unshared(Mm *mm, Batch *batch, uint64_t page) noexcept nogil:
    """Whether the page has just been made the address space's own. If it is refused all the same, it is pinned."""
    cdef uint32_t at
    if batch.unshared_mm != mm.id:
        return False
    for at in range(batch.unshared_count):
        if batch.unshared[at].page <= page < batch.unshared[at].page + batch.unshared[at].count:
            return True
    return False


cdef void _note_samples(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    cdef Run *run
    cdef uint32_t number, at
    for number in range(batch.run_count):
        run = &batch.runs[number]
        for at in range(run.moved):
            if returns_sampled(mm.id, run.page + at, engine.limit):
                pthread_mutex_lock(&engine.returns_lock)
                returns_evicted(&engine.returns, mm.id, run.page + at, batch.kind, engine.evict_clock)
                pthread_mutex_unlock(&engine.returns_lock)


cdef void batch_mark(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    """What has moved is swapped; offsets that were not needed are freed."""
    cdef Run *run
    cdef uint32_t at, place, number
    cdef uint32_t zeros = 0
    cdef int64_t clean = 0
    pthread_mutex_lock(&engine.space.lock)
    for number in range(batch.run_count):
        run = &batch.runs[number]
        for at in range(run.count):
            place = run.first + at
            if at < run.moved:
                table_set(mm.table, run.page + at, batch.offsets[place])
                sys_crash_point(b"evict-mark")
                zeros += batch.offsets[place] == engine.zero_offset
                if not batch.dirty[place]:
                    space_stamp(&engine.space, batch.offsets[place], evict_stamp(engine))
                    clean += 1
            elif batch.dirty[place]:
                space_free(&engine.space, batch.offsets[place])
    pthread_mutex_unlock(&engine.space.lock)
    for number in range(batch.run_count):
        trace_span(engine.trace, TRACE_EVICTED, mm.id, batch.runs[number].page, batch.runs[number].moved)
    mm.present -= batch.moved
    mm.swapped += batch.moved
    mm.staging_pages += batch.moved - zeros     # the shared zero page is no memory of anybody
    if engine.drops_behind:
        _note_samples(engine, mm, batch)
    engine.evict_clock += batch.moved
    add_i64(&engine.counters.pages_evicted, batch.moved)
    add_i64(&engine.counters.pages_evicted_clean, clean)
