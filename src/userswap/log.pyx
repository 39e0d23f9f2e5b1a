# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks: pages are packed into the open block; a full block is written out whole, in one write.

One thread packs (the evictor: log_reserve, log_commit, log_clean), one writes (log_write_next), any may pin,
read and free. A block's slot and its buffer are reused only when no live entry names it and nobody has it
pinned, so a pinned block can be read without a lock although cleaning moves its entries at the same time:
the old copy stays true.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from userswap.space cimport LEAF_ENTRIES, space_set, space_word
from userswap.stores cimport store_deinit
from userswap.system cimport (
    EAGAIN,
    ECANCELED,
    ENOMEM,
    ENOSPC,
    add_u32,
    load_u32,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_wait,
    sys_futex_wake,
    sys_populate,
    sys_release,
    sys_reserve,
)
from userswap.types cimport (
    BLOCK_BYTES,
    BLOCK_PAGES,
    PAGE_BYTES,
    STORED,
    entry_count,
    entry_make,
    entry_state,
    stored_block,
    stored_index,
    stored_payload,
    stored_stamp,
)


cdef enum:
    WRITE_TRIES = 20        # failed writes in a row that are taken for final


cdef int log_init(Log *log, Space *space, int buffers) noexcept nogil:
    """Returns 0, or -ENOMEM. The areas are added by the caller."""
    cdef int at
    memset(log, 0, sizeof(Log))
    pthread_mutex_init(&log.lock, NULL)
    log.space = space
    log.open = NO_BLOCK
    log.free_ids = NO_BLOCK
    log.blocks = <Block *>sys_reserve(MAX_BLOCKS * sizeof(Block))
    if log.blocks == NULL:
        return -ENOMEM
    for at in range(buffers):
        log.buffers[at] = <uint8_t *>sys_reserve(BLOCK_BYTES)
        if log.buffers[at] == NULL:
            return -ENOMEM
    log.buffers_free = buffers
    return 0


cdef void log_populate(Log *log) noexcept nogil:
    """Takes the memory of all buffers, before anything is packed: else the log would grow when memory is shortest."""
    cdef int at
    for at in range(log.buffers_free):
        sys_populate(log.buffers[at], BLOCK_BYTES)


cdef void log_deinit(Log *log) noexcept nogil:
    cdef uint32_t at
    cdef int buffer
    for at in range(log.block_end):
        if log.blocks[at].data != NULL:
            sys_release(log.blocks[at].data, BLOCK_BYTES)
        free(log.blocks[at].owners)
    for buffer in range(log.buffers_free):
        sys_release(log.buffers[buffer], BLOCK_BYTES)
    for buffer in range(log.area_count):
        store_deinit(&log.areas[buffer])
    sys_release(log.blocks, MAX_BLOCKS * sizeof(Block))
    pthread_mutex_destroy(&log.lock)


cdef void _changed(Log *log) noexcept nogil:
    add_u32(&log.changed, 1)
    sys_futex_wake(&log.changed)


# ---- slots of areas, with Log.lock held

cdef void log_area_order(Log *log) noexcept nogil:
    """Sorts the areas that may be written to by priority, after one has come or gone."""
    cdef int area, place
    log.order_count = 0
    for area in range(log.area_count):
        if log.areas[area].gone or log.areas[area].closing:
            continue
        place = log.order_count
        while place > 0 and log.areas[log.order[place - 1]].priority < log.areas[area].priority:
            log.order[place] = log.order[place - 1]
            place -= 1
        log.order[place] = area
        log.order_count += 1


cdef uint64_t _area_free(Store *area) noexcept nogil:
    if area.closing or area.gone:
        return 0
    return <uint64_t>(area.slots - area.slot_end) + area.returned_count


cdef uint64_t log_free_slots(Log *log) noexcept nogil:
    """Blocks that can still be written, over all areas, less those already queued."""
    cdef uint64_t free_slots = 0
    cdef int at
    pthread_mutex_lock(&log.lock)
    for at in range(log.area_count):
        free_slots += _area_free(&log.areas[at])
    free_slots -= min(free_slots, <uint64_t>log.queued)
    pthread_mutex_unlock(&log.lock)
    return free_slots


