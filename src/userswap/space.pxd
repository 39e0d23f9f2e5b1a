# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space: from an offset to its entry, one word."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from userswap.system cimport pthread_mutex_t

cdef enum:
    LEAF_ENTRIES = 512
    NO_LEAF = 0xFFFFFFFF

# Code of a repeated word: 3 bits of form, 45 of data, or 24 in the layout of 32 bits.
cdef enum FillForm:
    FILL_LOW        # zero-extended
    FILL_HIGH       # the upper bits, the rest zero (most floating-point constants)
    FILL_SIGNED     # sign-extended
    FILL_TWICE      # a word of at most 32 bits, twice
    FILL_TABLE      # an index into Space.fill_words

cdef struct Leaf:
    void *words         # LEAF_ENTRIES of them: memory only while one is not FREE
    uint16_t *more      # the continuation of their counts, and how many of these are not 0; NULL: none is
    uint32_t next       # list of leaves that have room
    uint32_t previous
    uint32_t stamp      # 32 bits: mean of the last `stamps` stamps, with 20 bits of fraction
    uint16_t stamps     # at most as many as there are words
    uint16_t used       # words that are not FREE

cdef struct Space:
    pthread_mutex_t lock    # guards all but reads of words that the reader holds a count of
    Leaf *leaves            # the root: reserved, touched where it is used
    uint32_t leaf_limit
    uint32_t leaf_end       # leaves below this index have been used once
    uint32_t room           # first leaf of the list of those with room, or NO_LEAF
    uint64_t entries        # words that are not FREE
    uint32_t leaf_count     # leaves that hold memory
    uint32_t more_count     # continuations, and how many there may be
    uint32_t more_limit
    # The layout of a word.
    bint narrow             # 32 bits
    uint32_t leaf_bytes
    uint32_t count_more     # what COUNT_MORE and COUNT_EVER are in a word
    uint32_t count_ever
    uint32_t payload_shift
    uint32_t data_bits      # of a coded word
    uint32_t block_limit    # blocks that an entry can name
    uint64_t *fill_words    # repeated words that no short form codes, in the order of their coming
    uint32_t fill_count
    uint32_t fill_limit
    uint32_t *fill_index    # their hash table, at most half full: places in fill_words plus 1, 0: free
    uint32_t fill_slots     # a power of two

cdef inline uint64_t NO_FILL_CODE() noexcept nogil:
    return <uint64_t>-1

cdef inline uint32_t FOR_EVER() noexcept nogil:
    return <uint32_t>-1

cdef int space_init(Space *space, int bits) noexcept nogil
cdef void space_deinit(Space *space) noexcept nogil
cdef uint32_t space_allocate(Space *space, uint64_t word) noexcept nogil
cdef uint64_t space_word(Space *space, uint32_t offset) noexcept nogil
cdef void space_change(Space *space, uint32_t offset, uint32_t state, uint64_t payload) noexcept nogil
cdef uint32_t space_count(Space *space, uint32_t offset) noexcept nogil
cdef void space_stamp(Space *space, uint32_t offset, uint32_t stamp) noexcept nogil
cdef void space_get(Space *space, uint32_t offset) noexcept nogil
cdef uint64_t space_put(Space *space, uint32_t offset) noexcept nogil
cdef void space_free(Space *space, uint32_t offset) noexcept nogil
cdef int space_adopt(Space *space, Space *old, uint32_t offset) noexcept nogil
cdef int space_adopt_begin(Space *space, const Space *old) noexcept nogil
cdef uint64_t space_fill_code(Space *space, uint64_t value) noexcept nogil
cdef uint64_t space_fill_value(Space *space, uint64_t payload) noexcept nogil
