# SPDX-License-Identifier: GPL-2.0-or-later
"""swapon and swapoff of a running engine.

An entry names a block, and only the block table knows where that is. So an area is emptied in its own order, with
one read and one write of a whole block each, and what changes is one place in the block table: no page table
is visited, and no entry.

Who can run at the same moment, and what they see. From the beginning on no slot of the area is handed out; a
write that had one already is waited for. Blocks are freed, as ever: their slots come back to the area. A reader
pins a block before it looks where it lies, and it lies elsewhere only from a moment on at which nobody but us
has it pinned. What reads before then reads the old place, which is given back after that.
"""

from libc.stdlib cimport free, malloc

from userswap.log cimport (
    BLOCK_STORED,
    MAX_AREAS,
    NO_BLOCK,
    Block,
    log_read,
    log_unpin,
    log_unwritten,
)
from userswap.slots cimport NO_SLOT, SLOTS_SPARE, slot_return, slot_take, slots_free_of, slots_order_areas
from userswap.stores cimport Store, file_store_init, store_deinit
from userswap.system cimport (
    EBUSY,
    ECANCELED,
    ENOENT,
    ENOMEM,
    ENOSPC,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_release,
    sys_reserve,
    sys_sleep_us,
)
from userswap.types cimport BLOCK_BYTES

cdef enum:
    UNPINNED_US = 20
    WRITTEN_US = 1000


cdef int swapon_area(Log *log, int fd, uint64_t size, int priority) noexcept nogil:
    """Adds an area: a higher priority is used first, areas of the same one in the order in which they came. Returns
    its number, or -ENOSPC when there are too many, -errno."""
    cdef Store store
    cdef int area, result
    result = file_store_init(&store, fd, size)
    if result != 0:
        return result
    store.priority = priority
    pthread_mutex_lock(&log.lock)
    for area in range(log.area_count):
        if log.areas[area].gone:
            break
    else:
        area = log.area_count
    if area == MAX_AREAS:
        pthread_mutex_unlock(&log.lock)
        store_deinit(&store)
        return -ENOSPC
    store.writes += log.areas[area].writes      # what was counted in its place before stays counted
    store.bytes_written += log.areas[area].bytes_written
    store.reads += log.areas[area].reads
    store.bytes_read += log.areas[area].bytes_read
    store.bytes_discarded += log.areas[area].bytes_discarded
    log.areas[area] = store
    log.area_count = max(log.area_count, area + 1)
    log.slots += store.slots
    slots_order_areas(log)
    pthread_mutex_unlock(&log.lock)
    return area


# ---- swapoff

cdef int _begin(Log *log, int area, Progress *progress) noexcept nogil:
    """No slot of the area is handed out from now on. Returns 0, or -ENOSPC where the other areas cannot hold what it
    holds."""
    cdef Store *store = &log.areas[area]
    cdef uint64_t used, others
    cdef int at
    cdef int result = 0
    pthread_mutex_lock(&log.lock)
    if area < 0 or area >= log.area_count or store.gone:
        result = -ENOENT
    elif store.closing:
        result = -EBUSY
    else:
        used = store.slot_end - store.returned_count
        others = 0
        for at in range(log.area_count):
            if at != area:
                others += slots_free_of(&log.areas[at])
        if used + SLOTS_SPARE + log_unwritten(log) > others:
            result = -ENOSPC
        else:
            store.closing = True
            log.slots -= store.slots
            progress.bytes_total = <int64_t>(used * BLOCK_BYTES)
    pthread_mutex_unlock(&log.lock)
    return result


cdef uint32_t *_blocks_by_slot(Log *log, int area, uint32_t *slots, bint *writing) noexcept nogil:
    """The block in each of *slots slots, or NO_BLOCK; NULL without memory. *writing: one more may be on its way."""
    cdef uint32_t *blocks
    cdef uint32_t at
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    slots[0] = log.areas[area].slot_end
    writing[0] = log.areas[area].slot_end > log.areas[area].returned_count
    blocks = <uint32_t *>malloc((slots[0] + 1) * sizeof(uint32_t))
    if blocks != NULL:
        for at in range(slots[0]):
            blocks[at] = NO_BLOCK
        for at in range(log.block_end):
            block = &log.blocks[at]
            if block.state == BLOCK_STORED and block.area == area:
                blocks[block.slot] = at
    pthread_mutex_unlock(&log.lock)
    return blocks