cdef uint32_t log_slot_take(Log *log, Store *area) noexcept nogil:
    if _area_free(area) == 0:
        return NO_SLOT
    log.slots_used += 1
    log.slots_peak = max(log.slots_peak, log.slots_used)
    if area.returned_count > 0:
        area.returned_count -= 1
        return area.returned[area.returned_count]
    area.slot_end += 1
    return area.slot_end - 1


cdef void log_slot_return(Log *log, Store *area, uint32_t slot) noexcept nogil:
    log.slots_used -= 1
    area.returned[area.returned_count] = slot
    area.returned_count += 1


# ---- blocks, with Log.lock held

cdef void _data_release(Log *log, Block *block) noexcept nogil:
    log.buffers[log.buffers_free] = block.data
    log.buffers_free += 1
    block.data = NULL
    _changed(log)


cdef uint32_t _take_out(uint32_t *blocks, int *count, int place) noexcept nogil:
    """Takes the block at `place` out of a short queue; returns it."""
    cdef uint32_t block = blocks[place]
    count[0] -= 1
    while place < count[0]:
        blocks[place] = blocks[place + 1]
        place += 1
    return block


cdef bint _buffer_recycle(Log *log) noexcept nogil:
    """Gives up the oldest written block that is only kept in memory for faults that may come."""
    cdef int place
    cdef Block *block
    for place in range(log.kept_count):
        block = &log.blocks[log.kept[place]]
        if block.pins == 0:
            _take_out(log.kept, &log.kept_count, place)
            _data_release(log, block)
            return True
    return False


cdef void _block_free_if_unused(Log *log, uint32_t at) noexcept nogil:
    """Frees a written block that nothing names and nobody reads. Blocks on their way out are looked at later."""
    cdef Block *block = &log.blocks[at]
    cdef int place
    if block.state != BLOCK_STORED or block.live != 0 or block.pins != 0:
        return
    log_slot_return(log, &log.areas[block.area], block.slot)
    if block.data != NULL:
        for place in range(log.kept_count):
            if log.kept[place] == at:
                _take_out(log.kept, &log.kept_count, place)
                break
        _data_release(log, block)
    _id_return(log, at)


cdef void _id_return(Log *log, uint32_t at) noexcept nogil:
    cdef Block *block = &log.blocks[at]
    free(block.owners)
    block.owners = NULL
    block.state = BLOCK_FREE
    block.next = log.free_ids
    log.free_ids = at


cdef int _open_block(Log *log) noexcept nogil:
    """Opens a new block. -EAGAIN (as 1) when no buffer is free, else 0 or -errno."""
    cdef uint32_t at = log.free_ids
    cdef Block *block
    if log.buffers_free == 0 and not _buffer_recycle(log):
        return 1
    if at != NO_BLOCK:
        log.free_ids = log.blocks[at].next
    elif log.block_end < MAX_BLOCKS:
        at = log.block_end
        log.block_end += 1
    else:
        return -ENOSPC
    block = &log.blocks[at]
    memset(block, 0, sizeof(Block))
    block.owners = <uint32_t *>malloc(BLOCK_PAGES * sizeof(uint32_t))
    if block.owners == NULL:
        block.next = log.free_ids
        log.free_ids = at
        return -ENOMEM
    log.buffers_free -= 1
    block.data = log.buffers[log.buffers_free]
    block.state = BLOCK_OPEN
    log.open = at
    return 0


# ---- packing

cdef int log_reserve(Log *log, uint8_t **at) noexcept nogil:
    """Where the next page is to be packed. Waits for the writer when all buffers are on their way out.

    Returns 0, or the -errno of a writer that cannot go on. Call without any lock."""
    cdef uint32_t seen
    cdef int result = 0
    while True:
        seen = load_u32(&log.changed)
        pthread_mutex_lock(&log.lock)
        if log.open == NO_BLOCK:
            result = _open_block(log)
        if result == 0:
            at[0] = log.blocks[log.open].data + <uint64_t>log.blocks[log.open].used * PAGE_BYTES
        elif log.stopping:
            result = -ECANCELED
        elif log.errors >= WRITE_TRIES:
            result = log.error
        pthread_mutex_unlock(&log.lock)
        if result <= 0:
            return result
        sys_futex_wait(&log.changed, seen, 1000000)
        result = 0


