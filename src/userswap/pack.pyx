# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing and cleaning: both move the live pages of one block into an open one.

The evictor packs pages as they are, which is fast, and they can be written so. While it does, the packer takes full
blocks of plain pages that wait, oldest first, and packs their pages small (codec.pyx) into a block that may stay in
memory. What it does not get to is written as it is, so nobody waits for it; what would not become smaller as well.

Cleaning empties a block of an area of which much is dead, so that its slot can be written anew. Which one: that with
the best ratio of benefit to cost, free space times age to what must be read and written, (1 - u) * age / (1 + u), u
being the live share (Rosenblum and Ousterhout, The Design and Implementation of a Log-Structured File System, 1992).
What is cleaned is cold, and goes to a block of its own: mixed with what was evicted just now it would soon have to be
cleaned again.

Who can run at the same moment, and what they see. A block is pinned while its pages move, so its bytes stay. Its pages
may be given back meanwhile, and their offsets be given to other pages: a page is moved only if its entry still names
its old place, looked at under Space.lock, under which it also gets the new one. Whoever read the entry before that has
pinned the old block, and reads the old copy.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from userswap.codec cimport (
    CODEC_ZSTD,
    codec_pack,
    codec_unpack,
    packer_deinit,
    packer_init,
    unpacker_deinit,
    unpacker_init,
)
from userswap.log cimport (
    BLOCK_FULL,
    BLOCK_SPENT,
    BLOCK_STORED,
    BLOCK_WRITING,
    LIST_QUEUE,
    NO_BLOCK,
    OPEN_COLD,
    OPEN_PACKED,
    Block,
    Place,
    log_changed,
    log_commit,
    log_freed,
    log_list_add,
    log_list_take,
    log_place,
    log_read_whole,
    log_reserve,
    log_unpin_locked,
)
from userswap.space cimport LEAF_ENTRIES, space_word
from userswap.system cimport (
    EAGAIN,
    EIO,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_release,
    sys_reserve,
)
from userswap.types cimport (
    BLOCK_BYTES,
    PAGE_BYTES,
    STORED,
    entry_state,
    stored_block,
    stored_index,
    stored_stamp,
)

cdef enum:
    SAMPLES = 8             # pages of a block that tell whether it is worth packing
    WORTH = 7               # eighths that they must become smaller than
    LEAST_DEAD = 16         # one page of so many
    NOBODY = 1 << 30


cdef int _mover_init(Mover *mover) noexcept nogil:
    unpacker_init(&mover.unpacker)
    return packer_init(&mover.packer)


cdef void _mover_deinit(Mover *mover) noexcept nogil:
    packer_deinit(&mover.packer)
    unpacker_deinit(&mover.unpacker)


cdef int pack_init(Pack *pack) noexcept nogil:
    """Returns 0 or -ENOMEM (as -12); pack_deinit cleans up in both cases."""
    cdef int result
    memset(pack, 0, sizeof(Pack))
    pthread_mutex_init(&pack.clean_lock, NULL)
    pack.scratch = <uint8_t *>sys_reserve(BLOCK_BYTES)
    result = -12 if pack.scratch == NULL else _mover_init(&pack.packing)
    return result if result != 0 else _mover_init(&pack.cleaning)


cdef void pack_deinit(Pack *pack) noexcept nogil:
    _mover_deinit(&pack.packing)
    _mover_deinit(&pack.cleaning)
    if pack.scratch != NULL:
        sys_release(pack.scratch, BLOCK_BYTES)
    pthread_mutex_destroy(&pack.clean_lock)


# ---- one page

