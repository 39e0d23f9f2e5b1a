# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks: pages are packed into an open block; a full block stays in memory or is written out whole, in one
write.

Each open block has one thread that packs into it: the evictor pages as they are (OPEN_PLAIN), the packer those that it
has packed small (pack.pyx). One thread writes (log_write_next), any may pin, read and free. A block's slot and its
buffer are reused only when no live entry names it and nobody has it pinned, so a pinned block can be read without a
lock although its pages are packed into another at the same time: the old copy stays true.

Buffers: those of plain pages are few, as they are on their way to be written or packed. Blocks of packed pages may
stay: `tier_most` of them, the memory tier. Those that are written stay too, until their buffer is wanted.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memmove, memset

from userswap.slots cimport NO_SLOT, slot_return, slot_take, slots_free_of
from userswap.space cimport space_set, space_word
from userswap.stores cimport store_deinit
from userswap.system cimport (
    ECANCELED,
    ENOMEM,
    ENOSPC,
    load_u32,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_advance,
    sys_futex_wait,
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
    stored_payload,
    whole_pages,
)


cdef enum:
    WRITE_TRIES = 20        # failed writes in a row that are taken for final
    BEHIND = 2              # plain blocks that wait: one more than that, and the packer is too slow
    LENGTH_BITS = 12


cdef int log_init(Log *log, Space *space, int buffers) noexcept nogil:
    """Returns 0, or -ENOMEM. The areas are added by the caller."""
    cdef int at, _buffer
    cdef uint8_t *buffer
    memset(log, 0, sizeof(Log))
    pthread_mutex_init(&log.lock, NULL)
    log.space = space
    for at in range(OPENS):
        log.open[at] = NO_BLOCK
    for at in range(LISTS):
        log.lists[at].first = log.lists[at].last = NO_BLOCK
    log.free_ids = NO_BLOCK
    log.plain_most = buffers
    log.blocks = <Block *>sys_reserve(MAX_BLOCKS * sizeof(Block))
    log.buffers = <uint8_t **>sys_reserve(BUFFERS_EVER * sizeof(uint8_t *))
    if log.blocks == NULL or log.buffers == NULL:
        return -ENOMEM
    for _buffer in range(buffers):
        buffer = <uint8_t *>sys_reserve(BLOCK_BYTES)
        if buffer == NULL:
            return -ENOMEM
        _buffer_put(log, buffer)
    log.buffers_made = buffers
    return 0


cdef void log_populate(Log *log) noexcept nogil:
    """Takes the memory of all buffers, before anything is packed: else the log would grow when memory is shortest."""
    cdef uint32_t at
    for at in range(log.buffers_free):
        sys_populate(log.buffers[at], BLOCK_BYTES)


cdef void log_deinit(Log *log) noexcept nogil:
    cdef uint32_t at
    cdef int area
    for at in range(log.block_end):
        if log.blocks[at].data != NULL:
            sys_release(log.blocks[at].data, BLOCK_BYTES)
        _lists_free(&log.blocks[at])
    for at in range(log.buffers_free):
        sys_release(log.buffers[at], BLOCK_BYTES)
    for area in range(log.area_count):
        store_deinit(&log.areas[area])
    sys_release(log.blocks, MAX_BLOCKS * sizeof(Block))
    sys_release(log.buffers, BUFFERS_EVER * sizeof(uint8_t *))
    pthread_mutex_destroy(&log.lock)


cdef void log_changed(Log *log) noexcept nogil:
    sys_futex_advance(&log.changed)


# ---- lists of blocks, with Log.lock held

cdef void log_list_add(Log *log, int name, uint32_t at, bint first) noexcept nogil:
    """As the youngest, or as the oldest if `first`."""
    cdef BlockList *blocks = &log.lists[name]
    cdef Block *block = &log.blocks[at]
    block.list = name
    block.previous = NO_BLOCK if first else blocks.last
    block.next = blocks.first if first else NO_BLOCK
    if block.previous != NO_BLOCK:
        log.blocks[block.previous].next = at
    else:
        blocks.first = at
    if block.next != NO_BLOCK:
        log.blocks[block.next].previous = at
    else:
        blocks.last = at
    blocks.count += 1


