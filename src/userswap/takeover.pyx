# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking over: a new engine makes its state from what one that died has left in its arena.

Nothing of that is changed, so it can be done again if this engine dies, too. What is believed of it:

    page values     but for BUSY ones, of which the kernel is asked whether the page is there by now
    entries         that a page value names; the others are free. Their counts are as many as name them
    blocks          that a STORED entry names, with their lists and their place, in memory or in an area
    Mm.event        an event of which the program was told that it was heard
    the batch       that was being evicted: from staging is told which pages have gone there

All else is made anew. A thread of the engine that died may have been anywhere, but it ended with all that the kernel
was doing for it; the helpers live, and finish what they were asked for. The programs live as well: their faults wait
until they are raised anew (UFFDIO_WAKE), and what else they do waits at its event, which is not read.

    takeover_claim, takeover_area, takeover_all     make the state. Nobody outside sees a change
    takeover_begin                                  from here on the old state is no more: events are applied, helpers
                                                    that nobody knows of are ended, the programs go on
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from userswap.arena cimport arena_has, arena_take, buffer_claim, buffer_unmake
from userswap.batch cimport BATCH_PAGES, BATCH_RUNS, Batch, Run
from userswap.blocks cimport block_id_return, block_list_add, block_lists_make
from userswap.cipher cimport cipher_wrap
from userswap.desk cimport desk_discard, desk_is_busy, desk_taken
from userswap.enter cimport enter_verify
from userswap.events cimport event_apply
from userswap.evict cimport EVICT_MOVING, EVICT_NOTHING, EVICT_STORING, Evictor
from userswap.inject cimport (
    USERSWAP_DROP,
    USERSWAP_MOVE,
    USERSWAP_NOTHING,
    helper_dismiss,
    helper_is_idle,
    helper_is_in,
    helper_take,
)
from userswap.limit cimport limit_change
from userswap.log cimport (
    ANCHOR_PAGES,
    SUM_BYTES,
    BLOCK_FREE,
    BLOCK_FULL,
    BLOCK_STORED,
    INDEX_MAX,
    LIST_KEPT,
    LIST_QUEUE,
    LIST_TIER,
    MAX_BLOCKS,
    OPEN_HOT,
    OPEN_PLAIN,
    Block,
    Log,
)
from userswap.mappings cimport mappings_unregister_last
from userswap.mm cimport (
    MAX_LEFT_ALONE,
    MAX_MMS,
    WHOLE_TABLE_BITS,
    Mm,
    engine_stop,
    mm_get,
    mm_insert_as,
    mm_leave,
    mm_make,
    mm_next,
    mm_put,
)
from userswap.pagetable cimport PageTable, table_get, table_make, table_set, table_visit
from userswap.processes cimport Process, tree_find, tree_have
from userswap.ranges cimport Range, RangeBlock, Ranges, ranges_add, ranges_copy
from userswap.slots cimport slots_order_areas
from userswap.space cimport space_adopt, space_adopt_begin, space_word
from userswap.stores cimport Store, store_init
from userswap.system cimport (
    EIO,
    ENOMEM,
    ETIMEDOUT,
    UFFD_EVENT_PAGEFAULT,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_crash_point,
    sys_now_us,
    sys_page_absent,
    sys_process_dead,
    sys_shared_wake,
    sys_since_us,
    sys_sleep_us,
    sys_uffd_wake_all,
)
from userswap.types cimport (
    AGE_FRESH,
    BLOCK_BYTES,
    CACHED,
    PAGE_BYTES,
    PAGE_SHIFT,
    STORED,
    entry_state,
    is_busy,
    is_present,
    offset_of,
    present_value,
    stored_block,
    stored_index,
)

cdef enum:
    HELPER_US = 30000000        # a helper is done by then with what it was asked for, or never will be

cdef const char *_damage = b""


cdef int _damaged(const char *what) noexcept nogil:
    """What was left makes no sense. Always -EIO."""
    global _damage
    _damage = what
    return -EIO


cdef const char *takeover_damage() noexcept nogil:
    return _damage


cdef struct _Adopting:
    Engine *engine
    Engine *old
    Mm *mm
    Mm *old_mm
    PageTable *table        # that is being made
    int result              # 0, or the first -errno