cdef bint _still_there(Log *log, uint32_t offset, uint32_t block, uint32_t index) noexcept nogil:
    """Whether the entry names this place. Space.lock is held."""
    cdef uint64_t word
    if log.space.leaves[offset // LEAF_ENTRIES].words == NULL:
        return False
    word = space_word(log.space, offset)
    return entry_state(word) == STORED and stored_block(word) == block and stored_index(word) == index


cdef bint _is_dead(Log *log, uint32_t offset, uint32_t block, uint32_t index) noexcept nogil:
    cdef bint dead
    pthread_mutex_lock(&log.space.lock)
    dead = not _still_there(log, offset, block, index)
    pthread_mutex_unlock(&log.space.lock)
    return dead


cdef int _pack_bytes(Mover *mover, const uint8_t *data, Place *place, bint cold, uint8_t *into) noexcept nogil:
    """Packs what lies at `place`, which becomes what it is now; what is packed already only anew when it is cold and is
    not by the better codec. Returns 0, or -EIO when the bytes are damaged."""
    cdef const uint8_t *page = data + place.start
    if place.length < PAGE_BYTES:
        if not cold or place.codec & CODEC_ZSTD:
            memcpy(into, page, place.length)
            return 0
        if not codec_unpack(&mover.unpacker, place.codec, page, place.length, mover.page):
            return -EIO
        page = mover.page
    place.length = codec_pack(&mover.packer, page, into, cold, &place.codec)
    return 0


cdef int _move_page(Log *log, Mover *mover, uint32_t block, uint32_t index, const uint8_t *data, int which,
                    bint cold) noexcept nogil:
    """Moves a page of a pinned block into an open one. Returns its length there, 0 if it was dead, or -errno."""
    cdef uint32_t offset = log.blocks[block].owners[index]
    cdef uint8_t *at
    cdef uint64_t word
    cdef Place place
    cdef int result
    if _is_dead(log, offset, block, index):
        return 0
    result = log_reserve(log, which, &at)
    log_place(log, block, index, &place)
    if result == 0:
        result = _pack_bytes(mover, data, &place, cold, at)
    if result != 0:
        return result
    pthread_mutex_lock(&log.space.lock)
    if _still_there(log, offset, block, index):
        word = space_word(log.space, offset)
        log_commit(log, which, offset, place.length, place.codec, stored_stamp(word))
        log_freed(log, word)
        result = <int>place.length
    pthread_mutex_unlock(&log.space.lock)
    return result


# ---- packing

cdef uint32_t _pack_begin(Log *log) noexcept nogil:
    """Takes and pins the oldest plain block that waits, or gives NO_BLOCK."""
    cdef uint32_t at
    pthread_mutex_lock(&log.lock)
    at = log.lists[LIST_QUEUE].first
    while at != NO_BLOCK and log.blocks[at].settled:
        at = log.blocks[at].next
    if at != NO_BLOCK:
        log_list_take(log, at)
        log.blocks[at].state = BLOCK_SPENT
        log.blocks[at].pins += 1
    pthread_mutex_unlock(&log.lock)
    return at


cdef void _pack_end(Log *log, uint32_t at, bint settled) noexcept nogil:
    """Of a block of which pages are left: to be written as it is, if `settled`."""
    pthread_mutex_lock(&log.lock)
    if log.blocks[at].live > 0:
        log.blocks[at].state = BLOCK_FULL
        log.blocks[at].settled = settled
        log_list_add(log, LIST_QUEUE, at, True)
    log_unpin_locked(log, at)
    log_changed(log)
    pthread_mutex_unlock(&log.lock)


cdef bint _is_worth_it(Log *log, Mover *mover, Block *block) noexcept nogil:
    cdef uint32_t sample, at
    cdef uint32_t bytes = 0
    cdef uint8_t codec
    for sample in range(SAMPLES):
        at = sample * (block.used - 1) // (SAMPLES - 1)
        mover.packer.left = 0
        bytes += codec_pack(&mover.packer, block.data + <uint64_t>at * PAGE_BYTES, mover.page, False, &codec)
    mover.packer.left = 0
    return bytes * 8 < SAMPLES * WORTH * PAGE_BYTES


cdef int pack_next(Log *log, Pack *pack) noexcept nogil:
    """Packs the oldest plain block that waits. Returns 1, 0 if there was none, or -errno.

    It ends early when the evictor waits for a buffer: what is left of the block is written as it is."""
    cdef uint32_t at = _pack_begin(log) if not log.plain_waits else <uint32_t>NO_BLOCK
    cdef uint32_t index
    cdef Block *block
    cdef bint worth
    cdef int result = 0
    if at == NO_BLOCK:
        return 0
    block = &log.blocks[at]
    worth = _is_worth_it(log, &pack.packing, block)
    for index in range(block.used if worth else 0):
        if log.plain_waits:
            break
        result = _move_page(log, &pack.packing, at, index, block.data, OPEN_PACKED, False)
        if result < 0:
            break
        pack.pages += result > 0
        pack.bytes += result
    _pack_end(log, at, not worth or result >= 0)
    return result if result < 0 else 1


# ---- cleaning

cdef double _gain(Log *log, Block *block) noexcept nogil:
    """Benefit by cost. A block that is almost full is only cleaned where there is no other, however old it is."""
    cdef double live = <double>block.live / block.used
    cdef double gain = (1 - live) * (log.clock - block.born + 1) / (1 + live)
    return gain if (block.used - block.live) * LEAST_DEAD >= block.used else gain / 1e9


cdef uint32_t _choose(Log *log, bint *busy) noexcept nogil:
    """Pins and returns the stored block that it is best to clean, or NO_BLOCK. *busy: one with fewer live pages is just
    being read or written."""
    cdef uint32_t at
    cdef uint32_t best = NO_BLOCK
    cdef uint32_t fewest = NOBODY
    cdef double gain
    cdef double best_gain = 0
    cdef Block *block
    pthread_mutex_lock(&log.lock)
    for at in range(log.block_end):
        block = &log.blocks[at]
        if block.state == BLOCK_STORED and block.pins == 0:
            gain = _gain(log, block)
            if gain > best_gain:
                best = at
                best_gain = gain
        elif block.state == BLOCK_STORED or block.state == BLOCK_WRITING:
            fewest = min(fewest, block.live)
    busy[0] = fewest != NOBODY and best == NO_BLOCK
    if best != NO_BLOCK:
        log.blocks[best].pins += 1
        busy[0] = fewest < log.blocks[best].live
    pthread_mutex_unlock(&log.lock)
    return best


cdef int _clean_block(Log *log, Pack *pack, uint32_t at, bint cold) noexcept nogil:
    cdef Block *block = &log.blocks[at]
    cdef uint8_t *data = block.data      # stays: the block is pinned
    cdef uint32_t index
    cdef int result = 0
    if data == NULL:
        data = pack.scratch
        result = log_read_whole(log, at, data)
    for index in range(block.used):
        if result < 0:
            break
        result = _move_page(log, &pack.cleaning, at, index, data, OPEN_COLD, cold)
        pack.cleaned += result > 0
        pack.cleaned_bytes += result if result > 0 else 0
        pthread_mutex_lock(&log.lock)
        if log.open[OPEN_COLD] != NO_BLOCK:
            log.blocks[log.open[OPEN_COLD]].born = max(log.blocks[log.open[OPEN_COLD]].born, block.born)
        pthread_mutex_unlock(&log.lock)
    return result if result < 0 else 0


cdef int pack_clean(Log *log, Pack *pack, bint leisurely) noexcept nogil:
    """Empties one stored block, by packing its live pages again, as small as can be if there is time.

    Returns the number of pages that were dead in it (what is gained; 0 means that cleaning cannot help), or -errno,
    -EAGAIN where a better block was just in use. Call without any lock."""
    cdef bint busy
    cdef uint32_t at, dead
    cdef int result
    pthread_mutex_lock(&pack.clean_lock)
    at = _choose(log, &busy)
    if at == NO_BLOCK:
        pthread_mutex_unlock(&pack.clean_lock)
        return -EAGAIN if busy else 0
    dead = log.blocks[at].used - log.blocks[at].live
    result = _clean_block(log, pack, at, leisurely)
    pthread_mutex_lock(&log.lock)
    log_unpin_locked(log, at)
    pthread_mutex_unlock(&log.lock)
    pthread_mutex_unlock(&pack.clean_lock)
    return result if result < 0 else <int>dead
