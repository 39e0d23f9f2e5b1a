# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing, compaction and cleaning: all move the live pages of one block into an open one.

The evictor packs pages as they are, which is fast, and they can be written so. While it does, the packer takes full
blocks of plain pages that wait, oldest first, and packs their pages small (codec.pyx) into a block that may stay in
memory. What it does not get to is written as it is, so nobody waits for it; what would not become smaller as well.

Cleaning empties a block of an area of which much is dead, so that its slot can be written anew. Which one: that for
which waiting would lower the cost least. With a share u alive, u / (1 - u) pages are written for each that is gained;
that falls by r * u / (1 - u)^2 in a unit of time if a share r of the pages dies in it (Lomet and Luo, Efficiently
Reclaiming Space in a Log Structured Store, 2021: minimum declining cost). So of blocks whose pages die at one rate the
emptiest is taken, which is best, and one whose pages die slowly before a young one that will soon be emptier. What a
block's own rate is can be told from its dead pages but badly, as they are few; it is drawn towards that of all blocks
of its kind, as if a fiftieth of its pages had died at that. Taking the block's age in place of a rate (Rosenblum and
Ousterhout, The Design and Implementation of a Log-Structured File System, 1992), or its root, writes more
(bench/RESULTS.md).
Compaction does the same for the memory tier, where a page that came in is dead: instead of being written, a thin block
gives what is live in it to the open one.

What is cleaned goes to blocks of its own: mixed with what was evicted just now it would soon have to be cleaned again.
What was taken for hot as it was evicted is still so as long as it is young; what is older, or never was, is cold, and
apart from the others for the same reason. (Where there are too few buffers to tell hot from cold at eviction, what has
outlived one block is apart from what has outlived two.) Cleaning is done when the evictor needs a slot, and ahead of
that when nothing else is to be packed, slots become few and a budget allows it: what is cleaned ahead is packed as
small as can be, but some of it would have died by itself. It is done as well when the log is sparse: in a large area
blocks with a few live pages each would else become more and more, and so would what the engine has to know of them.

Who can run at the same moment, and what they see. A block is pinned while its pages move, so its bytes stay. Its pages
may be given back meanwhile, and their offsets be given to other pages: a page is moved only if its entry still names
its old place, looked at under Space.lock, under which it also gets the new one. Whoever read the entry before that has
pinned the old block, and reads the old copy.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from userswap.blocks cimport block_list_add, block_list_take, log_changed
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
    LIST_TIER,
    NO_BLOCK,
    OPEN_COLD,
    OPEN_WARM,
    OPENS,
    Block,
    Place,
    log_can_pack,
    log_commit,
    log_free_slots,
    log_freed,
    log_is_young,
    log_open_packed,
    log_place,
    log_reserve,
    log_unpin_locked,
)
from userswap.space cimport space_word
from userswap.sums cimport sums_hold, sums_read, sums_seal
from userswap.system cimport (
    EBADMSG,
    EAGAIN,
    EIO,
    ENOSPC,
    load_i64,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    sys_crash_point,
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
    whole_pages,
)

