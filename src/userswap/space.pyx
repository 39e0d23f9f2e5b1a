# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space: a radix tree of two levels, whose root is reserved address space.

The root (32 bytes for each leaf of 512 entries) is touched only where it is used. The memory of a leaf is taken when
its first entry is and given back when its last entry is freed, so an offset that is not in use costs nothing. It is
handed out from slabs of address space and stays the leaf's.
Offsets are handed out leaf by leaf, so that pages evicted together have neighbouring entries.

In the layout of 32 bits
  - most counts fit in three bits, and what is more is in the leaf's continuation: 512 numbers of 16 bits, made for
    the first count that needs one and freed with the last. (So Linux continues its swap_map, a page of counts at a
    time.) A fork counts whole runs of entries, so an array for a leaf is filled better than a table of offsets.
  - there is no room for a stamp. A leaf has the mean of those of its entries: exact where they were evicted together,
    as they mostly are. Where they were not, it is right on the average, but does not tell them apart.

All functions but space_init and space_word want Space.lock held; none fails except where said.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from userswap.arena cimport arena_drop, arena_give, arena_release, arena_reserve, arena_take
from userswap.system cimport (
    EIO,
    ENOMEM,
    load_u32,
    load_u64,
    pthread_mutex_destroy,
    pthread_mutex_init,
    store_u32,
    store_u64,
)
from userswap.types cimport (
    CACHED,
    COUNT_EVER,
    COUNT_MORE,
    COUNT_SHIFT,
    FREE,
    NARROW_BLOCKS,
    NARROW_EVER,
    NARROW_MORE,
    NARROW_SHIFT,
    OFFSET_BITS,
    PAGE_BYTES,
    PAYLOAD_SHIFT,
    STAMP_SHIFT,
    STORED,
    entry_count,
    entry_make,
    entry_payload,
    entry_state,
    stored_block,
    stored_index,
    stored_payload,
)

cdef enum:
    FILL_WORDS = 1 << 20
    SLAB_LEAVES = 512
    MORE_MAX = 0xFFFF
    MORE_BYTES = 2 * (LEAF_ENTRIES + 1)
    STAMP_FRACTION = 20


cdef int space_init(Space *space, int bits) noexcept nogil:
    """With entries of 64 bits, or of 32. Returns 0, or -ENOMEM. An engine has one space for its whole life."""
    memset(space, 0, sizeof(Space))
    pthread_mutex_init(&space.lock, NULL)
    _lay_out(space, bits == 32)
    space.leaf_limit = (1 << OFFSET_BITS) // LEAF_ENTRIES
    space.more_limit = space.leaf_limit
    space.leaves = <Leaf *>arena_reserve(space.leaf_limit * sizeof(Leaf))
    space.fill_words = <uint64_t *>arena_reserve(FILL_WORDS * sizeof(uint64_t))
    space.fill_limit = FILL_WORDS
    space.room = NO_LEAF
    if space.leaves == NULL or space.fill_words == NULL:
        return -12
    return 0


cdef void _lay_out(Space *space, bint narrow) noexcept nogil:
    space.narrow = narrow
    space.leaf_bytes = LEAF_ENTRIES * (sizeof(uint32_t) if narrow else sizeof(uint64_t))
    space.count_more = NARROW_MORE if narrow else COUNT_MORE
    space.count_ever = NARROW_EVER if narrow else COUNT_EVER
    space.payload_shift = NARROW_SHIFT if narrow else PAYLOAD_SHIFT
    space.data_bits = 24 if narrow else 45
    space.block_limit = NARROW_BLOCKS if narrow else 1 << 24


cdef void space_deinit(Space *space) noexcept nogil:
    cdef uint32_t at
    for at in range(space.leaf_end):
        if space.leaves[at].more != NULL:
            arena_give(space.leaves[at].more, MORE_BYTES)
        if at % SLAB_LEAVES == 0:
            arena_release(space.leaves[at].words, SLAB_LEAVES * space.leaf_bytes)
    arena_release(space.leaves, space.leaf_limit * sizeof(Leaf))
    arena_release(space.fill_words, FILL_WORDS * sizeof(uint64_t))
    free(space.fill_index)
    pthread_mutex_destroy(&space.lock)


