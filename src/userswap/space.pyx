# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space: a radix tree of two levels, whose root is reserved address space.

The root (24 bytes for each leaf of 512 entries) is touched only where it is used, a leaf is made on demand
and freed when its last entry is, so an offset that is not in use costs nothing. Offsets are handed out leaf
by leaf, so that pages evicted together have neighbouring entries.

All functions but space_init and space_word want Space.lock held; none fails except where said.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from userswap.system cimport (
    load_u64,
    pthread_mutex_destroy,
    pthread_mutex_init,
    store_u64,
    sys_release,
    sys_reserve,
)
from userswap.types cimport (
    CACHED,
    COUNT_MAX,
    FREE,
    OFFSET_BITS,
    PAGE_BYTES,
    STORED,
    entry_count,
    entry_make,
    entry_payload,
    entry_state,
    stored_block,
    stored_index,
    stored_payload,
)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef enum:
    FILL_WORDS = 1 << 20


cdef int space_init(Space *space) noexcept nogil:
    """Returns 0, or -ENOMEM. An engine has one space for its whole life."""
    memset(space, 0, sizeof(Space))
    pthread_mutex_init(&space.lock, NULL)
    space.leaf_limit = (1 << OFFSET_BITS) // LEAF_ENTRIES
    space.leaves = <Leaf *>sys_reserve(space.leaf_limit * sizeof(Leaf))
    space.fill_words = <uint64_t *>sys_reserve(FILL_WORDS * sizeof(uint64_t))
    space.fill_limit = FILL_WORDS
    space.room = NO_LEAF
    if space.leaves == NULL or space.fill_words == NULL:
        return -12
    return 0


cdef void space_deinit(Space *space) noexcept nogil:
    cdef uint32_t at
    for at in range(space.leaf_end):
        free(space.leaves[at].words)
    sys_release(space.leaves, space.leaf_limit * sizeof(Leaf))
    sys_release(space.fill_words, FILL_WORDS * sizeof(uint64_t))
    free(space.fill_index)
    pthread_mutex_destroy(&space.lock)


cdef void _list_add(Space *space, uint32_t at) noexcept nogil:
    cdef Leaf *leaf = &space.leaves[at]
    leaf.listed = 1
    leaf.previous = NO_LEAF
    leaf.next = space.room
    if space.room != NO_LEAF:
        space.leaves[space.room].previous = at
    space.room = at


cdef void _list_remove(Space *space, uint32_t at) noexcept nogil:
    cdef Leaf *leaf = &space.leaves[at]
    leaf.listed = 0
    if leaf.previous != NO_LEAF:
        space.leaves[leaf.previous].next = leaf.next
    else:
        space.room = leaf.next
    if leaf.next != NO_LEAF:
        space.leaves[leaf.next].previous = leaf.previous


cdef uint32_t _leaf_with_room(Space *space) noexcept nogil:
    """NO_LEAF when the space is full or memory for a leaf cannot be had."""
    cdef uint32_t at = space.room
    cdef Leaf *leaf
    if at == NO_LEAF:
        if space.leaf_end == space.leaf_limit:
            return NO_LEAF
        at = space.leaf_end
        space.leaf_end += 1
        _list_add(space, at)
    leaf = &space.leaves[at]
    if leaf.words == NULL:
        leaf.words = <uint64_t *>aligned_alloc(PAGE_BYTES, PAGE_BYTES)
        if leaf.words == NULL:
            return NO_LEAF
        memset(leaf.words, 0, PAGE_BYTES)
        space.leaf_pages += 1
        if at == 0:      # offset 0 means "no offset" in a page table
            leaf.words[0] = entry_make(CACHED, COUNT_MAX, 0)
            leaf.used = 1
    return at


cdef uint32_t _free_index(Leaf *leaf) noexcept nogil:
    # Entries are mostly freed in runs and handed out in order, so the next free word is mostly at `used`.
    cdef uint32_t at, step
    for step in range(LEAF_ENTRIES):
        at = (leaf.used + step) % LEAF_ENTRIES
        if entry_state(leaf.words[at]) == FREE:
            return at
    return LEAF_ENTRIES