# ---- memory that the blocks are in

cdef bint _has_blocks(Log *log) noexcept nogil:
    return log.block_end <= MAX_BLOCKS and arena_has(log.blocks, log.block_end * sizeof(Block))


cdef int takeover_claim(Engine *old) noexcept nogil:
    """What blocks lie in stays as it is: to be called before any buffer is made. Returns 0, or -EIO where what was
    left makes no sense."""
    cdef uint32_t at
    if not arena_has(old, sizeof(Engine)) or not _has_blocks(&old.log):
        return _damaged(b"no block table")
    for at in range(old.log.block_end):
        if old.log.blocks[at].state != BLOCK_FREE and old.log.blocks[at].data != NULL:
            if not buffer_claim(old.log.blocks[at].data):
                return _damaged(b"a block lies where none can")
    return 0


# ---- swap areas

cdef int takeover_area(Engine *engine, Engine *old, int area, int fd, int shared) noexcept nogil:
    """The area of this number goes on, open as `fd`: as for store_init. Returns 0 or -errno."""
    cdef Store *was = &old.log.areas[area]
    cdef Store *store = &engine.log.areas[area]
    cdef int result = store_init(store, fd, shared, was.slots * <uint64_t>BLOCK_BYTES)
    if result == 0 and engine.log.encrypts:
        result = cipher_wrap(store, engine.log.key, was.medium)
    if result != 0:
        return result
    store.priority = was.priority
    store.frees = was.frees
    store.never_discards = was.never_discards
    store.slot_end = min(was.slot_end, was.slots)
    _take_store_counts(store, was)
    engine.log.slots += store.slots
    return 0


cdef void _take_store_counts(Store *store, const Store *was) noexcept nogil:
    store.bytes_written = was.bytes_written
    store.writes = was.writes
    store.bytes_read = was.bytes_read
    store.reads = was.reads
    store.bytes_discarded = was.bytes_discarded


cdef int _find_free_slots(Log *log, int area) noexcept nogil:
    """All slots up to slot_end that no block has. Returns 0 or -ENOMEM."""
    cdef Store *store = &log.areas[area]
    cdef uint8_t *used = <uint8_t *>calloc(store.slot_end + 1, 1)
    cdef uint32_t at
    if used == NULL:
        return -ENOMEM
    for at in range(log.block_end):
        if log.blocks[at].state == BLOCK_STORED and log.blocks[at].area == <uint32_t>area:
            used[log.blocks[at].slot] = 1
    for at in range(store.slot_end):
        if used[at]:
            log.slots_used += 1
        else:
            store.returned[store.returned_count] = at
            store.returned_count += 1
    free(used)
    return 0


# ---- page tables and entries

cdef bint _is_in_batch(Engine *old, uint32_t offset) noexcept nogil:
    """Whether the bytes of a CACHED entry are in staging, as those of the batch are."""
    cdef Evictor *evictor = <Evictor *>old.eviction
    cdef uint32_t place
    if evictor == NULL or evictor.phase == EVICT_NOTHING:
        return False
    for place in range(min(evictor.batch.pages, <uint32_t>BATCH_PAGES)):
        if evictor.batch.offsets[place] == offset and evictor.batch.dirty[place]:
            return True
    return False


cdef int _note_stored(Engine *engine, uint64_t word) noexcept nogil:
    """One live page more of its block. Returns 0 or -EIO."""
    cdef uint32_t at = stored_block(word)
    cdef Block *block
    if at >= engine.log.block_end:
        return _damaged(b"an entry names no block")
    block = &engine.log.blocks[at]
    block.live += 1
    engine.log.used += max(block.used, stored_index(word) + 1) - block.used
    block.used = max(block.used, stored_index(word) + 1)
    engine.log.stored += 1
    return 0