# ---- words, as they are in their leaf

cdef uint64_t _load(Space *space, uint32_t offset) noexcept nogil:
    cdef void *words = space.leaves[offset // LEAF_ENTRIES].words
    if space.narrow:
        return load_u32(<uint32_t *>words + offset % LEAF_ENTRIES)
    return load_u64(<uint64_t *>words + offset % LEAF_ENTRIES)


cdef void _save(Space *space, uint32_t offset, uint64_t word) noexcept nogil:
    cdef void *words = space.leaves[offset // LEAF_ENTRIES].words
    if space.narrow:
        store_u32(<uint32_t *>words + offset % LEAF_ENTRIES, <uint32_t>word)
    else:
        store_u64(<uint64_t *>words + offset % LEAF_ENTRIES, word)


cdef uint32_t _count(Space *space, uint64_t word) noexcept nogil:
    return <uint32_t>(word >> COUNT_SHIFT) & space.count_ever


cdef uint64_t _counted(Space *space, uint64_t word, uint32_t count) noexcept nogil:
    """The word with this count."""
    return (word & ~(<uint64_t>space.count_ever << COUNT_SHIFT)) | (<uint64_t>count << COUNT_SHIFT)


cdef uint64_t _make(Space *space, Leaf *leaf, uint32_t state, uint32_t count, uint64_t payload) noexcept nogil:
    if space.narrow and state == STORED:
        _stamp_leaf(leaf, <uint32_t>(payload >> STAMP_SHIFT))
        payload &= (<uint64_t>1 << STAMP_SHIFT) - 1
    return <uint64_t>state | (<uint64_t>count << COUNT_SHIFT) | (payload << space.payload_shift)


cdef uint64_t _widened(const Leaf *leaf, uint32_t word) noexcept nogil:
    """A word of 32 bits as one of 64."""
    cdef uint32_t state = word & 3
    cdef uint32_t count = (word >> COUNT_SHIFT) & NARROW_EVER
    cdef uint64_t payload = word >> NARROW_SHIFT
    if state == STORED:
        payload |= <uint64_t>(leaf.stamp >> STAMP_FRACTION) << STAMP_SHIFT
    if count >= NARROW_MORE:
        count += COUNT_MORE - NARROW_MORE
    return entry_make(state, count, payload)


cdef void _stamp_leaf(Leaf *leaf, uint32_t stamp) noexcept nogil:
    """One of its entries was evicted now: this goes into the mean, with the weight of one entry in use. What a page
    that only moves brings along is that mean itself."""
    if leaf.stamps > 0 and leaf.stamp >> STAMP_FRACTION == stamp:
        return
    leaf.stamps = min(<uint16_t>(leaf.stamps + 1), leaf.used)
    leaf.stamp += ((stamp << STAMP_FRACTION) - leaf.stamp) // leaf.stamps


# ---- leaves

cdef void _list_add(Space *space, uint32_t at) noexcept nogil:
    cdef Leaf *leaf = &space.leaves[at]
    leaf.previous = NO_LEAF
    leaf.next = space.room
    if space.room != NO_LEAF:
        space.leaves[space.room].previous = at
    space.room = at


cdef void _list_remove(Space *space, uint32_t at) noexcept nogil:
    cdef Leaf *leaf = &space.leaves[at]
    if leaf.previous != NO_LEAF:
        space.leaves[leaf.previous].next = leaf.next
    else:
        space.room = leaf.next
    if leaf.next != NO_LEAF:
        space.leaves[leaf.next].previous = leaf.previous


cdef bint _leaf_begin(Space *space, uint32_t at) noexcept nogil:
    """Gives its place to a leaf that is used for the first time, after all before it. False without address space."""
    cdef Leaf *leaf = &space.leaves[at]
    if at % SLAB_LEAVES == 0:
        leaf.words = arena_reserve(SLAB_LEAVES * space.leaf_bytes)
    else:
        leaf.words = <uint8_t *>space.leaves[at - 1].words + space.leaf_bytes
    if leaf.words == NULL:
        return False
    space.leaf_end += 1
    _list_add(space, at)
    if at == 0:      # offset 0 means "no offset" in a page table
        _save(space, 0, _make(space, leaf, CACHED, space.count_ever, 0))
        leaf.used = 1
        space.leaf_count = 1
    return True


cdef uint32_t _leaf_with_room(Space *space) noexcept nogil:
    """NO_LEAF when the space is full or address space for a leaf cannot be had."""
    if space.room == NO_LEAF and (space.leaf_end == space.leaf_limit or not _leaf_begin(space, space.leaf_end)):
        return NO_LEAF
    return space.room


cdef void _leaf_drop(Space *space, uint32_t at) noexcept nogil:
    """Its last entry has been freed: all its words are 0. Leaves of half a page go in pairs."""
    space.leaf_count -= 1
    if not space.narrow:
        arena_drop(space.leaves[at].words, PAGE_BYTES)
    elif space.leaves[at ^ 1].used == 0:
        arena_drop(space.leaves[at & ~<uint32_t>1].words, PAGE_BYTES)


cdef uint32_t _free_offset(Space *space, uint32_t at) noexcept nogil:
    """One in a leaf that has room."""
    # Entries are mostly freed in runs and handed out in order, so the next free word is mostly at `used`.
    cdef uint32_t step = space.leaves[at].used
    while entry_state(_load(space, at * LEAF_ENTRIES + step % LEAF_ENTRIES)) != FREE:
        step += 1
    return at * LEAF_ENTRIES + step % LEAF_ENTRIES


# ---- entries

cdef uint32_t space_allocate(Space *space, uint64_t word) noexcept nogil:
    """A free offset, its entry set to `word`: not FREE, of a count below NARROW_MORE or COUNT_EVER. 0 when there is
    none."""
    cdef uint32_t at = _leaf_with_room(space)
    cdef uint32_t count = entry_count(word)
    cdef uint32_t offset
    cdef Leaf *leaf
    if at == NO_LEAF:
        return 0
    leaf = &space.leaves[at]
    offset = _free_offset(space, at)
    space.leaf_count += leaf.used == 0
    leaf.used += 1
    space.entries += 1
    if leaf.used == LEAF_ENTRIES:
        _list_remove(space, at)
    count = space.count_ever if count == COUNT_EVER else count
    _save(space, offset, _make(space, leaf, entry_state(word), count, entry_payload(word)))
    return offset


cdef uint64_t space_word(Space *space, uint32_t offset) noexcept nogil:
    """The entry, in the layout of 64 bits; the caller holds a count of it or the lock. Its count is what space_count
    says, or COUNT_MORE where that is more than is in the word."""
    cdef uint64_t word = _load(space, offset)
    return _widened(&space.leaves[offset // LEAF_ENTRIES], <uint32_t>word) if space.narrow else word


cdef void space_change(Space *space, uint32_t offset, uint32_t state, uint64_t payload) noexcept nogil:
    """Another state, or another payload. The count stays."""
    _save(space, offset, _make(space, &space.leaves[offset // LEAF_ENTRIES], state,
                               _count(space, _load(space, offset)), payload))


cdef void space_stamp(Space *space, uint32_t offset, uint32_t stamp) noexcept nogil:
    """The page was evicted anew, its copy being true still: where it is STORED, it was so now."""
    cdef uint64_t word = space_word(space, offset)
    if entry_state(word) == STORED:
        space_change(space, offset, STORED, stored_payload(stored_block(word), stored_index(word), stamp))


cdef void space_free(Space *space, uint32_t offset) noexcept nogil:
    cdef uint32_t at = offset // LEAF_ENTRIES
    cdef Leaf *leaf = &space.leaves[at]
    if _more(space, offset) > 0:
        _more_set(space, offset, 0)
    _save(space, offset, 0)
    if leaf.used == LEAF_ENTRIES:
        _list_add(space, at)
    leaf.used -= 1
    leaf.stamps = min(leaf.stamps, leaf.used)
    space.entries -= 1
    if leaf.used == 0:
        _leaf_drop(space, at)


# ---- counts

cdef uint32_t _more(Space *space, uint32_t offset) noexcept nogil:
    """What the count is more than is in the word."""
    cdef Leaf *leaf = &space.leaves[offset // LEAF_ENTRIES]
    return 0 if leaf.more == NULL else leaf.more[offset % LEAF_ENTRIES]


cdef bint _more_begin(Space *space, Leaf *leaf) noexcept nogil:
    if space.more_count < space.more_limit:
        leaf.more = <uint16_t *>arena_take(MORE_BYTES)
    space.more_count += leaf.more != NULL
    return leaf.more != NULL


cdef bint _more_set(Space *space, uint32_t offset, uint32_t more) noexcept nogil:
    """False, and nothing done, when it is too much or memory for the continuation cannot be had."""
    cdef Leaf *leaf = &space.leaves[offset // LEAF_ENTRIES]
    if more > MORE_MAX or (leaf.more == NULL and not _more_begin(space, leaf)):
        return False
    leaf.more[LEAF_ENTRIES] += (more > 0) - (leaf.more[offset % LEAF_ENTRIES] > 0)
    leaf.more[offset % LEAF_ENTRIES] = <uint16_t>more
    if leaf.more[LEAF_ENTRIES] == 0:
        arena_give(leaf.more, MORE_BYTES)
        leaf.more = NULL
        space.more_count -= 1
    return True


cdef void _keep_for_ever(Space *space, uint32_t offset) noexcept nogil:
    if _more(space, offset) > 0:
        _more_set(space, offset, 0)
    _save(space, offset, _counted(space, _load(space, offset), space.count_ever))


cdef uint32_t space_count(Space *space, uint32_t offset) noexcept nogil:
    """How many page tables and fills name the offset, or FOR_EVER."""
    cdef uint32_t count = _count(space, _load(space, offset))
    return FOR_EVER() if count == space.count_ever else count + _more(space, offset)


cdef void space_get(Space *space, uint32_t offset) noexcept nogil:
    """One more page table (or fill) names the offset."""
    cdef uint64_t word = _load(space, offset)
    cdef uint32_t count = _count(space, word)
    if count < space.count_more:
        _save(space, offset, _counted(space, word, count + 1))
    elif count == space.count_more and not _more_set(space, offset, _more(space, offset) + 1):
        _keep_for_ever(space, offset)


cdef uint64_t space_put(Space *space, uint32_t offset) noexcept nogil:
    """One less. Returns the entry as it was if this freed it, so that its block can be told; else 0.

    A CACHED entry at count 0 stays for its evictor to free."""
    cdef uint64_t word = _load(space, offset)
    cdef uint32_t count = _count(space, word)
    if count == space.count_ever:
        return 0
    if count == space.count_more and _more(space, offset) > 0:
        _more_set(space, offset, _more(space, offset) - 1)
        return 0
    if count > 1 or entry_state(word) == CACHED:
        _save(space, offset, _counted(space, word, count - 1))
        return 0
    word = space_word(space, offset)
    space_free(space, offset)
    return word


# ---- a space that another engine has left

cdef int space_adopt(Space *space, Space *old, uint32_t offset) noexcept nogil:
    """One page table more names an offset of `old`: its entry comes from there with the first one, and its count is as
    many as do. Returns 1 with the first, 0 with others, -EIO when there is no such entry, -ENOMEM."""
    cdef uint32_t at = offset // LEAF_ENTRIES
    cdef uint64_t word
    cdef Leaf *leaf
    if at >= old.leaf_end or entry_state(space_word(old, offset)) == FREE:
        return -EIO
    if entry_state(_load(space, offset)) != FREE:
        space_get(space, offset)
        return 0
    leaf = &space.leaves[at]
    if leaf.used == 0:
        leaf.stamp = old.leaves[at].stamp
    word = space_word(old, offset)
    space.leaf_count += leaf.used == 0
    leaf.used += 1
    leaf.stamps = leaf.used
    space.entries += 1
    if leaf.used == LEAF_ENTRIES:
        _list_remove(space, at)
    _save(space, offset, _make(space, leaf, entry_state(word), 1, entry_payload(word)))
    return 1


cdef int space_adopt_begin(Space *space, const Space *old) noexcept nogil:
    """Before entries are adopted: all leaves that there were, since blocks know offsets of pages that are no more,
    and the table of repeated words. Returns 0, -EIO or -ENOMEM."""
    cdef uint32_t place
    if old.fill_count > space.fill_limit or old.leaf_end > space.leaf_limit:
        return -EIO
    while space.leaf_end < old.leaf_end:
        if not _leaf_begin(space, space.leaf_end):
            return -ENOMEM
    while 2 * old.fill_count >= space.fill_slots and old.fill_count > 0:
        if not _fill_grow(space):
            return -ENOMEM
    for place in range(old.fill_count):
        space.fill_words[place] = old.fill_words[place]
        space.fill_count = place + 1
        space.fill_index[_fill_slot(space, space.fill_words[place])] = place + 1
    return 0


# ---- repeated words

cdef uint64_t space_fill_code(Space *space, uint64_t value) noexcept nogil:
    """The payload that stands for a page of `value`, or NO_FILL_CODE when the table has no place for it (store
    the page then). The words that no short form codes are in a table, from which none is removed: 16 bytes each."""
    cdef uint32_t spare = 64 - space.data_bits
    cdef uint64_t low = (<uint64_t>1 << space.data_bits) - 1
    cdef uint32_t at
    if value <= low:
        return FILL_LOW | (value << 3)
    if value << space.data_bits == 0:
        return FILL_HIGH | ((value >> spare) << 3)
    if ~value <= low >> 1:
        return FILL_SIGNED | ((value & low) << 3)
    if (value >> 32) == <uint32_t>value and <uint32_t>value <= low:
        return FILL_TWICE | (<uint64_t><uint32_t>value << 3)
    at = _fill_slot(space, value)
    if at < space.fill_slots and space.fill_index[at] != 0:
        return FILL_TABLE | (<uint64_t>(space.fill_index[at] - 1) << 3)
    if space.fill_count == space.fill_limit or (2 * space.fill_count >= space.fill_slots and not _fill_grow(space)):
        return NO_FILL_CODE()
    space.fill_words[space.fill_count] = value
    space.fill_count += 1
    space.fill_index[_fill_slot(space, value)] = space.fill_count
    return FILL_TABLE | (<uint64_t>(space.fill_count - 1) << 3)


cdef uint32_t _fill_slot(Space *space, uint64_t value) noexcept nogil:
    """Where the hash table has the word, or would have it."""
    cdef uint32_t at
    if space.fill_slots == 0:
        return 0
    at = <uint32_t>((value * <uint64_t>0x9E3779B97F4A7C15) >> 32) % space.fill_slots
    while space.fill_index[at] != 0 and space.fill_words[space.fill_index[at] - 1] != value:
        at = (at + 1) % space.fill_slots
    return at


cdef bint _fill_grow(Space *space) noexcept nogil:
    """Doubles the hash table; False without memory."""
    cdef uint32_t slots = max(2 * space.fill_slots, <uint32_t>1024)
    cdef uint32_t *index = <uint32_t *>calloc(slots, sizeof(uint32_t))
    cdef uint32_t place
    if index == NULL:
        return False
    free(space.fill_index)
    space.fill_index = index
    space.fill_slots = slots
    for place in range(space.fill_count):
        space.fill_index[_fill_slot(space, space.fill_words[place])] = place + 1
    return True


cdef uint64_t space_fill_value(Space *space, uint64_t payload) noexcept nogil:
    cdef uint64_t form = payload & 7
    cdef uint64_t data = payload >> 3
    cdef uint32_t spare = 64 - space.data_bits
    if form == FILL_LOW:
        return data
    if form == FILL_HIGH:
        return data << spare
    if form == FILL_SIGNED:
        return <uint64_t>(<int64_t>(data << spare) >> spare)
    if form == FILL_TWICE:
        return data | (data << 32)
    return space.fill_words[data]