cdef enum:
    SAMPLES = 8             # pages of a block that tell whether it is worth packing
    WORTH = 7               # eighths that they must become smaller than
    THIN = 4                # one page of so many is dead in a thin block
    LEAST_DEAD = 32         # one page of so many: of plain ones those that make cleaning worth it (CLEAN_GAIN)
    AHEAD_DEAD = 4          # ... where there is time to wait for more
    AHEAD_FREE = 8          # one slot of so many is free: fewer are few
    SPARSE = 3              # pages, live and dead, for each live one: more is sparse
    SPARSE_LEAST = 64 << 9  # ... from so many on: 64 plain blocks
    BUDGET = 4              # of so many bytes that are written one may be for cleaning ahead
    PRIOR = 50              # one page of so many counts for the rate of the kind
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
    cdef uint64_t word = space_word(log.space, offset)
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
    """Moves a page of a pinned block into an open one. Returns its length there, 0 if it was dead, -EBADMSG if it was
    not read as it was written, or another -errno."""
    cdef uint32_t offset = log.blocks[block].owners[index]
    cdef uint8_t *at
    cdef uint64_t word
    cdef Place place
    cdef int result
    if _is_dead(log, offset, block, index):
        return 0
    result = log_reserve(log, which, &at)
    log_place(log, block, index, &place)
    if (result == 0 and (data != log.blocks[block].data or log.blocks[block].doubtful)
            and not sums_hold(log, block, index, data + place.start, place.length)):
        result = -EBADMSG
    if result == 0:
        result = _pack_bytes(mover, data, &place, cold, at)
    if result != 0:
        return result
    sums_seal(log, which, at, place.length)
    pthread_mutex_lock(&log.space.lock)
    if _still_there(log, offset, block, index):
        word = space_word(log.space, offset)
        log_commit(log, which, offset, place.length, place.codec, stored_stamp(word))
        sys_crash_point(b"pack-moved")
        log_freed(log, word)
        result = <int>place.length
    pthread_mutex_unlock(&log.space.lock)
    return result


cdef bint _stays_hot(Log *log, Block *block) noexcept nogil:
    """Whether what is left of a block should still die soon."""
    return block.hot and log_is_young(log, block)


# ---- one full block in memory

cdef void _spend(Log *log, uint32_t at) noexcept nogil:
    """Takes and pins a block, to pack its pages into another. Log.lock is held."""
    block_list_take(log, at)
    log.blocks[at].state = BLOCK_SPENT
    log.blocks[at].pins += 1


cdef void _spent(Log *log, uint32_t at, int name, bint settled) noexcept nogil:
    """Lets go of it: back to the list, as the oldest, if pages are left; to be written as it is, if `settled`."""
    pthread_mutex_lock(&log.lock)
    if log.blocks[at].live > 0:
        log.blocks[at].state = BLOCK_FULL
        log.blocks[at].settled = settled
        block_list_add(log, name, at, True)
    log_unpin_locked(log, at)
    log_changed(log)
    pthread_mutex_unlock(&log.lock)


# ---- packing

cdef uint32_t _pack_begin(Log *log) noexcept nogil:
    """Takes and pins the oldest plain block that waits, or gives NO_BLOCK. Where what is packed has no place to go, it
    stays as it is."""
    cdef uint32_t at
    pthread_mutex_lock(&log.lock)
    at = log.lists[LIST_QUEUE].first
    while at != NO_BLOCK and log.blocks[at].settled:
        at = log.blocks[at].next
    if at != NO_BLOCK and not log_can_pack(log):
        log.blocks[at].settled = True
        log_changed(log)
        at = NO_BLOCK
    if at != NO_BLOCK:
        _spend(log, at)
    pthread_mutex_unlock(&log.lock)
    return at


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
    """Packs the oldest plain block that waits, a hot one apart from others. Returns 1, 0 if there was none, or -errno.

    It ends early when the evictor waits for a buffer: what is left of the block is written as it is."""
    cdef uint32_t at = _pack_begin(log) if not log.plain_waits else <uint32_t>NO_BLOCK
    cdef uint32_t index
    cdef Block *block
    cdef bint worth
    cdef int which
    cdef int result = 0
    if at == NO_BLOCK:
        return 0
    block = &log.blocks[at]
    worth = _is_worth_it(log, &pack.packing, block)
    which = log_open_packed(log, block.hot)
    for index in range(block.used if worth else 0):
        if log.plain_waits:
            break
        result = _move_page(log, &pack.packing, at, index, block.data, which, False)
        if result < 0:
            break
        pack.pages += result > 0
        pack.bytes += result
    # Where there is no room for what is packed, it stays as it is.
    _spent(log, at, LIST_QUEUE, not worth or result >= 0 or result == -ENOSPC)
    return result if result < 0 else 1


# ---- compaction of the memory tier

