# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks: pages are packed into an open block; a full block stays in memory or is written out whole, in one
write.

Each open block has one thread that packs into it: the evictor pages as they are (OPEN_PLAIN, OPEN_HOT), the packer
those that it has packed small (pack.pyx). One thread writes (log_write_next), any may pin, read and free. A block's
slot and its buffer are reused only when no live entry names it and nobody has it pinned, so a pinned block can be read
without a lock although its pages are packed into another at the same time: the old copy stays true.

Buffers: those of plain pages are few, as they are on their way to be written or packed. Blocks of packed pages may
stay: `tier_most` of them, the memory tier. Those that are written stay too, until their buffer is wanted.
An open block holds a buffer for as long as it takes to fill it, which nobody can hasten. So there are at least as many
buffers as kinds of open blocks, and one for what the packer packs from: else all could be in use while somebody waits
to open another. Hot pages have kinds of their own (`apart`) only where there are buffers for these too; else they are
packed with the others.

Hot and cold: what dies together should lie together, so that a block is either dead as a whole or not worth cleaning.
Block.born and the clock tell how long a copy lived that is given up, to within a block.
"""

from libc.string cimport memset

from userswap.arena cimport arena_release, arena_reserve, buffer_make, buffer_unmake
from userswap.blocks cimport (
    block_free_if_unused,
    block_id_return,
    block_list_add,
    block_list_take,
    block_lists_free,
    block_lists_make,
    block_lists_shrink,
    block_not_plain,
    buffer_put,
    buffer_take,
    log_changed,
)
from userswap.reclaim cimport reclaim_is_hot
from userswap.slots cimport NO_SLOT, slot_return, slot_take, slots_free_of
from userswap.space cimport space_change
from userswap.cipher cimport cipher_take
from userswap.stores cimport store_deinit
from userswap.sums cimport sums_make
from userswap.system cimport (
    ECANCELED,
    ENOMEM,
    ENOSPC,
    load_u32,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_pair,
    store_u8,
    sys_crash_point,
    sys_futex_wait,
    sys_populate_whole,
    sys_release,
    sys_reserve,
)
from userswap.types cimport (
    BLOCK_BYTES,
    BLOCK_PAGES,
    PAGE_BYTES,
    STORED,
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
    log.block_limit = min(<uint32_t>MAX_BLOCKS, space.block_limit)
    for at in range(OPENS):
        log.open[at] = NO_BLOCK
    for at in range(LISTS):
        log.lists[at].first = log.lists[at].last = NO_BLOCK
    log.free_ids = NO_BLOCK
    log.plain_most = buffers
    log.error_area = -1
    log.blocks = <Block *>arena_reserve(MAX_BLOCKS * sizeof(Block))
    log.buffers = <uint8_t **>sys_reserve(BUFFERS_EVER * sizeof(uint8_t *))
    if log.blocks == NULL or log.buffers == NULL:
        return -ENOMEM
    for _buffer in range(buffers):
        buffer = buffer_make()
        if buffer == NULL:
            return -ENOMEM
        buffer_put(log, buffer)
    log.buffers_made = log.buffers_base = buffers
    return 0


cdef void log_populate(Log *log) noexcept nogil:
    """Takes the memory of all buffers, before anything is packed: else the log would grow when memory is shortest."""
    cdef uint32_t at
    for at in range(log.buffers_free):
        sys_populate_whole(log.buffers[at], BLOCK_BYTES)


cdef void log_deinit(Log *log) noexcept nogil:
    cdef uint32_t at
    cdef int area
    for at in range(log.block_end):
        if log.blocks[at].data != NULL:
            buffer_unmake(log.blocks[at].data)
        block_lists_free(&log.blocks[at])
    for at in range(log.buffers_free):
        buffer_unmake(log.buffers[at])
    for area in range(log.area_count):
        store_deinit(&log.areas[area])
    arena_release(log.blocks, MAX_BLOCKS * sizeof(Block))
    sys_release(log.buffers, BUFFERS_EVER * sizeof(uint8_t *))
    pthread_mutex_destroy(&log.lock)


cdef uint32_t log_unwritten(Log *log) noexcept nogil:
    """Full blocks that have no slot yet."""
    return log.lists[LIST_QUEUE].count + log.lists[LIST_TIER].count


cdef uint64_t log_free_slots(Log *log) noexcept nogil:
    """Blocks that can still be written, over all areas, less those that are full already; no more than entries can
    name."""
    cdef uint64_t free_slots = 0
    cdef int at
    pthread_mutex_lock(&log.lock)
    for at in range(log.area_count):
        free_slots += slots_free_of(&log.areas[at])
    free_slots -= min(free_slots, <uint64_t>log_unwritten(log))
    free_slots = min(free_slots, <uint64_t>(log.block_limit - log.blocks_used))
    pthread_mutex_unlock(&log.lock)
    return free_slots


cdef void _wait_for(Log *log, bint *what) noexcept nogil:
    """Tells the writer that somebody waits, once."""
    if not what[0]:
        what[0] = True
        log_changed(log)


cdef void _waits_no_more(Log *log) noexcept nogil:
    """Who waited for a buffer gives up. If there are others, they say so again."""
    log.buffer_waits = False
    log_changed(log)


cdef bint _is_plain(int which) noexcept nogil:
    return which == OPEN_PLAIN or which == OPEN_HOT


cdef bint _is_packers(int which) noexcept nogil:
    return which == OPEN_PACKED or which == OPEN_PACKED_HOT


cdef void _begin_block(Log *log, Block *block, int which) noexcept nogil:
    memset(block, 0, sizeof(Block))
    block.kind = which
    block.hot = which == OPEN_HOT or which == OPEN_PACKED_HOT or which == OPEN_WARM
    block.packed = not _is_plain(which)
    block.cleaned = which == OPEN_WARM or which == OPEN_COLD
    block.settled = block.cleaned
    block.born = 0 if block.cleaned else log.clock
    log.serial += 1
    block.serial = log.serial


cdef int _open_block(Log *log, int which) noexcept nogil:
    """Opens a new block. 1 when that must wait for a buffer, else 0 or -errno."""
    cdef uint32_t at = log.free_ids
    cdef uint8_t *buffer
    cdef Block *block
    if _is_plain(which) and log.plain >= log.plain_most:
        _wait_for(log, &log.plain_waits)
        return 1
    buffer = buffer_take(log, 0)
    if buffer == NULL and _is_packers(which) and log.order_count == 0:
        _waits_no_more(log)     # what is not packed stays as it is: nobody needs to make room for it
        return -ENOSPC
    if buffer == NULL:
        _wait_for(log, &log.buffer_waits)
        return 1
    if at != NO_BLOCK:
        log.free_ids = log.blocks[at].next
    elif log.block_end < log.block_limit:
        at = log.block_end
        log.block_end += 1
    else:
        buffer_put(log, buffer)
        return -ENOSPC
    block = &log.blocks[at]
    _begin_block(log, block, which)
    if block_lists_make(block) != 0:
        buffer_put(log, buffer)
        block_id_return(log, at)
        return -ENOMEM
    log.plain_waits = log.plain_waits and not _is_plain(which)
    log.buffer_waits = False
    block.plain = _is_plain(which)
    log.plain += block.plain
    block.data = buffer
    block.state = BLOCK_OPEN
    log.open[which] = at
    log.blocks_used += 1
    return 0


cdef void _close_block(Log *log, int which) noexcept nogil:
    cdef uint32_t at = log.open[which]
    cdef Block *block = &log.blocks[at]
    log.open[which] = NO_BLOCK
    log.clock += _is_plain(which)
    block.closed = log.clock
    if not block.cleaned:
        block.born = log.clock
    sys_crash_point(b"log-closing")
    block.state = BLOCK_FULL
    block_list_add(log, LIST_TIER if block.packed and not block.cleaned else LIST_QUEUE, at, False)
    block_lists_shrink(block)
    block_free_if_unused(log, at)
    log_changed(log)


# ---- packing

cdef bint log_can_pack(Log *log) noexcept nogil:
    """Whether what is packed small has a place to go. log.lock is held."""
    cdef bint open = log.open[OPEN_PACKED] != NO_BLOCK and (not log.apart or log.open[OPEN_PACKED_HOT] != NO_BLOCK)
    return open or log.order_count > 0 or log.buffers_free > 0


cdef int log_open_plain(Log *log, bint hot) noexcept nogil:
    """The open block for pages as they are."""
    return OPEN_HOT if hot and log.apart else OPEN_PLAIN


cdef int log_open_packed(Log *log, bint hot) noexcept nogil:
    return OPEN_PACKED_HOT if hot and log.apart else OPEN_PACKED


cdef bint log_is_young(Log *log, Block *block) noexcept nogil:
    """Whether a page of this block whose copy is given up now is likely to come back as soon. No lock: all that a wrong
    answer does is that it lies with others."""
    return reclaim_is_hot(<uint64_t>(log.clock - block.born) * BLOCK_PAGES, log.stored)


cdef int log_reserve(Log *log, int which, uint8_t **at) noexcept nogil:
    """Where the next page is to be packed: there is room for PAGE_BYTES, and for its checksum where that lies there.
    Waits for the writer when no buffer is free.

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
            _waits_no_more(log)
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
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    block = &log.blocks[log.open[which]]
    block.owners[block.used] = offset
    if block.packed:
        block.lengths[block.used] = <uint16_t>((length - 1) | (<uint32_t>codec << LENGTH_BITS))
        if block.used % ANCHOR_PAGES == 0:
            block.anchors[block.used // ANCHOR_PAGES] = block.bytes
    space_change(log.space, offset, STORED, stored_payload(log.open[which], block.used, stamp))
    sys_crash_point(b"log-committed")
    block.used += 1
    block.bytes += length + block.packed * SUM_BYTES
    block.live += 1
    log.stored += 1
    log.used += 1
    if block.bytes + PAGE_BYTES + block.packed * SUM_BYTES > BLOCK_BYTES or block.used == block.room:
        _close_block(log, which)
    pthread_mutex_unlock(&log.lock)


cdef void log_freed(Log *log, uint64_t word) noexcept nogil:
    """An entry was freed that was `word`: if it was STORED its block has one live page less."""
    if entry_state(word) != STORED:
        return
    pthread_mutex_lock(&log.lock)
    log.blocks[stored_block(word)].live -= 1
    log.stored -= 1
    block_free_if_unused(log, stored_block(word))
    pthread_mutex_unlock(&log.lock)


# ---- the tier's buffers

cdef bint log_tier_grow(Log *log) noexcept nogil:
    """One block more may stay; its memory is taken. Call without a lock, by one thread."""
    cdef uint8_t *buffer
    if log.buffers_made == BUFFERS_EVER:
        return False
    buffer = buffer_make()
    if buffer == NULL:
        return False
    sys_populate_whole(buffer, BLOCK_BYTES)
    pthread_mutex_lock(&log.lock)
    buffer_put(log, buffer)
    log.buffers_made += 1
    log.tier_most += 1
    pthread_mutex_unlock(&log.lock)
    log_changed(log)
    return True


cdef uint32_t log_tier_shrink(Log *log, uint32_t blocks) noexcept nogil:
    """So many blocks less may stay, how many it can be; their buffers are dropped when they come free."""
    pthread_mutex_lock(&log.lock)
    blocks = min(blocks, log.tier_most)
    log.tier_most -= blocks
    pthread_mutex_unlock(&log.lock)
    if blocks > 0:
        log_changed(log)
    return blocks


cdef bint log_buffer_drop(Log *log, uint32_t base) noexcept nogil:
    """One buffer less, its memory given back, if there are more than `base` and the tier's. False when there are not,
    or none can be spared now."""
    cdef uint8_t *buffer = NULL
    pthread_mutex_lock(&log.lock)
    if log.buffers_made > base + log.tier_most:
        buffer = buffer_take(log, 0)
        log.buffers_made -= buffer != NULL
    pthread_mutex_unlock(&log.lock)
    if buffer != NULL:
        buffer_unmake(buffer)
    return buffer != NULL


# ---- blocks that stay in memory as no area has room for them, with Log.lock held

cdef void log_keep(Log *log, uint32_t at) noexcept nogil:
    """A FULL block joins the tier, over the count that this may have if need be."""
    block_list_take(log, at)
    block_not_plain(log, &log.blocks[at])
    block_list_add(log, LIST_TIER, at, False)
    log_changed(log)


cdef void log_keep_in(Log *log, uint32_t at, uint8_t *buffer, bint doubtful) noexcept nogil:
    """A STORED block leaves its slot to the caller and joins the tier, which grows by that. `buffer` is a new one, with
    the block's bytes if it has no other; `doubtful` if some of these were not read as they had been written."""
    cdef Block *block = &log.blocks[at]
    block_list_take(log, at)
    if block.data == NULL:
        block.data = buffer
        block.doubtful = doubtful
    else:
        buffer_put(log, buffer)
    log.buffers_made += 1
    log.tier_most += 1
    block.state = BLOCK_FULL
    log_keep(log, at)


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
        block_lists_shrink(&log.blocks[block])
    block_free_if_unused(log, block)


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
    place.start += place.length + SUM_BYTES
    _place_length(&log.blocks[block], index, place)


cdef void log_span(Log *log, uint32_t block, uint32_t index, uint32_t count, uint32_t *at,
                   uint32_t *length) noexcept nogil:
    """What must be read of a pinned block to have `count` of its pages: whole pages, from *at on."""
    cdef Place first, last
    log_place(log, block, index, &first)
    log_place(log, block, index + count - 1, &last)
    at[0] = first.start // PAGE_BYTES * PAGE_BYTES
    length[0] = whole_pages(last.start + last.length + log.blocks[block].packed * SUM_BYTES - at[0])


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
    """As log_read, but the bytes are there only after sys_reads_finish and log_take."""
    cdef Block *b = &log.blocks[block]
    cdef Store *area = &log.areas[b.area]
    return area.read_later(area, reads, b.slot, at, length, into)


cdef void log_take(Log *log, uint32_t block, uint32_t at, uint32_t length, uint8_t *into) noexcept nogil:
    """What log_read_later has read becomes what was written."""
    cdef Block *b = &log.blocks[block]
    cipher_take(&log.areas[b.area], b.slot, at, length, into)


# ---- writing

cdef int _write_block(Log *log, uint32_t at) noexcept nogil:
    """Writes to the first area that takes it. Returns 0, or the last -errno. Called without the lock."""
    cdef Block *block = &log.blocks[at]
    cdef int area, turn
    cdef int result = sums_make(log, at)
    cdef uint32_t slot
    if result != 0:
        return result
    result = -ENOSPC
    for turn in range(MAX_AREAS):
        pthread_mutex_lock(&log.lock)
        area = log.order[turn] if turn < log.order_count else -1
        slot = slot_take(log, &log.areas[area]) if area >= 0 else NO_SLOT
        pthread_mutex_unlock(&log.lock)
        if area < 0:
            break
        if slot == NO_SLOT:
            continue
        sys_crash_point(b"log-writing")
        result = log.areas[area].write(&log.areas[area], slot, block.data)
        pthread_mutex_lock(&log.lock)
        if result == 0:
            sys_crash_point(b"log-written")
            store_pair(&block.slot, slot, <uint32_t>area)
            sys_crash_point(b"log-placed")
            store_u8(&block.state, BLOCK_STORED)
            sys_crash_point(b"log-stored")
            block_not_plain(log, block)
            block_list_add(log, LIST_KEPT, at, False)
            block_free_if_unused(log, at)
            log_changed(log)
        else:
            slot_return(log, &log.areas[area], slot)
            log.error_area = area
            log.error_slot = slot
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
        block_list_take(log, at)
        block_list_add(log, LIST_TIER, at, False)
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
    if (log.order_count > 0 and tier.count > log.tier_most) or (tier.count > 0 and log.buffer_waits):
        return _coldest(log)
    return NO_BLOCK


cdef bint _keep_without_areas(Log *log) noexcept nogil:
    """Where all areas have gone, what would be written stays in memory, as long as there are buffers."""
    cdef uint32_t at = log.lists[LIST_QUEUE].first
    if log.order_count > 0 or log.buffer_waits or at == NO_BLOCK or not (log.blocks[at].settled or not log.packs):
        return False
    log_keep(log, at)
    return True


cdef int log_write_next(Log *log) noexcept nogil:
    """Writes the block that is to be written next, if there is one. Returns 1 if it did, 0 if not, or -errno.

    After an error the block stays where it was, its bytes in memory, and log.error says so until a write succeeds."""
    cdef uint32_t at
    cdef int name
    cdef int result
    pthread_mutex_lock(&log.lock)
    while _keep_without_areas(log):
        pass
    at = _to_write(log)
    if at == NO_BLOCK:
        if log.lists[LIST_QUEUE].count == 0:
            log.error = 0       # if a write had failed, what was to be written has been given back
            log.errors = 0
        pthread_mutex_unlock(&log.lock)
        return 0
    name = log.blocks[at].list
    block_list_take(log, at)
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
        block_list_add(log, name, at, True)
        block_free_if_unused(log, at)
        log_changed(log)
    pthread_mutex_unlock(&log.lock)
    return 1 if result == 0 else result
