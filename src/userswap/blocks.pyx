# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a block in the log: the lists that it can be in, its buffer, what it knows of its pages, its end.

All functions want Log.lock held, but for log_changed. None waits, none fails except where said.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from userswap.arena cimport arena_give, arena_take
from userswap.log cimport (
    ANCHOR_PAGES,
    SUM_BYTES,
    BLOCK_FREE,
    BLOCK_FULL,
    BLOCK_SPENT,
    BLOCK_STORED,
    INDEX_MAX,
    LIST_KEPT,
    LIST_NONE,
    NO_BLOCK,
    BlockList,
)
from userswap.slots cimport slot_return
from userswap.system cimport ENOMEM, store_pointer, sys_crash_point, sys_futex_advance
from userswap.types cimport BLOCK_PAGES


cdef void log_changed(Log *log) noexcept nogil:
    sys_futex_advance(&log.changed)


# ---- lists of blocks

cdef void block_list_add(Log *log, int name, uint32_t at, bint first) noexcept nogil:
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


cdef void block_list_take(Log *log, uint32_t at) noexcept nogil:
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


# ---- buffers, and the life of a block

cdef uint64_t _anchors_bytes(uint32_t room) noexcept nogil:
    return (room + ANCHOR_PAGES - 1) // ANCHOR_PAGES * sizeof(uint32_t)


cdef void _list_free(void **items, uint64_t bytes) noexcept nogil:
    cdef void *old = items[0]
    store_pointer(items, NULL)
    if old != NULL:
        arena_give(old, bytes)


cdef void block_lists_free(Block *block) noexcept nogil:
    _list_free(<void **>&block.owners, block.room * sizeof(uint32_t))
    _list_free(<void **>&block.lengths, block.room * sizeof(uint16_t))
    _list_free(<void **>&block.anchors, _anchors_bytes(block.room))
    _list_free(<void **>&block.sums, <uint64_t>block.used * SUM_BYTES)


cdef void buffer_put(Log *log, uint8_t *buffer) noexcept nogil:
    log.buffers[log.buffers_free] = buffer
    log.buffers_free += 1


cdef uint8_t *buffer_take(Log *log, uint32_t left) noexcept nogil:
    """A free buffer if more than `left` are, else that of a block which is only kept; NULL when there is neither."""
    if log.buffers_free <= left and not _buffer_recycle(log):
        return NULL
    log.buffers_free -= 1
    return log.buffers[log.buffers_free]


cdef void block_id_return(Log *log, uint32_t at) noexcept nogil:
    log.blocks[at].next = log.free_ids
    log.free_ids = at


cdef void block_not_plain(Log *log, Block *block) noexcept nogil:
    log.plain -= block.plain
    block.plain = False


cdef void _data_release(Log *log, Block *block) noexcept nogil:
    block_not_plain(log, block)
    buffer_put(log, block.data)
    block.data = NULL
    block.doubtful = False
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
        block_list_take(log, at)
        if block.pins == 0 and not block.used_lately:
            log.dropped += block.packed
            block.left = log.dropped if block.packed else 0
            sys_crash_point(b"buffer-recycled")
            _data_release(log, block)
            return True
        block.used_lately = False
        block_list_add(log, LIST_KEPT, at, False)
        at = next if next != NO_BLOCK else log.lists[LIST_KEPT].first
        left -= 1
    return False


cdef void block_free_if_unused(Log *log, uint32_t at) noexcept nogil:
    """Frees a block that nothing names and nobody reads. One that is open or on its way out is looked at later."""
    cdef Block *block = &log.blocks[at]
    if block.live != 0 or block.pins != 0:
        return
    if block.state == BLOCK_STORED:
        slot_return(log, &log.areas[block.area], block.slot)
        log_changed(log)        # there may be something to discard
    elif block.state != BLOCK_FULL and block.state != BLOCK_SPENT:
        return
    block_list_take(log, at)
    if block.data != NULL:
        _data_release(log, block)
    sys_crash_point(b"block-freeing")
    log.used -= block.used
    block_lists_free(block)
    block.state = BLOCK_FREE
    log.blocks_used -= 1
    block_id_return(log, at)


cdef int block_lists_make(Block *block) noexcept nogil:
    block.room = INDEX_MAX if block.packed else BLOCK_PAGES
    block.owners = <uint32_t *>arena_take(block.room * sizeof(uint32_t))
    if block.packed:
        block.lengths = <uint16_t *>arena_take(block.room * sizeof(uint16_t))
        block.anchors = <uint32_t *>arena_take(_anchors_bytes(block.room))
    if block.owners == NULL or (block.packed and (block.lengths == NULL or block.anchors == NULL)):
        block_lists_free(block)
        return -ENOMEM
    return 0


cdef void *_beginning(const void *whole, uint64_t bytes) noexcept nogil:
    """A copy of it; NULL without memory."""
    cdef void *part = arena_take(bytes)
    if part != NULL:
        memcpy(part, whole, bytes)
    return part


cdef void block_lists_shrink(Block *block) noexcept nogil:
    """To what is used, once nobody reads them: in places of their own, as the next block has use for the whole."""
    cdef Block old = block[0]
    cdef void *owners
    cdef void *lengths
    cdef void *anchors
    if block.room == block.used or block.pins != 0 or not block.packed:
        return
    owners = _beginning(old.owners, old.used * sizeof(uint32_t))
    lengths = _beginning(old.lengths, old.used * sizeof(uint16_t))
    anchors = _beginning(old.anchors, _anchors_bytes(old.used))
    if owners == NULL or lengths == NULL or anchors == NULL:
        return      # without memory it is only larger than it need be
    store_pointer(<void **>&block.owners, owners)
    sys_crash_point(b"lists-shrinking")
    store_pointer(<void **>&block.lengths, lengths)
    store_pointer(<void **>&block.anchors, anchors)
    block.room = block.used
    old.sums = NULL     # they have their size
    block_lists_free(&old)
