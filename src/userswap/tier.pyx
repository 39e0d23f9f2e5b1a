# SPDX-License-Identifier: GPL-2.0-or-later
"""How the memory is split between resident pages and packed blocks: by what a little more of each would have saved.

Both sides are measured at their edge, in time that faults took. A fault on a page that was evicted so short a while
ago that it would still be resident, had the programs had one step of memory more, counts for resident pages, with what
every fault takes. A fault that read a block which would still be in memory, had the blocks had that step, counts for
these, less what a fault from memory takes. Every PERIOD the side with more to gain gets memory from the other. This is
the idea of ghost lists (ARC, Megiddo and Modha 2003), in time and not in hits, as a hit of the one saves more than a
hit of the other. To grow, packed blocks must save twice as much: they are read whole and unpacked page by page, which
is not measured here.

At its edge a tier may look worth its memory, and in the whole not be: blocks that nobody reads lie in the middle, or
all that a program goes round in would fit had the pages that memory. So it shrinks slowly wherever it answers few of
the faults, and wherever the faults that there would not have been, with its memory, cost more than it saves.

What is in an area comes back up as a block where it is read often: packed, it takes less memory than its pages would.

The packer's thread grows and shrinks the tier; any thread counts.
"""

from libc.stdint cimport int64_t

from userswap.fetch cimport log_fetch
from userswap.limit cimport room_give, room_left, room_take
from userswap.log cimport LIST_TIER, Block, log_buffer_drop, log_free_slots, log_tier_grow, log_tier_shrink
from userswap.slots cimport slots_spare
from userswap.system cimport add_i64, load_i64, sys_now_us, sys_since_us
from userswap.types cimport BLOCK_PAGES

cdef enum:
    PERIOD_US = 20000
    LEAST_US = 100          # a gain of less in a period is noise
    COST_SHIFT = 6
    READ_OFTEN = 4
    PRICE = 16              # times that faults must have waited for as long as it takes to bring up a block
    FETCH_US = 2000         # as a first guess
    SPARE_LEFT = 2          # blocks of room that stay when the tier takes what there is
    FAULT_US = 30           # what a fault takes besides its page's bytes: a page that stays resident saves that too
    PAGE_US = 12            # ... and that it, and what came with it, is evicted and packed again
    FEW = 8                 # a tier that answers less than one fault in so many shrinks