cdef void log_list_take(Log *log, uint32_t at) noexcept nogil:
    """Takes the block out of the list that it is in, if any."""
    cdef Block *block = &log.blocks[at]
    cdef BlockList *blocks = &log.lists[block.list]
    if block.list == LIST_NONE:
        return
    if block.previous != NO_BLOCK:
        log.blocks[block.previous].next = block.next
    else:
        blocks.first = block.next
    if block.next != NO_BLOCK:
        log.blocks[block.next].previous = block.previous
    else:
        blocks.last = block.previous
    blocks.count -= 1
    block.list = LIST_NONE


cdef uint32_t log_unwritten(Log *log) noexcept nogil:
    """Full blocks that have no slot yet."""
    return log.lists[LIST_QUEUE].count + log.lists[LIST_TIER].count


cdef uint64_t log_free_slots(Log *log) noexcept nogil:
    """Blocks that can still be written, over all areas, less those that are full already."""
    cdef uint64_t free_slots = 0
    cdef int at
    pthread_mutex_lock(&log.lock)
    for at in range(log.area_count):
        free_slots += slots_free_of(&log.areas[at])
    free_slots -= min(free_slots, <uint64_t>log_unwritten(log))
    pthread_mutex_unlock(&log.lock)
    return free_slots


# ---- blocks, with Log.lock held

cdef void _lists_free(Block *block) noexcept nogil:
    free(block.owners)
    free(block.lengths)
    free(block.anchors)
    block.owners = NULL
    block.lengths = NULL
    block.anchors = NULL


cdef void _buffer_put(Log *log, uint8_t *buffer) noexcept nogil:
    log.buffers[log.buffers_free] = buffer
    log.buffers_free += 1


cdef uint8_t *_buffer_take(Log *log, uint32_t left) noexcept nogil:
    """A free buffer if more than `left` are, else that of a block which is only kept; NULL when there is neither."""
    if log.buffers_free <= left and not _buffer_recycle(log):
        return NULL
    log.buffers_free -= 1
    return log.buffers[log.buffers_free]


cdef void _id_return(Log *log, uint32_t at) noexcept nogil:
    log.blocks[at].next = log.free_ids
    log.free_ids = at


cdef void _data_release(Log *log, Block *block) noexcept nogil:
    if not block.packed and block.state != BLOCK_STORED:
        log.plain -= 1
    _buffer_put(log, block.data)
    block.data = NULL
    log_changed(log)


cdef bint _buffer_recycle(Log *log) noexcept nogil:
    """Gives up the oldest written block that is only kept in memory for faults that may come; one that was read since
    the last look only where there is no other."""
    cdef uint32_t left = 2 * log.lists[LIST_KEPT].count
    cdef uint32_t at = log.lists[LIST_KEPT].first
    cdef uint32_t next
    cdef Block *block
    while left > 0:
        block = &log.blocks[at]
        next = block.next
        log_list_take(log, at)
        if block.pins == 0 and not block.used_lately:
            log.dropped += block.packed
            block.left = log.dropped if block.packed else 0
            _data_release(log, block)
            return True
        block.used_lately = False
        log_list_add(log, LIST_KEPT, at, False)
        at = next if next != NO_BLOCK else log.lists[LIST_KEPT].first
        left -= 1
    return False


cdef void _block_free_if_unused(Log *log, uint32_t at) noexcept nogil:
    """Frees a block that nothing names and nobody reads. One that is open or on its way out is looked at later."""
    cdef Block *block = &log.blocks[at]
    if block.live != 0 or block.pins != 0:
        return
    if block.state == BLOCK_STORED:
        slot_return(log, &log.areas[block.area], block.slot)
    elif block.state != BLOCK_FULL and block.state != BLOCK_SPENT:
        return
    log_list_take(log, at)
    if block.data != NULL:
        _data_release(log, block)
    _lists_free(block)
    block.state = BLOCK_FREE
    _id_return(log, at)


