# SPDX-License-Identifier: GPL-2.0-or-later
"""Checksums of what lies in areas: one for each page, of the bytes as they lie in the block, so that a page can be
checked that is read alone, and a torn block is told from a good one page by page.

Those of a plain block are made when it is first written, and stay in memory with its other lists, three bytes a page. A
packed page is followed by its own, in the block: its lists take more memory already. Into that goes which block and
which page of it this is, so that what another block has left in the same place is not taken for it. Either goes
wherever the block goes: what a medium gives back is compared with what was once in memory, not with what it gave back
before.

24 bits of a CRC-32C (G. Castagnoli et al., "Optimization of cyclic redundancy-check codes with 24 and 32 parity bits",
1993). A page that is damaged at random passes for a good one once in 16 million."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from userswap.arena cimport arena_take
from userswap.log cimport SUM_BYTES, Block, Place, log_place, log_place_next, log_read
from userswap.system cimport ECANCELED, ENOMEM, store_pointer, sys_crash_point
from userswap.types cimport PAGE_BYTES

cdef extern from "sums.h" nogil:
    uint32_t sums_of(const uint8_t *data, uint32_t length)

cdef enum:
    READ_TRIES = 2


cdef void _put(uint8_t *sum, uint32_t value) noexcept nogil:
    sum[0] = <uint8_t>value
    sum[1] = <uint8_t>(value >> 8)
    sum[2] = <uint8_t>(value >> 16)


cdef bint _is(const uint8_t *sum, uint32_t value) noexcept nogil:
    return sum[0] == <uint8_t>value and sum[1] == <uint8_t>(value >> 8) and sum[2] == <uint8_t>(value >> 16)


cdef void _place(Log *log, uint32_t at, uint32_t index, Place *place) noexcept nogil:
    """From that of the page before, if there is one."""
    if index == 0 or not log.blocks[at].packed:
        log_place(log, at, index, place)
    else:
        log_place_next(log, at, index, place)


cdef int sums_make(Log *log, uint32_t at) noexcept nogil:
    """Of a full plain block in memory, unless it has them: then what is in memory may have been read. Returns 0 or
    -ENOMEM."""
    cdef Block *block = &log.blocks[at]
    cdef uint8_t *sums
    cdef uint32_t index
    if block.packed or block.sums != NULL:
        return 0
    sums = <uint8_t *>arena_take(<uint64_t>block.used * SUM_BYTES)
    if sums == NULL:
        return -ENOMEM
    for index in range(block.used):
        _put(sums + <uint64_t>index * SUM_BYTES, sums_of(block.data + <uint64_t>index * PAGE_BYTES, PAGE_BYTES))
    store_pointer(<void **>&block.sums, sums)       # all of them
    sys_crash_point(b"log-summed")
    return 0


cdef uint32_t _packed(Block *block, uint32_t index, const uint8_t *bytes, uint32_t length) noexcept nogil:
    return sums_of(bytes, length) ^ (block.serial + index) * <uint32_t>0x9E3779B1


cdef void sums_seal(Log *log, int which, uint8_t *bytes, uint32_t length) noexcept nogil:
    """Of the page that is about to be committed to an open block. By the thread that packs into that, without lock."""
    cdef Block *block = &log.blocks[log.open[which]]
    _put(bytes + length, _packed(block, block.used, bytes, length))


cdef bint sums_hold(Log *log, uint32_t at, uint32_t index, const uint8_t *bytes, uint32_t length) noexcept nogil:
    """Whether these, which were read, are the bytes of a page of a pinned block, with what follows if it is packed."""
    cdef Block *block = &log.blocks[at]
    if block.packed:
        return _is(bytes + length, _packed(block, index, bytes, length))
    return block.sums != NULL and _is(block.sums + <uint64_t>index * SUM_BYTES, sums_of(bytes, length))


cdef bint sums_hold_all(Log *log, uint32_t at, const uint8_t *data) noexcept nogil:
    """Whether all that is used of a pinned block was read as it was written."""
    cdef Place place
    cdef uint32_t index
    for index in range(log.blocks[at].used):
        _place(log, at, index, &place)
        if not sums_hold(log, at, index, data + place.start, place.length):
            return False
    return True


cdef int sums_read(Log *log, uint32_t at, uint32_t length, uint8_t *into, bint *right) noexcept nogil:
    """Reads a pinned block from its beginning, and once more where that fails or is not what was written; *right
    becomes whether it is then. Returns 0 or -errno."""
    cdef int _turn
    cdef int result = 0
    for _turn in range(READ_TRIES):
        result = log_read(log, at, 0, length, into)
        right[0] = result == 0 and sums_hold_all(log, at, into)
        if right[0] or result == -ECANCELED:
            break
    return result