cdef uint32_t _compact_begin(Log *log) noexcept nogil:
    """Takes and pins the block of the tier of which most is dead, if that is enough, or gives NO_BLOCK. Log.lock is
    held."""
    cdef uint32_t at = log.lists[LIST_TIER].first
    cdef uint32_t best = NO_BLOCK
    cdef double least = 1 - 1.0 / THIN
    cdef Block *block
    while at != NO_BLOCK:
        block = &log.blocks[at]
        if block.pins == 0 and <double>block.live / block.used < least:
            best = at
            least = <double>block.live / block.used
        at = block.next
    if best != NO_BLOCK:
        _spend(log, best)
    return best


cdef int pack_compact(Log *log, Pack *pack) noexcept nogil:
    """Moves what is live in a thin block of the full tier to the open one: cheaper than to write it. Returns 1, 0 if
    there was none, or -errno."""
    cdef uint32_t at = NO_BLOCK
    cdef uint32_t index
    cdef int which
    cdef int result = 0
    pthread_mutex_lock(&log.lock)
    if log.lists[LIST_TIER].count >= log.tier_most and log_can_pack(log):
        at = _compact_begin(log)
    pthread_mutex_unlock(&log.lock)
    if at == NO_BLOCK:
        return 0
    which = log_open_packed(log, _stays_hot(log, &log.blocks[at]))
    for index in range(log.blocks[at].used):
        result = _move_page(log, &pack.packing, at, index, log.blocks[at].data, which, False)
        if result < 0:
            break
    _spent(log, at, LIST_TIER, log.blocks[at].settled)
    return result if result < 0 else 1


# ---- cleaning

cdef void _count_deaths(Log *log, Block *block, Deaths *deaths) noexcept nogil:
    deaths.dead += block.used - block.live
    deaths.lived += <double>(log.clock - block.closed) * (block.used + block.live) / 2


cdef void _rates(const Deaths *deaths, double *rates) noexcept nogil:
    """What share of its pages dies while the evictor fills a block, for each kind: as counted, with one page more that
    died at the rate of all, so that a kind of which little is known is taken for one like the others."""
    cdef double dead = 1
    cdef double lived = 1
    cdef int kind
    for kind in range(OPENS):
        dead += deaths[kind].dead
        lived += deaths[kind].lived
    for kind in range(OPENS):
        rates[kind] = (deaths[kind].dead + 1) / (deaths[kind].lived + lived / dead)


cdef double _gain(Log *log, Block *block, double rate, bint ahead) noexcept nogil:
    """1 by how much the cost of cleaning it falls in a unit of time. A block that is almost full is only cleaned where
    there is no other, the emptiest of these however young it is, and not ahead of need."""
    cdef double live = <double>block.live / block.used
    cdef double prior = 1.0 / PRIOR
    cdef double lived = (log.clock - block.closed) * (1 + live) / 2
    if (block.used - block.live) * <uint32_t>(AHEAD_DEAD if ahead else LEAST_DEAD) < block.used:
        return 0 if ahead else (1 - live) / 1e9
    rate = (prior + 1 - live) / (prior / rate + lived)
    return (1 - live) * (1 - live) / (live * rate)


cdef uint32_t _choose(Log *log, Pack *pack, bint ahead, bint *busy) noexcept nogil:
    """Pins and returns the stored block that it is best to clean, or NO_BLOCK. *busy: one with fewer live pages is just
    being read or written. The rates are those of the last look, and are counted anew."""
    cdef uint32_t at
    cdef uint32_t best = NO_BLOCK
    cdef uint32_t fewest = NOBODY
    cdef double gain
    cdef double best_gain = 0
    cdef double rates[6]        # OPENS
    cdef Block *block
    _rates(pack.deaths, rates)
    memset(pack.deaths, 0, sizeof(pack.deaths))
    pthread_mutex_lock(&log.lock)
    for at in range(log.block_end):
        block = &log.blocks[at]
        if block.state == BLOCK_STORED:
            _count_deaths(log, block, &pack.deaths[block.kind])
        if block.state == BLOCK_STORED and block.pins == 0:
            gain = _gain(log, block, rates[block.kind], ahead)
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


cdef bint _stays_warm(Log *log, Block *block) noexcept nogil:
    return _stays_hot(log, block) if log.apart else not block.cleaned