cdef int _adopt_offset(Engine *engine, Engine *old, uint32_t offset) noexcept nogil:
    """A page value names it. Returns 0 or -errno."""
    cdef uint64_t word
    cdef int result
    if offset == engine.zero_offset or offset == engine.shared_offset or offset == engine.hot_offset:
        return 0
    result = space_adopt(&engine.space, &old.space, offset)
    if result == -EIO:
        return _damaged(b"a page names no entry")
    if result != 1:
        return result
    word = space_word(&engine.space, offset)
    if entry_state(word) == STORED:
        return _note_stored(engine, word)
    if entry_state(word) == CACHED and not _is_in_batch(old, offset):
        return _damaged(b"a page on its way out is in no batch")
    return 0


cdef uint32_t _settled_value(_Adopting *adopting, uint64_t page, uint32_t value) noexcept nogil:
    """What a page value is that the engine which died was about to change."""
    if not is_busy(value):
        return value
    if adopting.old_mm.entered:
        if sys_page_absent(adopting.old_mm.pagemap, page) == 0:
            return present_value(AGE_FRESH, 0)
    elif ranges_add(&adopting.mm.doubtful, page, page + 1) != 0:
        adopting.result = -ENOMEM
    return offset_of(value)


cdef void _adopt_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef _Adopting *adopting = <_Adopting *>context
    cdef uint64_t at
    cdef uint32_t value
    cdef int result
    for at in range(count):
        if values[at] == 0 or adopting.result != 0:
            continue
        value = _settled_value(adopting, page + at, values[at])
        if table_set(adopting.table, page + at, value) != 0:
            adopting.result = -ENOMEM
            return
        if offset_of(value) != 0:
            result = _adopt_offset(adopting.engine, adopting.old, offset_of(value))
            if result < 0:
                adopting.result = result


cdef void _count_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Mm *mm = <Mm *>context
    cdef uint64_t at
    for at in range(count):
        if is_present(values[at]):
            mm.present += 1
        elif values[at] != 0:
            mm.swapped += 1


# ---- address spaces

cdef int _adopt_ranges(Ranges *ranges, Ranges *was) noexcept nogil:
    """Returns 0, -EIO or -ENOMEM."""
    cdef Ranges view
    memset(&view, 0, sizeof(Ranges))
    if was.block == NULL:
        return 0
    if not arena_has(was.block, sizeof(RangeBlock)) or was.block.bytes != (
            sizeof(RangeBlock) + was.block.count * sizeof(Range)) or not arena_has(was.block, was.block.bytes):
        return _damaged(b"a set of ranges")
    view.items = <Range *>(was.block + 1)
    view.count = <uint32_t>was.block.count
    return ranges_copy(ranges, &view)


cdef int _adopt_sets(Mm *mm, Mm *was) noexcept nogil:
    """If a mapping was just being registered, it is not, and what is known of its pages is to be forgotten."""
    cdef int result = _adopt_ranges(&mm.ranges, &was.before if was.before_end != 0 else &was.ranges)
    if was.before_end != 0:
        result = ranges_copy(&mm.before, &mm.ranges) if result == 0 else result
        mm.before_start = was.before_start
        mm.before_end = was.before_end
    result = _adopt_ranges(&mm.unforked, &was.unforked) if result == 0 else result
    result = _adopt_ranges(&mm.wiped, &was.wiped) if result == 0 else result
    result = _adopt_ranges(&mm.spared, &was.spared) if result == 0 else result
    result = _adopt_ranges(&mm.taken, &was.taken) if result == 0 else result
    return _adopt_ranges(&mm.doubtful, &was.doubtful) if result == 0 else result


cdef int _adopt_helper(Mm *mm, Mm *was) noexcept nogil:
    """It goes on with what it was asked for. What it does without faulting is waited for: its end tells what was done.
    Returns 0 or -errno."""
    cdef uint64_t start = sys_now_us()
    mm.helper = was.helper
    mm.helper.cpu = -1
    mm.maps = was.maps
    mm.pagemap = was.pagemap
    mm.helper_failed = was.helper_failed
    mm.staging_used = mm.helper.staging_length      # what is in it goes before it is used
    mm.found = True
    if helper_take(&mm.helper) != 0:
        return -ENOMEM
    sys_shared_wake(&mm.helper.mailbox.posted)      # it may have been asked, and not been woken
    while not helper_is_idle(&mm.helper) and not sys_process_dead(mm.helper.pidfd):
        if mm.helper.mailbox.request not in (USERSWAP_NOTHING, USERSWAP_MOVE, USERSWAP_DROP):
            mm.helper_busy = True
            mm.unsharing = True
            break
        if sys_since_us(start) > HELPER_US:
            return -ETIMEDOUT
        sys_sleep_us(50)
    mm.entered = True
    return 0


