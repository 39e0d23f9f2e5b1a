# SPDX-License-Identifier: GPL-2.0-or-later
"""Writeback: the threads that pack full blocks and write them to the areas, and room in these when they are nearly
full."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from userswap.fetch cimport log_fetch_next, log_fetch_none
from userswap.log cimport log_free_slots, log_write_next
from userswap.mm cimport WHOLE_TABLE_BITS, Mm, copy_of, engine_stop, engine_stop_at, entry_put, mm_next, mm_put
from userswap.pack cimport pack_clean, pack_clean_ahead, pack_compact, pack_next
from userswap.pagetable cimport table_visit
from userswap.slots cimport slots_spare, slots_discard_next
from userswap.system cimport (
    EAGAIN,
    ECANCELED,
    ENOSPC,
    FOR_EVER_US,
    add_i64,
    load_i64,
    load_u32,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_wait,
    sys_name_thread,
    sys_now_us,
    sys_sleep_us,
    sys_step_back,
)
from userswap.tier cimport tier_adjust, tier_fetched, tier_trim, tier_yield
from userswap.types cimport BLOCK_BYTES, age_of, is_present, offset_of, present_value

cdef enum:
    CLEAN_TURNS = 1000      # waits for a block that is in use
    YIELDED_US = 1000       # the time to write a block
    CLEAN_GAIN = 16         # dead pages that a block must have for cleaning to help

cdef struct Forgetting:
    Engine *engine
    int64_t copies


cdef void writeback_failed(Engine *engine, int result) noexcept nogil:
    """Nothing more can be packed: the program is stopped, unless the engine just ends."""
    if result == -ECANCELED:
        engine.cancelled = True
        return
    if result == -ENOSPC:
        engine_stop(engine, b"the swap areas are full", 0)
    elif result == engine.log.error and engine.log.error_area >= 0:
        engine_stop_at(engine, b"the swap areas cannot be written", result, engine.log.error_area,
                       <uint64_t>engine.log.error_slot * BLOCK_BYTES)
    else:
        engine_stop(engine, b"the swap areas cannot be written: error", result)


cdef void _forget_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Forgetting *forgetting = <Forgetting *>context
    cdef Engine *engine = forgetting.engine
    cdef uint64_t at
    cdef uint32_t value
    for at in range(count):
        value = values[at]
        if not is_present(value) or copy_of(engine, value) == 0 or offset_of(value) == engine.zero_offset:
            continue
        values[at] = present_value(age_of(value), 0)        # still write-protected: one fault more
        entry_put(engine, offset_of(value))
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


cdef void writeback_make_room(Engine *engine) noexcept nogil:
    """Cleans until there are slots to write to. As soon as cleaning would gain too little, the copies of pages that are
    present go, then the memory tier, until there is room without an eviction. Where all areas have gone there is
    nothing to clean: memory may still take what is packed."""
    cdef int gained
    cdef int turns = 0
    if engine.log.order_count == 0:
        tier_trim(engine)
    while (engine.log.order_count > 0 and log_free_slots(&engine.log) < slots_spare(&engine.log)
            and load_i64(&engine.resident) > engine.low and not engine.stopping):
        gained = pack_clean(&engine.log, &engine.pack)
        if gained == -EAGAIN and turns < CLEAN_TURNS:
            turns += 1
            sys_sleep_us(200)
        elif gained < CLEAN_GAIN and _forget_copies(engine) > 0:
            continue
        elif gained < CLEAN_GAIN:
            if log_free_slots(&engine.log) > 0:
                return
            if not tier_yield(engine):
                writeback_failed(engine, -ENOSPC if gained >= 0 else gained)
                sys_sleep_us(100000)
                return
            sys_sleep_us(YIELDED_US)
            continue
        add_i64(&engine.counters.blocks_cleaned, gained > 0)


cdef void *fetch_main(void *argument) noexcept nogil:
    """Reads the blocks that streams will want next."""
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    cdef uint64_t begun
    sys_name_thread(b"fetch")
    while True:
        seen = load_u32(&engine.log.fetch_wanted)
        if engine.stopping:
            break
        begun = sys_now_us()
        if log_fetch_next(&engine.log):
            tier_fetched(engine, sys_now_us() - begun)
        else:
            sys_futex_wait(&engine.log.fetch_wanted, seen, FOR_EVER_US)
    log_fetch_none(&engine.log)
    return NULL


cdef void *pack_main(void *argument) noexcept nogil:
    """Packs what the evictor has left in full blocks, as far as it gets, and does what else has time: gives slots back,
    cleans ahead."""
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    cdef int result
    cdef bint idle
    sys_name_thread(b"pack")
    sys_step_back()
    while True:
        seen = load_u32(&engine.log.changed)
        if engine.stopping:
            break
        result = 0
        if engine.log.packs:
            tier_adjust(engine)
            result = pack_compact(&engine.log, &engine.pack)
            if result == 0:
                result = pack_next(&engine.log, &engine.pack)
        idle = (result == 0 and not slots_discard_next(&engine.log)
                and pack_clean_ahead(&engine.log, &engine.pack) == 0)
        if result < 0:
            sys_sleep_us(10000)
        elif idle:
            sys_futex_wait(&engine.log.changed, seen, FOR_EVER_US)
    return NULL


cdef void *writeback_main(void *argument) noexcept nogil:
    cdef Engine *engine = <Engine *>argument
    cdef uint32_t seen
    cdef int result
    sys_name_thread(b"write")
    while True:
        seen = load_u32(&engine.log.changed)
        if engine.evictor_over:
            break
        result = log_write_next(&engine.log)
        if result < 0:
            sys_sleep_us(10000)
        elif result == 0:
            sys_futex_wait(&engine.log.changed, seen, FOR_EVER_US)
    return NULL