cdef bint log_is_writing(Log *log) noexcept nogil:
    """Whether blocks are on their way to an area. An answer that is out of date does no harm."""
    return log.writing or log.queued > 0


cdef void log_commit(Log *log, uint32_t offset, uint32_t stamp) noexcept nogil:
    """The page at log_reserve's place is that of `offset`: its entry becomes STORED. Space.lock is held."""
    cdef uint64_t word = space_word(log.space, offset)
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    block = &log.blocks[log.open]
    block.owners[block.used] = offset
    space_set(log.space, offset, entry_make(STORED, entry_count(word),
                                            stored_payload(log.open, block.used, stamp)))
    block.used += 1
    block.live += 1
    if block.used == BLOCK_PAGES:
        block.state = BLOCK_FULL
        log.queue[log.queued] = log.open
        log.queued += 1
        log.open = NO_BLOCK
        _changed(log)
    pthread_mutex_unlock(&log.lock)


cdef void log_freed(Log *log, uint64_t word) noexcept nogil:
    """An entry was freed that was `word`: if it was STORED its block has one live page less."""
    if entry_state(word) != STORED:
        return
    pthread_mutex_lock(&log.lock)
    log.blocks[stored_block(word)].live -= 1
    _block_free_if_unused(log, stored_block(word))
    pthread_mutex_unlock(&log.lock)


# ---- reading

cdef uint8_t *log_pin(Log *log, uint32_t block) noexcept nogil:
    """Keeps the block's bytes where they are. Returns them, or NULL when they are only in an area.

    Space.lock is held, under which the caller read the word that names the block."""
    cdef uint8_t *data
    pthread_mutex_lock(&log.lock)
    log.blocks[block].pins += 1
    data = log.blocks[block].data
    pthread_mutex_unlock(&log.lock)
    return data


cdef void log_unpin(Log *log, uint32_t block) noexcept nogil:
    pthread_mutex_lock(&log.lock)
    log.blocks[block].pins -= 1
    _block_free_if_unused(log, block)
    pthread_mutex_unlock(&log.lock)


cdef int log_read(Log *log, uint32_t block, uint32_t index, uint32_t count, uint8_t *into) noexcept nogil:
    """Reads `count` pages of a pinned block that log_pin found only in an area. Returns 0 or -errno."""
    cdef Block *b = &log.blocks[block]
    cdef Store *area = &log.areas[b.area]
    return area.read(area, b.slot, <uint64_t>index * PAGE_BYTES, <uint64_t>count * PAGE_BYTES, into)


cdef int log_read_later(Log *log, sys_reads *reads, uint32_t block, uint32_t index, uint32_t count,
                        uint8_t *into) noexcept nogil:
    """As log_read, but the bytes are there only after sys_reads_finish."""
    cdef Block *b = &log.blocks[block]
    cdef Store *area = &log.areas[b.area]
    return area.read_later(area, reads, b.slot, <uint64_t>index * PAGE_BYTES, <uint64_t>count * PAGE_BYTES, into)


# ---- fetching: blocks that will be read soon come back into memory whole

cdef bint log_in_memory(Log *log, uint32_t block) noexcept nogil:
    """Whether the block is in memory, or on its way there. An answer that is out of date does no harm."""
    return log.blocks[block].data != NULL or log.blocks[block].fetching


cdef void log_fetch(Log *log, uint32_t block) noexcept nogil:
    """Asks for the block. Where there is much to do already, nothing."""
    cdef bint added = False
    pthread_mutex_lock(&log.lock)
    if log.fetch_count < FETCHES and log.blocks[block].state == BLOCK_STORED and not log_in_memory(log, block):
        log.fetches[log.fetch_count] = block
        log.fetch_count += 1
        log.blocks[block].fetching = True
        log.blocks[block].pins += 1
        added = True
    pthread_mutex_unlock(&log.lock)
    if added:
        add_u32(&log.fetch_wanted, 1)
        sys_futex_wake(&log.fetch_wanted)