cdef int _take_elsewhere(Log *log, int *area, uint32_t *slot) noexcept nogil:
    """A slot of the first area that has one. Log.lock is held."""
    cdef int at
    for at in range(log.order_count):
        slot[0] = slot_take(log, &log.areas[log.order[at]])
        if slot[0] != NO_SLOT:
            area[0] = log.order[at]
            return 0
    return -ENOSPC


cdef void _switch(Log *log, uint32_t at, int area, uint32_t slot) noexcept nogil:
    """The block lies there from now on. We have it pinned."""
    cdef Block *block = &log.blocks[at]
    cdef bint done = False
    while not done:
        pthread_mutex_lock(&log.lock)
        done = block.pins == 1
        if done:
            slot_return(log, &log.areas[block.area], block.slot)
            block.area = <uint8_t>area
            block.slot = slot
        pthread_mutex_unlock(&log.lock)
        if not done:
            sys_sleep_us(UNPINNED_US)


cdef int _move_block(Log *log, uint32_t at, int from_area, uint8_t *buffer) noexcept nogil:
    """Returns 1 if it was moved, 0 if it had gone, or -errno, with nothing changed."""
    cdef Block *block = &log.blocks[at]
    cdef const uint8_t *data
    cdef int area
    cdef uint32_t slot
    cdef int result = 0
    pthread_mutex_lock(&log.lock)
    if block.state != BLOCK_STORED or block.area != from_area:
        pthread_mutex_unlock(&log.lock)
        return 0
    result = _take_elsewhere(log, &area, &slot)
    if result == 0:
        block.pins += 1
        data = block.data       # stays while the block is pinned
    pthread_mutex_unlock(&log.lock)
    if result != 0:
        return result
    if data == NULL:
        data = buffer
        result = log_read(log, at, 0, BLOCK_BYTES, buffer)
    if result == 0:
        result = log.areas[area].write(&log.areas[area], slot, data)
    if result == 0:
        _switch(log, at, area, slot)
    else:
        pthread_mutex_lock(&log.lock)
        slot_return(log, &log.areas[area], slot)
        pthread_mutex_unlock(&log.lock)
    log_unpin(log, at)
    return 1 if result == 0 else result


cdef int _move_all(Log *log, int area, Progress *progress, uint8_t *buffer, bint *writing) noexcept nogil:
    cdef uint32_t slot, slots
    cdef int result = 0
    cdef uint32_t *blocks = _blocks_by_slot(log, area, &slots, writing)
    if blocks == NULL:
        return -ENOMEM
    for slot in range(slots):
        if progress.cancel or log.stopping:
            result = -ECANCELED
        if result < 0:
            break
        if blocks[slot] == NO_BLOCK:
            continue
        result = _move_block(log, blocks[slot], area, buffer)
        if result > 0:
            progress.blocks_moved += 1
            progress.bytes_moved += BLOCK_BYTES
    free(blocks)
    return min(result, 0)


cdef void _end(Log *log, int area, bint gone) noexcept nogil:
    cdef Store *store = &log.areas[area]
    pthread_mutex_lock(&log.lock)
    if gone:
        store_deinit(store)
        store.gone = True
        store.slots = store.slot_end = store.returned_count = store.discarded = 0
    else:
        log.slots += store.slots
    store.closing = False
    slots_order_areas(log)
    pthread_mutex_unlock(&log.lock)


cdef int swapoff_area(Log *log, int area, Progress *progress) noexcept nogil:
    """Moves all blocks of the area to the others and forgets it. Returns 0; -ENOSPC at once, where the others cannot
    hold them; -ENOENT, -EBUSY; or with the area in use as before, what is left in it: -ECANCELED when
    progress.cancel was set, or the -errno of the medium."""
    cdef bint writing = True
    cdef uint8_t *buffer
    cdef int result = _begin(log, area, progress)
    if result != 0:
        return result
    buffer = <uint8_t *>sys_reserve(BLOCK_BYTES)
    if buffer == NULL:
        result = -ENOMEM
    while result == 0 and writing:
        result = _move_all(log, area, progress, buffer, &writing)
        if result == 0 and writing:
            sys_sleep_us(WRITTEN_US)
    if buffer != NULL:
        sys_release(buffer, BLOCK_BYTES)
    _end(log, area, result == 0)
    return result