cdef int _clean_block(Log *log, Pack *pack, uint32_t at, bint ahead) noexcept nogil:
    """Moves all live pages of a pinned block; ahead of need until somebody needs a slot, which has its own block to
    clean."""
    cdef Block *block = &log.blocks[at]
    cdef uint8_t *data = block.data      # stays: the block is pinned
    cdef int which = OPEN_WARM if _stays_warm(log, block) else OPEN_COLD
    cdef uint32_t index
    cdef bint right         # if it is not, its pages tell
    cdef int result = 0
    if data == NULL:
        data = pack.scratch
        result = sums_read(log, at, whole_pages(block.bytes), data, &right)
    for index in range(block.used):
        if result < 0 or (ahead and pack.needed):
            break
        result = _move_page(log, &pack.cleaning, at, index, data, which, ahead)
        pack.cleaned += result > 0
        pack.cleaned_bytes += result if result > 0 else 0
        pthread_mutex_lock(&log.lock)
        if log.open[which] != NO_BLOCK:
            log.blocks[log.open[which]].born = max(log.blocks[log.open[which]].born, block.born)
        pthread_mutex_unlock(&log.lock)
    return result if result < 0 else 0


cdef int _clean(Log *log, Pack *pack, bint ahead) noexcept nogil:
    """As pack_clean, with clean_lock held."""
    cdef bint busy
    cdef uint32_t dead
    cdef uint32_t at = _choose(log, pack, ahead, &busy)
    cdef int result
    if at == NO_BLOCK:
        return -EAGAIN if busy else 0
    dead = log.blocks[at].used - log.blocks[at].live
    result = _clean_block(log, pack, at, ahead)
    pthread_mutex_lock(&log.lock)
    log_unpin_locked(log, at)
    pthread_mutex_unlock(&log.lock)
    return result if result < 0 else <int>dead


cdef int pack_clean(Log *log, Pack *pack) noexcept nogil:
    """Empties one stored block, as a slot is needed, by packing its live pages again.

    Returns the number of pages that were dead in it (what is gained; 0 means that cleaning cannot help), or -errno,
    -EAGAIN where a better block was just in use. Call without any lock, by one thread."""
    cdef int result
    pack.needed = True
    pthread_mutex_lock(&pack.clean_lock)
    pack.needed = False
    result = _clean(log, pack, False)
    pthread_mutex_unlock(&pack.clean_lock)
    return result


cdef int pack_empty(Log *log, Pack *pack, uint32_t at) noexcept nogil:
    """Moves the live pages of a block that the caller has pinned. Returns 0 or -errno. Call without any lock."""
    cdef int result
    pthread_mutex_lock(&pack.clean_lock)
    result = _clean_block(log, pack, at, False)
    pthread_mutex_unlock(&pack.clean_lock)
    return result


# ---- cleaning ahead of need

cdef bint _is_due(Log *log, Pack *pack) noexcept nogil:
    """Whether slots are few or the log is sparse, and the budget allows to clean a block: it grows with all that is
    written, so that it is spent as fast as pages die."""
    cdef int64_t written = 0
    cdef int at
    cdef bint sparse = log.used > SPARSE * log.stored + SPARSE_LEAST
    for at in range(log.area_count):
        written += load_i64(&log.areas[at].bytes_written)
    return (sparse or log_free_slots(log) * AHEAD_FREE < log.slots) and pack.ahead_bytes * BUDGET <= written


cdef int pack_clean_ahead(Log *log, Pack *pack) noexcept nogil:
    """Empties one stored block of which much is dead, if it is time for that. Returns how many pages were; 0: nothing
    can be done before the log changes. Who needs a block that cannot be read tells of the error."""
    cdef int64_t before
    cdef int result
    if not _is_due(log, pack) or pthread_mutex_trylock(&pack.clean_lock) != 0:
        return 0
    before = pack.cleaned_bytes
    result = _clean(log, pack, True)
    pack.ahead_bytes += pack.cleaned_bytes - before
    pthread_mutex_unlock(&pack.clean_lock)
    pack.ahead += result > 0
    return max(result, 0)
