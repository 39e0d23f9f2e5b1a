# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space: from an offset to its entry, one 64-bit word."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from userswap.system cimport pthread_mutex_t

cdef enum:
    LEAF_ENTRIES = 512
    NO_LEAF = 0xFFFFFFFF

# Code of a repeated word in 48 bits: 3 bits of form, 45 of data.
cdef enum FillForm:
    FILL_LOW        # zero-extended
    FILL_HIGH       # the upper 45 bits, the rest zero (most floating-point constants)
    FILL_SIGNED     # sign-extended
    FILL_TWICE      # a 32-bit word, twice
    FILL_TABLE      # an index into Space.fill_words

cdef struct Leaf:
    uint64_t *words     # LEAF_ENTRIES of them, one page; NULL when no entry is in use
    uint32_t used       # words that are not FREE
    uint32_t next       # list of leaves that have room
    uint32_t previous
    uint8_t listed

cdef struct Space:
    pthread_mutex_t lock    # guards all but reads of words that the reader holds a count of
    Leaf *leaves            # the root: reserved, touched where it is used
    uint32_t leaf_limit
    uint32_t leaf_end       # leaves below this index have been used once
    uint32_t room           # first leaf of the list of those with room, or NO_LEAF
    uint64_t entries        # words that are not FREE
    uint64_t leaf_pages     # leaves that hold memory
    uint64_t *fill_words    # repeated words that no short form codes, in the order of their coming
    uint32_t fill_count
    uint32_t fill_limit
    uint32_t *fill_index    # their hash table, at most half full: places in fill_words plus 1, 0: free
    uint32_t fill_slots     # a power of two

cdef inline uint64_t NO_FILL_CODE() noexcept nogil:
    return <uint64_t>-1

cdef int space_init(Space *space) noexcept nogil
cdef void space_deinit(Space *space) noexcept nogil
cdef uint32_t space_allocate(Space *space, uint64_t word) noexcept nogil
cdef uint64_t space_word(Space *space, uint32_t offset) noexcept nogil
cdef void space_set(Space *space, uint32_t offset, uint64_t word) noexcept nogil
cdef void space_stamp(Space *space, uint32_t offset, uint32_t stamp) noexcept nogil
cdef void space_get(Space *space, uint32_t offset) noexcept nogil
cdef uint64_t space_put(Space *space, uint32_t offset) noexcept nogil
cdef void space_free(Space *space, uint32_t offset) noexcept nogil
cdef uint64_t space_fill_code(Space *space, uint64_t value) noexcept nogil
cdef uint64_t space_fill_value(Space *space, uint64_t payload) noexcept nogil
