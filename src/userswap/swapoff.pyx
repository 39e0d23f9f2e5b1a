# SPDX-License-Identifier: GPL-2.0-or-later
"""swapon and swapoff of a running engine.

An entry names a block, and only the block table knows where that is. So an area is emptied in its own order, with
one read and one write of a whole block each, and what changes is one place in the block table: no page table
is visited, and no entry. There are two movers, so that one block can be read while another is written. Of a block of
which most is dead the live pages move instead, as when it is cleaned, which changes their entries. What the other
areas have no room for comes into memory, as blocks that stay there, where the limit allows it.

Who can run at the same moment, and what they see. From the beginning on no slot of the area is handed out; a
write that had one already is waited for. Blocks are freed, as ever: their slots come back to the area. A reader
pins a block before it looks where it lies, and it lies elsewhere only from a moment on at which nobody but its mover
has it pinned. What reads before then reads the old place, which is given back after that. A mover takes a block from
the list, pins it and takes a slot for it under one hold of Log.lock; a block is in the list once, so it has one mover.
The first that fails, or finds that it is to stop, tells the other, which ends the move that it is at: what was
moved stays moved, a slot that was taken in vain is given back.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from userswap.arena cimport buffer_make, buffer_unmake
from userswap.cipher cimport cipher_wrap
from userswap.log cimport (
    BLOCK_STORED,
    MAX_AREAS,
    NO_BLOCK,
    Block,
    log_keep_in,
    log_unpin,
    log_unwritten,
)
from userswap.pack cimport Pack, pack_empty
from userswap.slots cimport NO_SLOT, slots_spare, slot_return, slot_take, slots_free_of, slots_order_areas
from userswap.stores cimport Store, store_deinit, store_init
from userswap.sums cimport sums_read
from userswap.system cimport (
    EBUSY,
    ECANCELED,
    ENOENT,
    ENOMEM,
    ENOSPC,
    add_i64,
    pthread_create,
    pthread_join,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    pthread_t,
    store_pair,
    sys_crash_point,
    sys_name_thread,
    sys_populate_whole,
    sys_release,
    sys_reserve,
    sys_sleep_us,
)
from userswap.types cimport BLOCK_BYTES

cdef enum:
    UNPINNED_US = 20
    WRITTEN_US = 1000
    TO_MEMORY = -1
    MOVERS = 2
    THIN = 2                # a block of which less than one page of so many is live

# What the movers of an area share. Log.lock guards next and result.
cdef struct Moving:
    Log *log
    Pack *pack
    Progress *progress
    int area                # that is emptied
    uint32_t *blocks        # in each of its slots: a block, or NO_BLOCK
    uint32_t slots
    uint32_t next           # slot that is to be looked at next
    int result              # 0, or what the first mover that could not go on says

# Who moves one block after another; and the one that it moves: pinned, from the list to its new place or back.
cdef struct Mover:
    Moving *moving
    uint8_t *buffer
    uint32_t at
    const uint8_t *data     # of the block, in memory; NULL: only in the area
    int to_area             # or TO_MEMORY
    uint32_t to_slot
    uint8_t *kept           # TO_MEMORY: the memory for it
    bint thin               # its live pages move, into blocks of their own
    bint doubtful           # not all that was read is what was written


cdef int swapon_area(Log *log, int fd, int shared, uint64_t size, int priority, bint frees) noexcept nogil:
    """Adds an area: a higher priority is used first, areas of the same one in the order in which they came. `frees`:
    what comes in from it gives up its copy at once. Returns its number, or -ENOSPC when there are too many, -errno."""
    cdef Store store
    cdef int area, result
    result = store_init(&store, fd, shared, size)
    if result != 0:
        return result
    store.priority = priority
    store.frees = frees
    pthread_mutex_lock(&log.lock)
    if log.encrypts:
        log.mediums += 1
        result = cipher_wrap(&store, log.key, log.mediums)
    if result != 0:
        pthread_mutex_unlock(&log.lock)
        store_deinit(&store)
        return result
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

cdef bint _is_thin(Block *block) noexcept nogil:
    return block.live * THIN < block.used


cdef uint64_t _needed(Log *log, int area) noexcept nogil:
    """Slots that what an area holds takes elsewhere. Log.lock is held."""
    cdef Store *store = &log.areas[area]
    cdef uint64_t needed = store.slot_end - store.returned_count
    cdef uint64_t live = 0
    cdef uint32_t at
    cdef Block *block
    for at in range(log.block_end):
        block = &log.blocks[at]
        if block.state == BLOCK_STORED and block.area == area and _is_thin(block):
            needed -= 1
            live += <uint64_t>block.live * BLOCK_BYTES // block.used
    return needed + (live + BLOCK_BYTES - 1) // BLOCK_BYTES


cdef uint64_t _others_free(Log *log, int area) noexcept nogil:
    """Free slots of all other areas. Log.lock is held."""
    cdef uint64_t others = 0
    cdef int at
    for at in range(log.area_count):
        if at != area:
            others += slots_free_of(&log.areas[at])
    return others


cdef uint64_t _lacking(Log *log, int area) noexcept nogil:
    """Blocks of an area that the others have no room for. Log.lock is held."""
    cdef Store *store = &log.areas[area]
    cdef uint64_t others = _others_free(log, area)
    cdef uint64_t needed = _needed(log, area) if others > 0 else <uint64_t>(store.slot_end - store.returned_count)
    others -= min(others, slots_spare(log) + log_unwritten(log))
    return needed - min(needed, others)


cdef uint32_t swapoff_lacks(Log *log, int area) noexcept nogil:
    """How many blocks would have to come into memory, as things are now, for the area to be emptied."""
    cdef uint64_t blocks = 0
    pthread_mutex_lock(&log.lock)
    if 0 <= area < log.area_count and not log.areas[area].gone:
        blocks = _lacking(log, area)
    pthread_mutex_unlock(&log.lock)
    return <uint32_t>blocks


cdef int _begin(Log *log, int area, Progress *progress) noexcept nogil:
    """No slot of the area is handed out from now on. Returns 0, or -ENOSPC where the other areas and memory cannot hold
    what it holds."""
    cdef Store *store = &log.areas[area]
    cdef int result = 0
    pthread_mutex_lock(&log.lock)
    if area < 0 or area >= log.area_count or store.gone:
        result = -ENOENT
    elif store.closing:
        result = -EBUSY
    elif _lacking(log, area) > progress.memory_blocks:
        result = -ENOSPC
    else:
        store.closing = True
        log.slots -= store.slots
        progress.bytes_total = <int64_t>((store.slot_end - store.returned_count) * <uint64_t>BLOCK_BYTES)
    pthread_mutex_unlock(&log.lock)
    return result


cdef int _list_blocks(Moving *moving, bint *writing) noexcept nogil:
    """Which blocks there are, to be freed by the caller. *writing: one more may be on its way. Returns 0 or -ENOMEM."""
    cdef Log *log = moving.log
    cdef Store *store = &log.areas[moving.area]
    cdef uint32_t at
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    moving.slots = store.slot_end
    moving.next = 0
    writing[0] = store.slot_end > store.returned_count
    moving.blocks = <uint32_t *>malloc((moving.slots + 1) * sizeof(uint32_t))
    if moving.blocks != NULL:
        for at in range(moving.slots):
            moving.blocks[at] = NO_BLOCK
        for at in range(log.block_end):
            block = &log.blocks[at]
            if block.state == BLOCK_STORED and block.area == moving.area:
                moving.blocks[block.slot] = at
    pthread_mutex_unlock(&log.lock)
    return 0 if moving.blocks != NULL else -ENOMEM


cdef int _take_elsewhere(Log *log, int *area, uint32_t *slot) noexcept nogil:
    """A slot of the first area that has one. Log.lock is held."""
    cdef int at
    for at in range(log.order_count):
        slot[0] = slot_take(log, &log.areas[log.order[at]])
        if slot[0] != NO_SLOT:
            area[0] = log.order[at]
            return 0
    return -ENOSPC


cdef bint _spares(Moving *moving) noexcept nogil:
    """Whether the other areas have slots to spare. Log.lock is held."""
    return _others_free(moving.log, moving.area) > slots_spare(moving.log) + log_unwritten(moving.log)


cdef int _take_place(Mover *mover) noexcept nogil:
    """In another area, or in memory where that would leave the evictor too few. Returns 0 or -errno. Log.lock is
    held."""
    cdef Progress *progress = mover.moving.progress
    if progress.kept_blocks == progress.memory_blocks or _spares(mover.moving):
        return _take_elsewhere(mover.moving.log, &mover.to_area, &mover.to_slot)
    mover.kept = buffer_make()
    if mover.kept == NULL:
        return -ENOMEM
    mover.to_area = TO_MEMORY
    progress.kept_blocks += 1
    return 0


cdef bint _begin_move(Mover *mover) noexcept nogil:
    """Pins the mover's block and takes a place for it, unless only its pages are to move. False if it has gone, or
    there is none. Log.lock is held."""
    cdef Moving *moving = mover.moving
    cdef Block *block = &moving.log.blocks[mover.at]
    if block.state != BLOCK_STORED or block.area != moving.area:
        return False
    mover.thin = _is_thin(block) and _spares(moving)
    if not mover.thin:
        moving.result = _take_place(mover)
    if moving.result != 0:
        return False
    block.pins += 1
    mover.data = block.data     # stays while the block is pinned
    return True


cdef bint _next_move(Mover *mover) noexcept nogil:
    """Begins to move the next block that is there. False when there is none, or no more is to be moved."""
    cdef Moving *moving = mover.moving
    cdef bint found = False
    pthread_mutex_lock(&moving.log.lock)
    if moving.result == 0 and (moving.progress.cancel or moving.log.stopping):
        moving.result = -ECANCELED
    while not found and moving.result == 0 and moving.next < moving.slots:
        mover.at = moving.blocks[moving.next]
        moving.next += 1
        found = mover.at != NO_BLOCK and _begin_move(mover)
    pthread_mutex_unlock(&moving.log.lock)
    return found


cdef int _copy(Mover *mover) noexcept nogil:
    """The block's bytes to its new place. Returns 0 or -errno."""
    cdef Log *log = mover.moving.log
    cdef bint to_memory = mover.to_area == TO_MEMORY
    cdef uint8_t *buffer = mover.kept if to_memory else mover.buffer
    cdef bint right = True
    cdef int result = 0
    if to_memory:
        sys_populate_whole(buffer, BLOCK_BYTES)
    if mover.data == NULL:
        mover.data = buffer
        result = sums_read(log, mover.at, BLOCK_BYTES, buffer, &right)  # there will be no other copy of it
    mover.doubtful = not right
    if result != 0 or to_memory:
        return result
    return log.areas[mover.to_area].write(&log.areas[mover.to_area], mover.to_slot, mover.data)