cdef void tier_measure(Engine *engine) noexcept nogil:
    """By the limit as it is now: the step is a 32nd of the memory, the most half of it."""
    cdef int64_t blocks = engine.limit // BLOCK_PAGES
    engine.tier.step = <uint32_t>(blocks // 32 if blocks >= 64 else 2)
    engine.tier.most = <uint32_t>(blocks // 2)


cdef void tier_init(Engine *engine) noexcept nogil:
    engine.tier.base = engine.log.buffers_base
    tier_measure(engine)
    engine.tier.fetch_us = FETCH_US


cdef void _bring_up(Engine *engine, uint32_t at, uint64_t us) noexcept nogil:
    """Brings a block back whole that was read several times, once faults have waited for so long that it is a small
    part of that. Often would be worse: what is brought up must stay for long enough to be worth it."""
    cdef Block *block = &engine.log.blocks[at]
    if block.reads < 255:
        block.reads += 1
    engine.tier.earned_us += us         # what another thread adds now may be lost
    if block.reads >= READ_OFTEN and engine.tier.earned_us >= engine.tier.fetch_us * PRICE:
        block.reads = 0
        engine.tier.earned_us = 0
        log_fetch(&engine.log, at)


cdef void tier_fault(Engine *engine, uint32_t at, bint from_area, uint32_t pages_since, uint32_t pages,
                     uint64_t us) noexcept nogil:
    """A fault brought in so many pages in `us`. Its own lies in a block, pinned, and went so many evictions ago."""
    cdef Block *block = &engine.log.blocks[at]
    cdef int64_t memory_us = engine.tier.memory_us
    cdef int64_t cost = <int64_t>us + FAULT_US + pages * PAGE_US
    if pages_since <= engine.tier.step * BLOCK_PAGES:
        add_i64(&engine.tier.resident_us, cost)
    if pages_since <= engine.log.tier_most * BLOCK_PAGES:
        add_i64(&engine.tier.all_pages_us, cost)
    if not from_area:
        engine.tier.memory_us = memory_us + <int64_t>us - (memory_us >> COST_SHIFT)
        if block.packed:
            engine.tier.hits += 1
            add_i64(&engine.tier.all_packed_us, max((engine.tier.area_us >> COST_SHIFT) - <int64_t>us, <int64_t>0))
        return
    engine.tier.misses += 1
    engine.tier.area_us += <int64_t>us - (engine.tier.area_us >> COST_SHIFT)
    if block.left != 0 and engine.log.dropped - block.left < engine.tier.step:
        add_i64(&engine.tier.packed_us, max(<int64_t>us - (memory_us >> COST_SHIFT), <int64_t>0))
    if block.packed:
        _bring_up(engine, at, us)


cdef void tier_fetched(Engine *engine, uint64_t us) noexcept nogil:
    """A block was brought up in `us`."""
    engine.tier.fetch_us += (<int64_t>us - engine.tier.fetch_us) // 8


cdef uint32_t tier_spare(Engine *engine, uint32_t wanted) noexcept nogil:
    """How many of so many blocks the memory could hold at once, without an eviction and within the most that blocks may
    have; their room is taken. What is not used of it is given back by tier_unspare."""
    cdef int64_t spare = min(engine.limit // 2 // BLOCK_PAGES - engine.log.tier_most,
                             (engine.low - load_i64(&engine.resident)) // BLOCK_PAGES - SPARE_LEFT)
    spare = min(spare, <int64_t>wanted)
    if spare <= 0:
        return 0
    room_take(engine, spare * BLOCK_PAGES)
    return <uint32_t>spare


cdef void tier_unspare(Engine *engine, uint32_t blocks) noexcept nogil:
    room_give(engine, <int64_t>blocks * BLOCK_PAGES)


cdef bint _slots_are_short(Engine *engine) noexcept nogil:
    """The tier's blocks have slots set aside for them, and take memory from pages, which are swapped for it."""
    return log_free_slots(&engine.log) < slots_spare(&engine.log) + engine.tier.step and engine.log.order_count > 0


cdef bint _grow(Engine *engine) noexcept nogil:
    """By a block, where there is room for it."""
    if (engine.log.tier_most >= engine.tier.most or room_left(engine) < BLOCK_PAGES
            or _slots_are_short(engine)):
        return False
    room_take(engine, BLOCK_PAGES)
    if not log_tier_grow(&engine.log):
        room_give(engine, BLOCK_PAGES)
        return False
    return True


cdef void _give_back(Engine *engine) noexcept nogil:
    """The memory of blocks that are too many and have been written."""
    while log_buffer_drop(&engine.log, engine.tier.base):
        room_give(engine, BLOCK_PAGES)


cdef bint tier_yield(Engine *engine) noexcept nogil:
    """Some of the tier's memory is to go to pages, as they cannot be swapped. False if there is none."""
    return log_tier_shrink(&engine.log, 1) > 0


cdef void tier_trim(Engine *engine) noexcept nogil:
    """Gives back the memory of blocks that are no more. It is all that there is where no area is left."""
    cdef uint32_t count = engine.log.lists[LIST_TIER].count
    cdef uint32_t most = engine.log.tier_most
    if most > count:
        log_tier_shrink(&engine.log, most - count)
    _give_back(engine)


cdef void tier_adjust(Engine *engine) noexcept nogil:
    cdef int64_t packed_us = engine.tier.packed_us
    cdef int64_t resident_us = engine.tier.resident_us
    cdef int64_t all_packed_us = engine.tier.all_packed_us
    cdef int64_t all_pages_us = engine.tier.all_pages_us
    cdef uint32_t _turn
    cdef uint32_t step = (engine.tier.step + 3) // 4
    _give_back(engine)      # what was written since the last time; nobody may come by again soon
    if sys_since_us(engine.tier.adjusted_at) < PERIOD_US:
        return
    engine.tier.adjusted_at = sys_now_us()
    if engine.surge > 0 or _slots_are_short(engine):    # memory grows in bursts: room must be at hand
        log_tier_shrink(&engine.log, step)
    elif all_pages_us > all_packed_us + LEAST_US:
        log_tier_shrink(&engine.log, step)
    elif packed_us > 2 * resident_us + LEAST_US:
        for _turn in range(step):
            if not _grow(engine):
                break
    elif resident_us > packed_us + LEAST_US:
        log_tier_shrink(&engine.log, step)
    elif engine.tier.hits * FEW < engine.tier.misses:
        log_tier_shrink(&engine.log, 1)
    add_i64(&engine.tier.packed_us, -(packed_us // 2))
    add_i64(&engine.tier.resident_us, -(resident_us // 2))
    add_i64(&engine.tier.all_packed_us, -(all_packed_us // 16))
    add_i64(&engine.tier.all_pages_us, -(all_pages_us // 16))
    engine.tier.hits //= 2
    engine.tier.misses //= 2
    _give_back(engine)
