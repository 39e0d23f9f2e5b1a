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

from userswap.arena cimport arena_take
from userswap.batch cimport (
    BATCH_PAGES,
    Batch,
    Run,
    batch_allocate,
    batch_choose,
    batch_choose_behind,
    batch_mark,
    batch_move,
    batch_was_unshared,
)
from userswap.behind cimport AS_BEHIND, BY_HAND, returns_next_kind, trail_add, trail_any
from userswap.blocks cimport log_changed
from userswap.codec cimport codec_available
from userswap.events cimport events_drain
from userswap.inject cimport USERSWAP_DROP, USERSWAP_POPULATE_WRITE, helper_call
from userswap.limit cimport room_give, room_is_awaited, room_take
from userswap.log cimport log_commit, log_open_plain, log_reserve
from userswap.mm cimport Mm, engine_stop, evict_stamp, mm_get, mm_leave, mm_next, mm_put
from userswap.space cimport NO_FILL_CODE, space_change, space_fill_code, space_free, space_word
from userswap.system cimport (
    EAGAIN,
    ENOMEM,
    FOR_EVER_US,
    add_i64,
    load_i64,
    load_u32,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u32,
    sys_crash_point,
    sys_futex_advance,
    sys_futex_wait,
    sys_name_thread,
    sys_process_dead,
    sys_read_process,
    sys_release,
    sys_reserve,
    sys_sleep_us,
)
from userswap.tier cimport tier_init, tier_yield
from userswap.touch cimport touch_release
from userswap.types cimport (
    AGE_MAX,
    CACHED,
    FILLED,
    PAGE_BYTES,
    PAGE_SHIFT,
    entry_count,
    entry_state,
)
from userswap.writeback cimport fetch_main, pack_main, writeback_failed, writeback_main, writeback_make_room

cdef enum:
    PACKED_OPEN = 1         # buffers that are not for plain pages: the packer's open block, and one more for hot pages


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


cdef int _store(Evictor *evictor, uint32_t offset, const uint8_t *page, int which) noexcept nogil:
    """Makes a CACHED entry FILLED, or STORED in that open block, or frees it if its page was given back. One that is
    not CACHED any more was seen to by an engine before. Returns 0 or -errno."""
    cdef Engine *engine = evictor.engine
    cdef uint64_t code = _fill_code(engine, <const uint64_t *>page)
    cdef bint filled = code != NO_FILL_CODE()
    cdef uint64_t word
    cdef uint8_t *at = NULL
    cdef int result
    if not filled:
        result = log_reserve(&engine.log, which, &at)
        if result != 0:
            return result
        memcpy(at, page, PAGE_BYTES)
    pthread_mutex_lock(&engine.space.lock)
    word = space_word(&engine.space, offset)
    sys_crash_point(b"evict-store")
    if entry_state(word) != CACHED:
        pass
    elif entry_count(word) == 0:
        space_free(&engine.space, offset)
        add_i64(&engine.counters.pages_discarded_in_flight, 1)
    elif filled:
        space_change(&engine.space, offset, FILLED, code)
        add_i64(&engine.counters.pages_filled, 1)
    else:
        log_commit(&engine.log, which, offset, PAGE_BYTES, 0,
                   evict_stamp(engine))
    pthread_mutex_unlock(&engine.space.lock)
    return 0


cdef uint32_t _count(const uint8_t *flags, Run *run) noexcept nogil:
    """Of how many pages that a run has moved this is so."""
    cdef uint32_t at
    cdef uint32_t count = 0
    for at in range(run.moved):
        count += flags[run.first + at]
    return count


cdef bint _is_hot(Batch *batch, Run *run) noexcept nogil:
    """Whether the run goes with what came back soon: all of it, by what most of its pages did. Neighbours stay
    together, where one read brings them back."""
    return _count(batch.hot, run) * 2 > _count(batch.dirty, run)


cdef void _store_run(Evictor *evictor, Mm *mm, Run *run) noexcept nogil:
    cdef Batch *batch = &evictor.batch
    cdef uint64_t length = <uint64_t>run.moved << PAGE_SHIFT
    cdef uint32_t at
    cdef int result
    cdef int which = log_open_plain(&evictor.engine.log, _is_hot(batch, run))
    if _count(batch.dirty, run) == 0:
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
        result = _store(evictor, batch.offsets[run.first + at], evictor.pages + (<uint64_t>at << PAGE_SHIFT),
                        which)
        if result != 0:
            writeback_failed(evictor.engine, result)
            return