cdef void _switch(Mover *mover) noexcept nogil:
    """The block lies in its new place from now on."""
    cdef Log *log = mover.moving.log
    cdef Block *block = &log.blocks[mover.at]
    cdef bint done = False
    while not done:
        pthread_mutex_lock(&log.lock)
        done = block.pins == 1
        if done:
            slot_return(log, &log.areas[block.area], block.slot)
            if mover.to_area == TO_MEMORY:
                log_keep_in(log, mover.at, mover.kept, mover.doubtful)
            else:
                sys_crash_point(b"swapoff-switching")
                store_pair(&block.slot, mover.to_slot, <uint32_t>mover.to_area)
        pthread_mutex_unlock(&log.lock)
        if not done:
            sys_sleep_us(UNPINNED_US)


cdef int _move(Mover *mover) noexcept nogil:
    """Returns 0 or -errno, with the block where it was, or what is left of it."""
    cdef int result
    if mover.thin:
        return pack_empty(mover.moving.log, mover.moving.pack, mover.at)
    result = _copy(mover)
    if result == 0:
        sys_crash_point(b"swapoff-copied")
        _switch(mover)
    return result


cdef void _give_up(Mover *mover, int result) noexcept nogil:
    """The block stays where it was, and no more are moved."""
    cdef Moving *moving = mover.moving
    pthread_mutex_lock(&moving.log.lock)
    if mover.thin:
        pass
    elif mover.to_area == TO_MEMORY:
        buffer_unmake(mover.kept)
        moving.progress.kept_blocks -= 1
    else:
        slot_return(moving.log, &moving.log.areas[mover.to_area], mover.to_slot)
    if moving.result == 0:
        moving.result = result
    pthread_mutex_unlock(&moving.log.lock)