cdef uint8_t *_fetch_begin(Log *log, uint32_t *at) noexcept nogil:
    """The oldest block that is wanted, and a buffer for it. NULL when there is none, or none to spare: the block that
    is packed next needs one."""
    cdef uint8_t *buffer = NULL
    pthread_mutex_lock(&log.lock)
    if log.fetch_count > 0:
        at[0] = _take_out(log.fetches, &log.fetch_count, 0)
        if log.buffers_free > 1 or _buffer_recycle(log):
            log.buffers_free -= 1
            buffer = log.buffers[log.buffers_free]
    pthread_mutex_unlock(&log.lock)
    return buffer


cdef bint log_fetch_next(Log *log) noexcept nogil:
    """Fetches the oldest block that is wanted. False when there was none."""
    cdef uint32_t at = NO_BLOCK
    cdef uint8_t *buffer = _fetch_begin(log, &at)
    cdef Block *block
    cdef bint read = False
    if at == NO_BLOCK:
        return False
    block = &log.blocks[at]
    if buffer != NULL:
        read = log_read(log, at, 0, block.used, buffer) == 0     # who needs it reads it again, and tells of the error
    pthread_mutex_lock(&log.lock)
    block.fetching = False
    if read:
        block.data = buffer
        log.kept[log.kept_count] = at
        log.kept_count += 1
    elif buffer != NULL:
        log.buffers[log.buffers_free] = buffer
        log.buffers_free += 1
    block.pins -= 1
    _changed(log)
    _block_free_if_unused(log, at)
    pthread_mutex_unlock(&log.lock)
    return True


cdef uint8_t *log_fetched(Log *log, uint32_t block) noexcept nogil:
    """The bytes of a pinned block that was not in memory when it was pinned: waited for if they are on their way; NULL
    if they must be read."""
    cdef uint32_t seen
    cdef uint8_t *data
    cdef bint fetching = True
    while True:
        seen = load_u32(&log.changed)
        pthread_mutex_lock(&log.lock)
        fetching = log.blocks[block].fetching and not log.stopping
        data = log.blocks[block].data
        pthread_mutex_unlock(&log.lock)
        if not fetching:
            return data
        sys_futex_wait(&log.changed, seen, 1000000)


# ---- writing

cdef int _write_block(Log *log, uint32_t at) noexcept nogil:
    """Writes to the first area that takes it. Returns 0, or the last -errno. Called without the lock."""
    cdef Block *block = &log.blocks[at]
    cdef int area, turn
    cdef int result = -ENOSPC
    cdef uint32_t slot
    for turn in range(MAX_AREAS):
        pthread_mutex_lock(&log.lock)
        area = log.order[turn] if turn < log.order_count else -1
        slot = log_slot_take(log, &log.areas[area]) if area >= 0 else NO_SLOT
        pthread_mutex_unlock(&log.lock)
        if area < 0:
            break
        if slot == NO_SLOT:
            continue
        result = log.areas[area].write(&log.areas[area], slot, block.data)
        pthread_mutex_lock(&log.lock)
        if result == 0:
            block.area = <uint8_t>area
            block.slot = slot
            block.state = BLOCK_STORED
            log.kept[log.kept_count] = at
            log.kept_count += 1
            _block_free_if_unused(log, at)
            _changed(log)
        else:
            log_slot_return(log, &log.areas[area], slot)
        pthread_mutex_unlock(&log.lock)
        if result == 0:
            return 0
    return result