cdef void _store_batch(Evictor *evictor, Mm *mm) noexcept nogil:
    cdef uint32_t at
    for at in range(evictor.batch.run_count):
        if evictor.batch.runs[at].moved > 0:
            _store_run(evictor, mm, &evictor.batch.runs[at])
    sys_crash_point(b"evict-stored")
    store_u32(&evictor.phase, EVICT_NOTHING)


cdef bint _can_drop(Mm *mm) noexcept nogil:
    return mm.entered and not mm.helper_failed and not mm.helper_busy


cdef void _drop(Engine *engine, Mm *mm) noexcept nogil:
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
    sys_crash_point(b"evict-dropped")
    mm.staging_used = 0
    room_give(engine, mm.staging_pages)
    mm.staging_pages = 0


# ---- pages shared copy-on-write after a fork

cdef void _unshare(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    """Makes pages that UFFDIO_MOVE refused this address space's own, by writing nothing to them: a page that is
    shared with a living relative is copied, one that is so no more becomes exclusive again.

    Without Mm.lock, as the helper may fault: those faults must not wait for room, for which they would wait
    for us (mm.unsharing). A mapping that has changed meanwhile is populated a little; nothing worse."""
    cdef uint32_t at
    pthread_mutex_lock(&mm.lock)
    for at in range(batch.refused_count):
        touch_release(engine, mm, batch.refused[at].page, batch.refused[at].count)
    pthread_mutex_unlock(&mm.lock)
    mm.unsharing = True
    for at in range(batch.refused_count):
        mm.helper.mailbox.items[at].src = batch.refused[at].page << PAGE_SHIFT
        mm.helper.mailbox.items[at].len = <uint64_t>batch.refused[at].count << PAGE_SHIFT
        mm.helper.mailbox.items[at].dst = 0
    mm.helper.mailbox.request = USERSWAP_POPULATE_WRITE
    mm.helper.mailbox.count = batch.refused_count
    if helper_call(&mm.helper) != 0:
        mm.helper_failed = True
    mm.unsharing = False
    if batch.kind == BY_HAND:
        mm.hand = min(mm.hand, batch.refused[0].page)
    else:
        for at in range(batch.refused_count):
            trail_add(&mm.trail, batch.refused[at].page, batch.refused[at].count)
    memcpy(batch.unshared, batch.refused, sizeof(batch.refused))
    batch.unshared_count = batch.refused_count
    batch.unshared_mm = mm.id
    batch.refused_count = 0


cdef void _count_copied(Engine *engine, Mm *mm, Batch *batch) noexcept nogil:
    """What has moved only after it was made the mm's own was copied for that, as far as is known: its relatives have
    the old pages."""
    cdef uint32_t at
    cdef int64_t copied = 0
    for at in range(batch.run_count):
        if batch_was_unshared(mm, batch, batch.runs[at].page):
            copied += batch.runs[at].moved
    if copied > 0:
        room_take(engine, copied)
        add_i64(&engine.copied, copied)


# ---- a batch

cdef bint _choose(Mm *mm, Batch *batch, bint behind) noexcept nogil:
    """False when the hand reached the end of the table and starts anew."""
    if not behind:
        return batch_choose(mm, batch)
    batch_choose_behind(mm, batch)
    return True


cdef bint _evict_batch(Evictor *evictor, Mm *mm, bint behind, bint *wrapped) noexcept nogil:
    """Evicts some pages of an mm, of what its streams have left behind or from the hand on, its helper_lock held. False
    when it can give none now."""
    cdef Engine *engine = evictor.engine
    cdef Batch *batch = &evictor.batch
    cdef int result = 0
    if (mm.staging_used + (<uint64_t>BATCH_PAGES << PAGE_SHIFT) > mm.helper.staging_length
            or load_i64(&engine.resident) > engine.high):
        _drop(engine, mm)
    pthread_mutex_lock(&mm.lock)
    if mm.dead or mm.helper_failed:
        pthread_mutex_unlock(&mm.lock)
        wrapped[0] = True
        return False
    wrapped[0] = not _choose(mm, batch, behind)
    batch.staging = mm.helper.staging + mm.staging_used
    batch.moved = 0
    if batch.pages > 0:
        result = batch_allocate(engine, mm, batch)
        if result == 0:
            evictor.mm_id = mm.id
            sys_crash_point(b"evict-allocated")
            store_u32(&evictor.phase, EVICT_MOVING)
            result = batch_move(engine, mm, batch)
            sys_crash_point(b"evict-moved")
            batch_mark(engine, mm, batch)
            sys_crash_point(b"evict-marked")
            store_u32(&evictor.phase, EVICT_STORING)
            sys_crash_point(b"evict-storing")
            _count_copied(engine, mm, batch)
        else:
            writeback_failed(engine, result)
    pthread_mutex_unlock(&mm.lock)
    if result == -EAGAIN:
        events_drain(engine, mm, NULL)
    elif result != 0:
        mm.helper_failed = True     # the monitor finds out why; faults are served all the same
    _store_batch(evictor, mm)
    if batch.moved > 0:
        mm.staging_used += <uint64_t>batch.pages << PAGE_SHIFT
        sys_futex_advance(&engine.evict_done)
    if batch.refused_count > 0 and not mm.helper_failed:
        _drop(engine, mm)
        _unshare(engine, mm, batch)
        return True
    return batch.moved > 0 or result == -EAGAIN


cdef bint _wanted(Engine *engine) noexcept nogil:
    return load_i64(&engine.resident) > engine.low and not engine.stopping


cdef bint _can_evict(Mm *mm) noexcept nogil:
    return _can_drop(mm) and not mm.leaving and not mm.detaching


cdef Mm *_trailing(Engine *engine) noexcept nogil:
    """The mm whose streams have left something behind last, with a reference for the caller; NULL if nothing of it is
    left."""
    cdef Mm *mm = mm_get(engine, load_u32(&engine.trailing))
    if mm != NULL and not trail_any(&mm.trail):
        mm_put(engine, mm)
        return NULL
    return mm


cdef bint _next_is_behind(Engine *engine) noexcept nogil:
    """Whether the next batch is to be of what streams have left behind, and there is something."""
    cdef uint32_t kind
    cdef Mm *mm
    if not engine.drops_behind:
        return False
    pthread_mutex_lock(&engine.returns_lock)
    kind = returns_next_kind(&engine.returns, engine.evict_clock, engine.limit)
    pthread_mutex_unlock(&engine.returns_lock)
    if kind != AS_BEHIND:
        return False
    mm = _trailing(engine)
    if mm != NULL:
        mm_put(engine, mm)
    return mm != NULL


cdef bint _evict_from(Evictor *evictor, Mm *mm, bint behind, bint *wrapped) noexcept nogil:
    """Evicts from one address space while that is wanted, until the hand has gone round, or with `behind` until nothing
    is left that streams have left; or until the next batch is to be of the other kind. True if anything was evicted."""
    cdef Engine *engine = evictor.engine
    cdef bint any = False
    wrapped[0] = False
    evictor.behind = behind
    pthread_mutex_lock(&mm.helper_lock)
    while (not wrapped[0] and evictor.behind == behind and _can_evict(mm) and _wanted(engine)
            and (not behind or trail_any(&mm.trail))):
        writeback_make_room(engine)
        if _wanted(engine) and _evict_batch(evictor, mm, behind, wrapped):
            any = True
        evictor.behind = _next_is_behind(engine)
    if _can_drop(mm):
        _drop(engine, mm)
    pthread_mutex_unlock(&mm.helper_lock)
    return any


cdef bint _evict_behind(Evictor *evictor) noexcept nogil:
    """What streams have left behind last. True if anything was evicted."""
    cdef Engine *engine = evictor.engine
    cdef Mm *mm = _trailing(engine)
    cdef bint wrapped
    cdef bint any
    if mm == NULL:
        return False
    any = _evict_from(evictor, mm, True, &wrapped)
    mm_put(engine, mm)
    return any


cdef bint _evict_round(Evictor *evictor) noexcept nogil:
    """Goes over the address spaces once, from where the clock stands, while eviction is wanted; what streams have left
    behind goes first where the next batch is to be of that. The hand's batches in between go on from address space to
    address space as ever, so that what is learnt of them is true of all memory.

    True if anything was evicted."""
    cdef Engine *engine = evictor.engine
    cdef Mm *mm
    cdef bint wrapped
    cdef bint any = False
    while _wanted(engine):
        if evictor.behind and _evict_behind(evictor):
            any = True
            continue
        mm = mm_next(engine, &evictor.position)
        if mm == NULL:
            evictor.position = 0
            return any
        if _evict_from(evictor, mm, False, &wrapped):
            any = True
        if not wrapped and _can_evict(mm):
            evictor.position -= 1       # the hand is within this one: it goes on here
        mm_put(engine, mm)
    return any


cdef void _finish_batch(Evictor *evictor) noexcept nogil:
    """What the engine before has left in staging is stored first. Nobody ends the helper meanwhile."""
    cdef Engine *engine = evictor.engine
    cdef Mm *mm = mm_get(engine, engine.finishing) if engine.finishing != 0 else NULL
    if mm == NULL:
        engine.finishing = 0
        return
    pthread_mutex_lock(&mm.helper_lock)
    _store_batch(evictor, mm)
    sys_futex_advance(&engine.evict_done)
    if _can_drop(mm):
        _drop(engine, mm)
    store_u32(&engine.finishing, 0)
    pthread_mutex_unlock(&mm.helper_lock)
    if engine.finish_leaves:
        mm_leave(engine, mm)
    mm_put(engine, mm)


cdef void *_evictor_main(void *argument) noexcept nogil:
    cdef Evictor *evictor = <Evictor *>argument
    cdef Engine *engine = evictor.engine
    cdef uint32_t seen
    cdef int barren = 0
    sys_name_thread(b"evict")
    _finish_batch(evictor)
    while True:
        seen = load_u32(&engine.evict_wanted)
        if engine.stopping:
            break
        if not _wanted(engine):
            sys_futex_wait(&engine.evict_wanted, seen, FOR_EVER_US)
            continue
        # A round that gives nothing has lowered ages: some more may give. After that the rest is the monitor's.
        barren = 0 if _evict_round(evictor) else barren + 1
        if barren > AGE_MAX + 1:
            if room_is_awaited(engine):
                tier_yield(engine)      # what packed blocks hold is all that can still be had
            sys_sleep_us(2000)
    sys_release(evictor.pages, <uint64_t>BATCH_PAGES * PAGE_BYTES)
    return NULL


cdef int evict_start(Engine *engine) noexcept nogil:
    """Returns 0, -ENOMEM or -EAGAIN (as -11); evict_stop cleans up in all cases."""
    cdef Evictor *evictor = <Evictor *>engine.eviction
    if evictor == NULL:
        engine.eviction = evictor = <Evictor *>arena_take(sizeof(Evictor))
    if evictor == NULL:
        return -ENOMEM
    evictor.engine = engine
    evictor.pages = <uint8_t *>sys_reserve(<uint64_t>BATCH_PAGES * PAGE_BYTES)
    if evictor.pages == NULL:
        return -ENOMEM
    engine.evictor_runs = pthread_create(&engine.evictor, NULL, _evictor_main, evictor) == 0
    engine.writer_runs = pthread_create(&engine.writer, NULL, writeback_main, engine) == 0
    engine.fetcher_runs = pthread_create(&engine.fetcher, NULL, fetch_main, engine) == 0
    engine.log.packs = engine.packing and codec_available()
    if engine.log.packs:
        engine.log.plain_most = engine.log.buffers_base - (PACKED_OPEN << engine.log.apart)
    tier_init(engine)
    engine.packer_runs = pthread_create(&engine.packer, NULL, pack_main, engine) == 0
    return 0 if (engine.evictor_runs and engine.writer_runs and engine.fetcher_runs
                 and engine.packer_runs) else -11


cdef void evict_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set."""
    sys_futex_advance(&engine.evict_wanted)
    log_changed(&engine.log)
    pthread_mutex_lock(&engine.log.lock)
    engine.log.stopping = True
    pthread_mutex_unlock(&engine.log.lock)
    sys_futex_advance(&engine.log.fetch_wanted)
    if engine.fetcher_runs:
        pthread_join(engine.fetcher, NULL)
    if engine.packer_runs:
        pthread_join(engine.packer, NULL)
    if engine.evictor_runs:
        pthread_join(engine.evictor, NULL)
    engine.evictor_over = True
    log_changed(&engine.log)
    if engine.writer_runs:
        pthread_join(engine.writer, NULL)