cdef void _move_blocks(Mover *mover) noexcept nogil:
    """Moves blocks until none is left."""
    cdef Progress *progress = mover.moving.progress
    cdef int result
    while _next_move(mover):
        result = _move(mover)
        if result == 0:
            add_i64(&progress.blocks_moved, 1)
            add_i64(&progress.bytes_moved, BLOCK_BYTES)
        else:
            _give_up(mover, result)
        log_unpin(mover.moving.log, mover.at)


cdef void *_mover_main(void *argument) noexcept nogil:
    sys_name_thread(b"swapoff")
    _move_blocks(<Mover *>argument)
    return NULL


cdef int _move_all(Moving *moving, uint8_t *buffers, bint *writing) noexcept nogil:
    """Moves what is there now, in this thread and one more. Returns 0 or -errno."""
    cdef Mover movers[2]        # MOVERS
    cdef pthread_t thread
    cdef bint helped
    cdef int at
    cdef int result = _list_blocks(moving, writing)
    if result != 0:
        return result
    for at in range(MOVERS):
        movers[at].moving = moving
        movers[at].buffer = buffers + at * BLOCK_BYTES
    helped = pthread_create(&thread, NULL, _mover_main, &movers[1]) == 0
    _move_blocks(&movers[0])
    if helped:
        pthread_join(thread, NULL)
    free(moving.blocks)
    return moving.result


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


cdef int swapoff_area(Log *log, Pack *pack, int area, Progress *progress) noexcept nogil:
    """Moves all blocks of the area to the others, and as many as progress.memory_blocks into memory, and forgets it.
    Returns 0; -ENOSPC at once, where these cannot hold them; -ENOENT, -EBUSY; or with the area in use as before, what
    is left in it: -ECANCELED when progress.cancel was set, or the -errno of the medium."""
    cdef bint writing = True
    cdef uint8_t *buffers
    cdef Moving moving
    cdef int result = _begin(log, area, progress)
    if result != 0:
        return result
    memset(&moving, 0, sizeof(Moving))
    moving.log, moving.pack, moving.progress, moving.area = log, pack, progress, area
    buffers = <uint8_t *>sys_reserve(MOVERS * BLOCK_BYTES)
    if buffers == NULL:
        result = -ENOMEM
    while result == 0 and writing:
        result = _move_all(&moving, buffers, &writing)
        if result == 0 and writing:
            sys_sleep_us(WRITTEN_US)
    if buffers != NULL:
        sys_release(buffers, MOVERS * BLOCK_BYTES)
    _end(log, area, result == 0)
    return result