cdef int _lists_make(Block *block) noexcept nogil:
    block.room = INDEX_MAX if block.packed else BLOCK_PAGES
    block.owners = <uint32_t *>malloc(block.room * sizeof(uint32_t))
    if block.packed:
        block.lengths = <uint16_t *>malloc(block.room * sizeof(uint16_t))
        block.anchors = <uint32_t *>malloc(block.room // ANCHOR_PAGES * sizeof(uint32_t))
    if block.owners == NULL or (block.packed and (block.lengths == NULL or block.anchors == NULL)):
        _lists_free(block)
        return -ENOMEM
    return 0


cdef void _lists_shrink(Block *block) noexcept nogil:
    """To what is used, once nobody reads them."""
    cdef void *smaller
    if block.room == block.used or block.pins != 0 or not block.packed:
        return
    block.room = block.used
    smaller = realloc(block.owners, block.used * sizeof(uint32_t))
    block.owners = <uint32_t *>smaller if smaller != NULL else block.owners
    smaller = realloc(block.lengths, block.used * sizeof(uint16_t))
    block.lengths = <uint16_t *>smaller if smaller != NULL else block.lengths
    smaller = realloc(block.anchors, (block.used + ANCHOR_PAGES - 1) // ANCHOR_PAGES * sizeof(uint32_t))
    block.anchors = <uint32_t *>smaller if smaller != NULL else block.anchors


cdef void _wait_for(Log *log, bint *what) noexcept nogil:
    """Tells the writer that somebody waits, once."""
    if not what[0]:
        what[0] = True
        log_changed(log)


cdef int _open_block(Log *log, int which) noexcept nogil:
    """Opens a new block. 1 when that must wait for a buffer, else 0 or -errno."""
    cdef uint32_t at = log.free_ids
    cdef uint8_t *buffer
    cdef Block *block
    if which == OPEN_PLAIN and log.plain >= log.plain_most:
        _wait_for(log, &log.plain_waits)
        return 1
    buffer = _buffer_take(log, 0)
    if buffer == NULL:
        _wait_for(log, &log.buffer_waits)
        return 1
    if at != NO_BLOCK:
        log.free_ids = log.blocks[at].next
    elif log.block_end < MAX_BLOCKS:
        at = log.block_end
        log.block_end += 1
    else:
        _buffer_put(log, buffer)
        return -ENOSPC
    block = &log.blocks[at]
    memset(block, 0, sizeof(Block))
    block.packed = which != OPEN_PLAIN
    block.settled = which == OPEN_COLD
    if _lists_make(block) != 0:
        _buffer_put(log, buffer)
        _id_return(log, at)
        return -ENOMEM
    log.plain_waits = log.plain_waits and which != OPEN_PLAIN
    log.buffer_waits = False
    log.plain += which == OPEN_PLAIN
    block.data = buffer
    block.state = BLOCK_OPEN
    log.open[which] = at
    return 0


cdef void _close_block(Log *log, int which) noexcept nogil:
    cdef uint32_t at = log.open[which]
    cdef Block *block = &log.blocks[at]
    log.open[which] = NO_BLOCK
    log.clock += 1
    if which != OPEN_COLD:
        block.born = log.clock
    block.state = BLOCK_FULL
    log_list_add(log, LIST_TIER if which == OPEN_PACKED else LIST_QUEUE, at, False)
    _lists_shrink(block)
    _block_free_if_unused(log, at)
    log_changed(log)


# ---- packing

cdef int log_reserve(Log *log, int which, uint8_t **at) noexcept nogil:
    """Where the next page is to be packed: there is room for PAGE_BYTES. Waits for the writer when no buffer is free.

    Returns 0, or the -errno of a writer that cannot go on. Call without any lock."""
    cdef uint32_t seen
    cdef int result = 0
    while True:
        seen = load_u32(&log.changed)
        pthread_mutex_lock(&log.lock)
        if log.open[which] == NO_BLOCK:
            result = _open_block(log, which)
        if result == 0:
            at[0] = log.blocks[log.open[which]].data + log.blocks[log.open[which]].bytes
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
    return log.writing or log.lists[LIST_QUEUE].count > 0 or log.buffer_waits


cdef void log_commit(Log *log, int which, uint32_t offset, uint32_t length, uint8_t codec,
                     uint32_t stamp) noexcept nogil:
    """The page at log_reserve's place, of `length` bytes, is that of `offset`: its entry becomes STORED. Space.lock is
    held."""
    cdef uint64_t word = space_word(log.space, offset)
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    block = &log.blocks[log.open[which]]
    block.owners[block.used] = offset
    if block.packed:
        block.lengths[block.used] = <uint16_t>((length - 1) | (<uint32_t>codec << LENGTH_BITS))
        if block.used % ANCHOR_PAGES == 0:
            block.anchors[block.used // ANCHOR_PAGES] = block.bytes
    space_set(log.space, offset, entry_make(STORED, entry_count(word),
                                            stored_payload(log.open[which], block.used, stamp)))
    block.used += 1
    block.bytes += length
    block.live += 1
    if block.bytes + PAGE_BYTES > BLOCK_BYTES or block.used == block.room:
        _close_block(log, which)
    pthread_mutex_unlock(&log.lock)


cdef void log_freed(Log *log, uint64_t word) noexcept nogil:
    """An entry was freed that was `word`: if it was STORED its block has one live page less."""
    if entry_state(word) != STORED:
        return
    pthread_mutex_lock(&log.lock)
    log.blocks[stored_block(word)].live -= 1
    _block_free_if_unused(log, stored_block(word))
    pthread_mutex_unlock(&log.lock)


# ---- the tier's buffers

cdef bint log_buffer_add(Log *log) noexcept nogil:
    """One buffer more, its memory taken. Call without a lock, by one thread."""
    cdef uint8_t *buffer
    if log.buffers_made == BUFFERS_EVER:
        return False
    buffer = <uint8_t *>sys_reserve(BLOCK_BYTES)
    if buffer == NULL:
        return False
    sys_populate(buffer, BLOCK_BYTES)
    pthread_mutex_lock(&log.lock)
    _buffer_put(log, buffer)
    log.buffers_made += 1
    pthread_mutex_unlock(&log.lock)
    log_changed(log)
    return True


cdef bint log_buffer_drop(Log *log) noexcept nogil:
    """One buffer less, its memory given back. False when none can be spared now."""
    cdef uint8_t *buffer
    pthread_mutex_lock(&log.lock)
    buffer = _buffer_take(log, 0)
    log.buffers_made -= buffer != NULL
    pthread_mutex_unlock(&log.lock)
    if buffer != NULL:
        sys_release(buffer, BLOCK_BYTES)
    return buffer != NULL


# ---- reading

cdef uint8_t *log_pin(Log *log, uint32_t block) noexcept nogil:
    """Keeps the block's bytes where they are. Returns them, or NULL when they are only in an area.

    Space.lock is held, under which the caller read the word that names the block."""
    cdef uint8_t *data
    pthread_mutex_lock(&log.lock)
    log.blocks[block].pins += 1
    data = log.blocks[block].data
    log.blocks[block].used_lately = data != NULL
    pthread_mutex_unlock(&log.lock)
    return data


cdef void log_unpin(Log *log, uint32_t block) noexcept nogil:
    pthread_mutex_lock(&log.lock)
    log_unpin_locked(log, block)
    pthread_mutex_unlock(&log.lock)


cdef void log_unpin_locked(Log *log, uint32_t block) noexcept nogil:
    log.blocks[block].pins -= 1
    if log.blocks[block].state != BLOCK_OPEN:
        _lists_shrink(&log.blocks[block])
    _block_free_if_unused(log, block)


cdef void _place_length(Block *block, uint32_t index, Place *place) noexcept nogil:
    place.length = (block.lengths[index] & ((1 << LENGTH_BITS) - 1)) + 1
    place.codec = <uint8_t>(block.lengths[index] >> LENGTH_BITS)


cdef void log_place(Log *log, uint32_t block, uint32_t index, Place *place) noexcept nogil:
    """Where a page of a pinned block lies in it."""
    cdef Block *b = &log.blocks[block]
    cdef uint32_t at = index // ANCHOR_PAGES * ANCHOR_PAGES
    if not b.packed:
        place.start = index * PAGE_BYTES
        place.length = PAGE_BYTES
        place.codec = 0
        return
    place.start = b.anchors[index // ANCHOR_PAGES]
    _place_length(b, at, place)
    while at < index:
        at += 1
        log_place_next(log, block, at, place)


cdef void log_place_next(Log *log, uint32_t block, uint32_t index, Place *place) noexcept nogil:
    """From the place of the page before to that of `index`, in a packed block."""
    place.start += place.length
    _place_length(&log.blocks[block], index, place)


cdef void log_span(Log *log, uint32_t block, uint32_t index, uint32_t count, uint32_t *at,
                   uint32_t *length) noexcept nogil:
    """What must be read of a pinned block to have `count` of its pages: whole pages, from *at on."""
    cdef Place first, last
    log_place(log, block, index, &first)
    log_place(log, block, index + count - 1, &last)
    at[0] = first.start // PAGE_BYTES * PAGE_BYTES
    length[0] = whole_pages(last.start + last.length - at[0])


cdef int log_read(Log *log, uint32_t block, uint32_t at, uint32_t length, uint8_t *into) noexcept nogil:
    """Reads bytes of a pinned block that log_pin found only in an area; both are multiples of PAGE_BYTES. Returns 0 or
    -errno."""
    cdef Block *b = &log.blocks[block]
    cdef Store *area = &log.areas[b.area]
    return area.read(area, b.slot, at, length, into)


cdef int log_read_whole(Log *log, uint32_t block, uint8_t *into) noexcept nogil:
    """As log_read, all that is used of the block."""
    return log_read(log, block, 0, whole_pages(log.blocks[block].bytes), into)


cdef int log_read_later(Log *log, sys_reads *reads, uint32_t block, uint32_t at, uint32_t length,
                        uint8_t *into) noexcept nogil:
    """As log_read, but the bytes are there only after sys_reads_finish."""
    cdef Block *b = &log.blocks[block]
    cdef Store *area = &log.areas[b.area]
    return area.read_later(area, reads, b.slot, at, length, into)


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
        sys_futex_advance(&log.fetch_wanted)


cdef uint8_t *_fetch_begin(Log *log, uint32_t *at) noexcept nogil:
    """The oldest block that is wanted, and a buffer for it. NULL when there is none, or none to spare: the block that
    is packed next needs one."""
    cdef uint8_t *buffer = NULL
    pthread_mutex_lock(&log.lock)
    if log.fetch_count > 0:
        at[0] = log.fetches[0]
        log.fetch_count -= 1
        memmove(log.fetches, log.fetches + 1, log.fetch_count * sizeof(uint32_t))
        buffer = _buffer_take(log, 1)
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
        # Who needs it reads it again, and tells of the error.
        read = log_read_whole(log, at, buffer) == 0
    pthread_mutex_lock(&log.lock)
    block.fetching = False
    if read:
        block.data = buffer
        log_list_add(log, LIST_KEPT, at, False)
    elif buffer != NULL:
        _buffer_put(log, buffer)
    log_unpin_locked(log, at)
    log_changed(log)
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
        slot = slot_take(log, &log.areas[area]) if area >= 0 else NO_SLOT
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
            log.plain -= not block.packed
            log_list_add(log, LIST_KEPT, at, False)
            _block_free_if_unused(log, at)
            log_changed(log)
        else:
            slot_return(log, &log.areas[area], slot)
        pthread_mutex_unlock(&log.lock)
        if result == 0:
            return 0
    return result


cdef uint32_t _coldest(Log *log) noexcept nogil:
    """The oldest block of the tier that was not read since the last look."""
    cdef BlockList *tier = &log.lists[LIST_TIER]
    cdef uint32_t left = tier.count
    cdef uint32_t at = tier.first
    while left > 0 and log.blocks[at].used_lately:
        log.blocks[at].used_lately = False
        log_list_take(log, at)
        log_list_add(log, LIST_TIER, at, False)
        at = tier.first
        left -= 1
    return at


cdef uint32_t _to_write(Log *log) noexcept nogil:
    """The block to be written next, or NO_BLOCK. A plain one is left to the packer, unless that is behind."""
    cdef BlockList *queue = &log.lists[LIST_QUEUE]
    cdef BlockList *tier = &log.lists[LIST_TIER]
    if queue.count > 0 and (not log.packs or log.blocks[queue.first].settled or queue.count > BEHIND
                            or log.plain_waits or log.buffer_waits):
        return queue.first
    if tier.count > log.tier_most or (tier.count > 0 and log.buffer_waits):
        return _coldest(log)
    return NO_BLOCK


cdef int log_write_next(Log *log) noexcept nogil:
    """Writes the block that is to be written next, if there is one. Returns 1 if it did, 0 if not, or -errno.

    After an error the block stays where it was, its bytes in memory, and log.error says so until a write succeeds."""
    cdef uint32_t at
    cdef int name
    cdef int result
    pthread_mutex_lock(&log.lock)
    at = _to_write(log)
    if at == NO_BLOCK:
        if log.lists[LIST_QUEUE].count == 0:
            log.error = 0       # if a write had failed, what was to be written has been given back
            log.errors = 0
        pthread_mutex_unlock(&log.lock)
        return 0
    name = log.blocks[at].list
    log_list_take(log, at)
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
        log_list_add(log, name, at, True)
        _block_free_if_unused(log, at)
        log_changed(log)
    pthread_mutex_unlock(&log.lock)
    return 1 if result == 0 else result