cdef void _take_traits(Mm *mm, Mm *was) noexcept nogil:
    mm.parent = was.parent
    mm.forking = was.forking
    mm.parent_mm = was.parent_mm
    mm.unsettled = was.unsettled
    mm.shared = was.shared
    mm.exposed = was.exposed
    mm.protect_wanted = was.protect_wanted
    mm.move_step = was.move_step
    if was.event.event != 0 and was.event.event != UFFD_EVENT_PAGEFAULT:
        mm.event = was.event
        mm.event_step = was.event_step
        mm.event_again = True


cdef int _adopt_tables(Engine *engine, Engine *old, Mm *mm, Mm *was) noexcept nogil:
    cdef _Adopting adopting
    adopting.engine = engine
    adopting.old = old
    adopting.mm = mm
    adopting.old_mm = was
    adopting.table = mm.table
    adopting.result = 0
    table_visit(was.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _adopt_values, &adopting)
    if adopting.result == 0 and was.departed != NULL:
        mm.departed = adopting.table = table_make()
        if mm.departed == NULL:
            return -ENOMEM
        table_visit(was.departed, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _adopt_values, &adopting)
    return adopting.result


cdef int _adopt_mm(Engine *engine, Engine *old, Mm *was) noexcept nogil:
    """Returns 0 or -errno."""
    cdef Mm *mm = mm_make(engine, was.uffd, was.pid)
    cdef int result
    if mm == NULL:
        return -ENOMEM
    if was.detached:        # nothing is swapped, or known, any more; the helper may still be there
        mm.helper = was.helper
        mm.helper.mailbox = NULL
        return mm_insert_as(engine, mm, was.id)
    _take_traits(mm, was)
    mm.binding = was.binding and was.entered
    if not was.entered and was.binding:
        mm.pid = 0                  # of the helper, which the desk still has, nothing has been used
    elif not was.entered:
        mm.helper = was.helper      # if it was being left, what is still to be ended of it
        mm.helper.mailbox = NULL
    result = _adopt_helper(mm, was) if was.entered else 0
    result = _adopt_sets(mm, was) if result == 0 else result
    result = _adopt_tables(engine, old, mm, was) if result == 0 else result
    return mm_insert_as(engine, mm, was.id) if result == 0 else result


cdef void _each_mm(Engine *engine, void (*seen_to)(Engine *, Mm *) noexcept nogil) noexcept nogil:
    cdef uint32_t position = 0
    cdef Mm *mm
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return
        seen_to(engine, mm)
        mm_put(engine, mm)


cdef void _count_young(Engine *engine, Mm *mm) noexcept nogil:
    """The children whose parents' events are not all told."""
    cdef Mm *parent
    if not mm.unsettled:
        return
    parent = mm_get(engine, mm.parent_mm)
    mm.unsettled = parent != NULL
    if parent != NULL:
        parent.young += 1
        mm_put(engine, parent)


cdef int _adopt_mms(Engine *engine, Engine *old) noexcept nogil:
    cdef uint32_t at
    cdef Mm *was
    cdef int result
    for at in range(MAX_MMS):
        was = old.mms[at]
        if was == NULL:
            continue
        if not arena_has(was, sizeof(Mm)):
            return _damaged(b"an address space")
        if was.dead:
            continue
        result = _adopt_mm(engine, old, was)
        if result != 0:
            return result
    engine.mm_serial = old.mm_serial
    _each_mm(engine, _count_young)
    return 0


# ---- the batch that was being evicted

cdef int _find_moved(Mm *mm, Batch *batch, Run *run) noexcept nogil:
    """What of a run has gone to staging: moves go in order. Returns 0 or -errno."""
    cdef uint64_t staged = (batch.staging >> PAGE_SHIFT) + run.staged
    cdef int absent
    while run.moved < run.count:
        absent = sys_page_absent(mm.pagemap, staged + run.moved)
        if absent != 0:
            return absent if absent < 0 else 0
        run.moved += 1
    return 0