cdef int log_write_next(Log *log) noexcept nogil:
    """Writes the oldest full block, if there is one. Returns 1 if it did something, 0 if not, or -errno.

    After an error the block stays queued, its bytes in memory, and log.error says so until a write succeeds."""
    cdef uint32_t at
    cdef int result, place
    pthread_mutex_lock(&log.lock)
    if log.queued == 0:
        pthread_mutex_unlock(&log.lock)
        return 0
    at = _take_out(log.queue, &log.queued, 0)
    if log.blocks[at].live == 0 and log.blocks[at].pins == 0:
        _data_release(log, &log.blocks[at])      # all given back before it was written
        _id_return(log, at)
        log.error = 0       # if a write had failed, it was this one's
        pthread_mutex_unlock(&log.lock)
        return 1
    log.blocks[at].state = BLOCK_WRITING
    log.writing = True
    pthread_mutex_unlock(&log.lock)
    result = _write_block(log, at)
    pthread_mutex_lock(&log.lock)
    log.writing = False
    log.error = result
    log.errors = 0 if result == 0 else WRITE_TRIES if result == -ENOSPC else log.errors + 1
    if result != 0:
        log.blocks[at].state = BLOCK_FULL
        for place in range(log.queued, 0, -1):
            log.queue[place] = log.queue[place - 1]
        log.queue[0] = at
        log.queued += 1
        _changed(log)
    pthread_mutex_unlock(&log.lock)
    return 1 if result == 0 else result


# ---- cleaning

cdef uint32_t _emptiest(Log *log, bint *busy) noexcept nogil:
    """Pins and returns the stored block with the fewest live pages, or NO_BLOCK. *busy: a block that is being read
    or written has fewer."""
    cdef uint32_t at
    cdef uint32_t best = NO_BLOCK
    cdef uint32_t fewest = BLOCK_PAGES
    pthread_mutex_lock(&log.lock)
    for at in range(log.block_end):
        if log.blocks[at].state == BLOCK_STORED and log.blocks[at].pins == 0:
            if best == NO_BLOCK or log.blocks[at].live < log.blocks[best].live:
                best = at
        elif log.blocks[at].state == BLOCK_STORED or log.blocks[at].state == BLOCK_WRITING:
            fewest = min(fewest, log.blocks[at].live)
    busy[0] = fewest < (log.blocks[best].live if best != NO_BLOCK else BLOCK_PAGES)
    if best != NO_BLOCK:
        log.blocks[best].pins += 1
    pthread_mutex_unlock(&log.lock)
    return best


cdef bint _still_there(Log *log, uint32_t offset, uint32_t block, uint32_t index) noexcept nogil:
    cdef uint64_t word
    if log.space.leaves[offset // LEAF_ENTRIES].words == NULL:
        return False
    word = space_word(log.space, offset)
    return entry_state(word) == STORED and stored_block(word) == block and stored_index(word) == index


cdef int _move_page(Log *log, uint32_t block, uint32_t index, const uint8_t *data) noexcept nogil:
    """Packs a live page of a pinned block again. Returns 0 or -errno."""
    cdef uint32_t offset = log.blocks[block].owners[index]
    cdef uint8_t *at
    cdef uint64_t word
    cdef int result = log_reserve(log, &at)
    if result != 0:
        return result
    memcpy(at, data, PAGE_BYTES)
    pthread_mutex_lock(&log.space.lock)
    if _still_there(log, offset, block, index):
        word = space_word(log.space, offset)
        log_commit(log, offset, stored_stamp(word))
        log_freed(log, word)
    pthread_mutex_unlock(&log.space.lock)
    return 0


cdef int log_clean(Log *log, uint8_t *scratch) noexcept nogil:
    """Empties the block with the fewest live pages, by packing these again; `scratch` holds a block.

    Returns the number of pages that were dead in it (what is gained; 0 means that cleaning cannot help), or
    -errno, -EAGAIN where a better block was just in use. Called by the thread that packs, without any lock."""
    cdef bint busy
    cdef uint32_t at = _emptiest(log, &busy)
    cdef uint32_t index, dead
    cdef uint8_t *data
    cdef int result = 0
    if at == NO_BLOCK:
        return -EAGAIN if busy else 0
    dead = BLOCK_PAGES - log.blocks[at].live
    data = log.blocks[at].data      # stays: the block is pinned
    if dead > 0 and data == NULL:
        data = scratch
        result = log_read(log, at, 0, log.blocks[at].used, scratch)
    if dead > 0:
        for index in range(log.blocks[at].used):
            if result != 0:
                break
            result = _move_page(log, at, index, data + <uint64_t>index * PAGE_BYTES)
    log_unpin(log, at)
    if result == 0 and dead == 0 and busy:
        return -EAGAIN
    return result if result != 0 else <int>dead