cdef uint32_t space_allocate(Space *space, uint64_t word) noexcept nogil:
    """A free offset, its entry set to `word` (not FREE); 0 when there is none."""
    cdef uint32_t at = _leaf_with_room(space)
    cdef uint32_t index
    cdef Leaf *leaf
    if at == NO_LEAF:
        return 0
    leaf = &space.leaves[at]
    index = _free_index(leaf)
    store_u64(&leaf.words[index], word)
    leaf.used += 1
    space.entries += 1
    if leaf.used == LEAF_ENTRIES:
        _list_remove(space, at)
    return at * LEAF_ENTRIES + index


cdef uint64_t space_word(Space *space, uint32_t offset) noexcept nogil:
    """The entry; the caller holds a count of it or the lock."""
    return load_u64(&space.leaves[offset // LEAF_ENTRIES].words[offset % LEAF_ENTRIES])


cdef void space_set(Space *space, uint32_t offset, uint64_t word) noexcept nogil:
    store_u64(&space.leaves[offset // LEAF_ENTRIES].words[offset % LEAF_ENTRIES], word)


cdef void space_stamp(Space *space, uint32_t offset, uint32_t stamp) noexcept nogil:
    """The page was evicted anew, its copy being true still: where it is STORED, it was so now."""
    cdef uint64_t word = space_word(space, offset)
    if entry_state(word) == STORED:
        space_set(space, offset, entry_make(STORED, entry_count(word),
                                            stored_payload(stored_block(word), stored_index(word), stamp)))


cdef void space_get(Space *space, uint32_t offset) noexcept nogil:
    """One more page table (or fill) names the offset. At its maximum the count sticks: the entry stays."""
    cdef uint64_t word = space_word(space, offset)
    cdef uint32_t count = entry_count(word)
    if count < COUNT_MAX:
        space_set(space, offset, entry_make(entry_state(word), count + 1, entry_payload(word)))


cdef uint64_t space_put(Space *space, uint32_t offset) noexcept nogil:
    """One less. Returns the entry as it was if this freed it, so that its block can be told; else 0.

    A CACHED entry at count 0 stays for its evictor to free."""
    cdef uint64_t word = space_word(space, offset)
    cdef uint32_t count = entry_count(word)
    if count == COUNT_MAX:
        return 0
    word = entry_make(entry_state(word), count - 1, entry_payload(word))
    if count > 1 or entry_state(word) == CACHED:
        space_set(space, offset, word)
        return 0
    space_free(space, offset)
    return word


cdef void space_free(Space *space, uint32_t offset) noexcept nogil:
    cdef uint32_t at = offset // LEAF_ENTRIES
    cdef Leaf *leaf = &space.leaves[at]
    store_u64(&leaf.words[offset % LEAF_ENTRIES], 0)
    leaf.used -= 1
    space.entries -= 1
    if not leaf.listed:
        _list_add(space, at)
    if leaf.used == 0:
        free(leaf.words)
        leaf.words = NULL
        space.leaf_pages -= 1


cdef uint64_t space_fill_code(Space *space, uint64_t value) noexcept nogil:
    """The payload that stands for a page of `value`, or NO_FILL_CODE when the table has no place for it (store
    the page then). The words that no short form codes are in a table, from which none is removed: 16 bytes each."""
    cdef uint64_t low = (<uint64_t>1 << 45) - 1
    cdef uint32_t at
    if value <= low:
        return FILL_LOW | (value << 3)
    if value & ((<uint64_t>1 << 19) - 1) == 0:
        return FILL_HIGH | ((value >> 19) << 3)
    if (value >> 44) == (<uint64_t>1 << 20) - 1:
        return FILL_SIGNED | ((value & low) << 3)
    if (value >> 32) == <uint32_t>value:
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
    cdef int64_t signed_value
    if form == FILL_LOW:
        return data
    if form == FILL_HIGH:
        return data << 19
    if form == FILL_SIGNED:
        signed_value = <int64_t>(data << 19)
        return <uint64_t>(signed_value >> 19)
    if form == FILL_TWICE:
        return data | (data << 32)
    return space.fill_words[data]