cdef int _mark_moved(Engine *engine, Engine *old, Mm *mm, Batch *batch, Run *run) noexcept nogil:
    """As batch_mark does. Returns 0 or -errno."""
    cdef uint32_t at, value, offset
    cdef int result
    for at in range(run.moved):
        value = table_get(mm.table, run.page + at)
        offset = batch.offsets[run.first + at]
        if value == offset:
            continue
        # Of a clean page the value had the offset already; that of a dirty one is nobody's yet.
        if batch.dirty[run.first + at]:
            result = _adopt_offset(engine, old, offset)
            if result < 0:
                return result
        if table_set(mm.table, run.page + at, offset) != 0:
            return -ENOMEM
    return 0


cdef int _adopt_batch(Engine *engine, Engine *old) noexcept nogil:
    """Its bytes are stored by the evictor, first of all. Returns 0 or -errno."""
    cdef Evictor *was = <Evictor *>old.eviction
    cdef Evictor *evictor
    cdef Mm *mm
    cdef uint32_t at
    cdef int result = 0
    if was == NULL:
        return 0
    if not arena_has(was, sizeof(Evictor)) or was.batch.run_count > BATCH_RUNS or was.batch.pages > BATCH_PAGES:
        return _damaged(b"the batch")
    engine.eviction = evictor = <Evictor *>arena_take(sizeof(Evictor))
    if evictor == NULL:
        return -ENOMEM
    evictor.batch = was.batch
    evictor.batch.refused_count = 0
    mm = mm_get(engine, was.mm_id) if was.phase != EVICT_NOTHING else NULL
    if mm == NULL:
        return 0
    if mm.entered and was.phase == EVICT_MOVING:
        for at in range(evictor.batch.run_count):
            result = _find_moved(mm, &evictor.batch, &evictor.batch.runs[at]) if result == 0 else result
            result = _mark_moved(engine, old, mm, &evictor.batch, &evictor.batch.runs[at]) if result == 0 else result
    evictor.mm_id = mm.id
    evictor.phase = EVICT_STORING
    engine.finishing = mm.id
    mm_put(engine, mm)
    return result


# ---- blocks

cdef int _adopt_list(const void *was, void *into, uint64_t bytes) noexcept nogil:
    if not arena_has(was, bytes):
        return _damaged(b"a list of a block")
    memcpy(into, was, bytes)
    return 0


cdef int _adopt_lists(Block *block, const Block *was) noexcept nogil:
    """Returns 0 or -errno."""
    cdef int result = block_lists_make(block)
    if result == 0:
        result = _adopt_list(was.owners, block.owners, block.used * sizeof(uint32_t))
    if result == 0 and block.packed:
        result = _adopt_list(was.lengths, block.lengths, block.used * sizeof(uint16_t))
    if result == 0 and block.packed:
        result = _adopt_list(was.anchors, block.anchors,
                             (block.used + ANCHOR_PAGES - 1) // ANCHOR_PAGES * sizeof(uint32_t))
    if result == 0 and was.sums != NULL:
        block.sums = <uint8_t *>arena_take(<uint64_t>block.used * SUM_BYTES)
        result = -ENOMEM if block.sums == NULL else _adopt_list(was.sums, block.sums,
                                                                <uint64_t>block.used * SUM_BYTES)
    return result


cdef uint32_t _bytes_of(Block *block) noexcept nogil:
    """Where what is in it ends."""
    cdef uint32_t at
    cdef uint32_t end
    if not block.packed:
        return block.used * PAGE_BYTES
    at = (block.used - 1) // ANCHOR_PAGES * ANCHOR_PAGES
    end = block.anchors[at // ANCHOR_PAGES]
    while at < block.used:
        end += (block.lengths[at] & 0xFFF) + 1 + SUM_BYTES
        at += 1
    return end


cdef int _place_block(Log *log, uint32_t at, const Block *was) noexcept nogil:
    """Stored where it was, or full in memory. Returns 0 or -EIO."""
    cdef Block *block = &log.blocks[at]
    cdef bint plain = block.kind == OPEN_PLAIN or block.kind == OPEN_HOT
    block.data = was.data
    block.doubtful = was.doubtful
    if was.state == BLOCK_STORED and block.sums == NULL and not block.packed:
        return _damaged(b"a block has no checksums")
    if was.state == BLOCK_STORED:
        if was.area >= <uint32_t>log.area_count or log.areas[was.area].gone or was.slot >= log.areas[was.area].slot_end:
            return _damaged(b"a block is in no slot")
        block.area = was.area
        block.slot = was.slot
        block.state = BLOCK_STORED
        if block.data != NULL:
            block_list_add(log, LIST_KEPT, at, False)
        return 0
    if block.data == NULL:
        return _damaged(b"a block is nowhere")
    block.state = BLOCK_FULL
    block.plain = plain
    log.plain += plain
    block_list_add(log, LIST_TIER if block.packed and not block.cleaned else LIST_QUEUE, at, False)
    return 0


cdef int _adopt_block(Log *log, uint32_t at, const Block *was) noexcept nogil:
    """A block that entries name: live and used are known by now. Returns 0 or -errno."""
    cdef Block *block = &log.blocks[at]
    cdef int result
    block.kind = was.kind
    block.hot = was.hot
    block.packed = was.packed
    block.serial = was.serial
    block.cleaned = was.cleaned
    block.settled = was.settled
    block.born = was.born
    block.closed = was.closed
    block.left = was.left
    if was.state == BLOCK_FREE or block.used > INDEX_MAX:
        return _damaged(b"an entry names a free block")
    result = _adopt_lists(block, was)
    if result != 0:
        return result
    block.bytes = _bytes_of(block)
    if block.bytes > BLOCK_BYTES:
        return _damaged(b"the lengths of a block")
    log.blocks_used += 1
    return _place_block(log, at, was)


cdef int _adopt_blocks(Log *log, Log *old) noexcept nogil:
    """Those that entries name; the numbers of the others, and what memory they had, are free. Returns 0 or -errno."""
    cdef uint32_t at
    cdef int result
    for at in range(old.block_end):
        if log.blocks[at].live > 0:
            result = _adopt_block(log, at, &old.blocks[at])
            if result != 0:
                return result
        else:
            block_id_return(log, at)
            if old.blocks[at].state != BLOCK_FREE and old.blocks[at].data != NULL:
                buffer_unmake(old.blocks[at].data)
    return 0


cdef int _share_buffers(Log *log) noexcept nogil:
    """As many blocks may stay in memory as do; buffers that are too many go as they come free. Returns 0 or
    -ENOMEM."""
    cdef uint32_t at
    for at in range(log.block_end):
        log.buffers_made += log.blocks[at].data != NULL
    log.tier_most = log.lists[LIST_TIER].count
    return 0


# ---- all of it

cdef void _take_state(Engine *engine, Engine *old) noexcept nogil:
    """What is no structure."""
    limit_change(engine, old.limit)
    engine.counters = old.counters
    engine.counters.takeovers += 1
    engine.stamp_shift = old.stamp_shift
    engine.evict_clock = old.evict_clock
    engine.resident = old.resident
    engine.resident_peak = old.resident_peak
    engine.granted = old.granted
    engine.ksm = old.ksm
    engine.prepared = old.prepared
    engine.log.clock = old.log.clock
    engine.log.serial = old.log.serial
    engine.log.dropped = old.log.dropped
    engine.log.slots_peak = old.log.slots_peak
    engine.pack.pages = old.pack.pages
    engine.pack.bytes = old.pack.bytes
    engine.pack.cleaned = old.pack.cleaned
    engine.pack.cleaned_bytes = old.pack.cleaned_bytes
    engine.pack.ahead = old.pack.ahead
    engine.pack.ahead_bytes = old.pack.ahead_bytes
    engine.left_alone_count = min(old.left_alone_count, <uint32_t>MAX_LEFT_ALONE)
    memcpy(engine.left_alone, old.left_alone, sizeof(engine.left_alone))
    if old.reason[0] != 0:
        engine_stop(engine, old.reason, 0)


cdef int takeover_all(Engine *engine, Engine *old) noexcept nogil:
    """All but what lies in the areas, which are there. Returns 0; -EIO where what was left makes no sense; or another
    -errno."""
    cdef int area
    cdef int result
    if (engine.zero_offset != old.zero_offset or engine.shared_offset != old.shared_offset
            or engine.hot_offset != old.hot_offset or engine.space.narrow != old.space.narrow
            or engine.log.apart != old.log.apart):
        return _damaged(b"another layout")
    _take_state(engine, old)
    engine.log.block_end = old.log.block_end
    result = space_adopt_begin(&engine.space, &old.space)
    result = _adopt_mms(engine, old) if result == 0 else result
    sys_crash_point(b"takeover-mms")
    result = _adopt_batch(engine, old) if result == 0 else result
    result = _adopt_blocks(&engine.log, &old.log) if result == 0 else result
    result = _share_buffers(&engine.log) if result == 0 else result
    for area in range(engine.log.area_count):
        if not engine.log.areas[area].gone:
            result = _find_free_slots(&engine.log, area) if result == 0 else result
    sys_crash_point(b"takeover-made")
    slots_order_areas(&engine.log)
    return result


# ---- going on

cdef void _end_unknown_helper(Engine *engine) noexcept nogil:
    """The tracer may have made one of which the engine that died did not get to know."""
    cdef uint32_t position = 0
    cdef bint known = engine.desk.line.result != 0 or engine.desk.helper.pid <= 0
    cdef Mm *mm
    while not known:
        mm = mm_next(engine, &position)
        if mm == NULL:
            break
        known = mm.entered and mm.helper.pid == engine.desk.helper.pid
        mm_put(engine, mm)
    if not known:
        desk_discard(engine.desk)
    desk_taken(engine.desk)


cdef bint _bind_process(Engine *engine, Mm *mm) noexcept nogil:
    """Finds the process that an address space was entered through. False where it has gone, or runs another program.
    It is asked for itself: the kernel's lists of children may miss one while others end."""
    cdef Process *process
    if sys_process_dead(mm.helper.target_pidfd) or helper_is_in(&mm.helper, mm.pid) != 1:
        return False
    process = tree_have(&engine.tree, mm.pid)
    if process != NULL:
        process.mm_id = mm.id
    return process != NULL


cdef void _bind_left_alone(Engine *engine) noexcept nogil:
    cdef uint32_t at, note
    for at in range(engine.tree.all.count):
        for note in range(engine.left_alone_count):
            if engine.tree.all.items[at].pid == engine.left_alone[note].pid:
                engine.tree.all.items[at].left_alone = True


cdef void _go_on(Engine *engine, Mm *mm) noexcept nogil:
    """What is about one address space."""
    pthread_mutex_lock(&mm.lock)
    if mm.before_end != 0:      # before anything there is evicted
        mappings_unregister_last(engine, mm)
    if mm.event.event != 0:
        sys_crash_point(b"takeover-event")
        event_apply(engine, mm)
    pthread_mutex_unlock(&mm.lock)
    if not mm.entered and mm.helper.pid > 0:
        helper_dismiss(&mm.helper)
    if mm.entered and not sys_process_dead(mm.helper.target_pidfd):
        sys_crash_point(b"takeover-wake")
    sys_uffd_wake_all(mm.uffd)      # faults that were read and not answered are raised again


cdef void _settle(Engine *engine, Mm *mm) noexcept nogil:
    """What process an address space is of, once all have gone on."""
    if mm.binding:
        enter_verify(engine, mm)
    if mm.entered and not _bind_process(engine, mm):
        mm_leave(engine, mm)


cdef void _count(Engine *engine, Mm *mm) noexcept nogil:
    table_visit(mm.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _count_values, mm)


cdef void takeover_begin(Engine *engine) noexcept nogil:
    """The keeper knows that the state is this engine's now. To be called before the threads start."""
    engine.desk_late = desk_is_busy(engine.desk)
    if not engine.desk_late:
        _end_unknown_helper(engine)
    tree_find(&engine.tree)
    _bind_left_alone(engine)
    _each_mm(engine, _count)        # before any event makes another address space
    _each_mm(engine, _go_on)
    _each_mm(engine, _settle)
