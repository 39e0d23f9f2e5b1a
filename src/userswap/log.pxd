# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks: where the bytes of stored pages are."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from userswap.space cimport Space
from userswap.stores cimport Store
from userswap.system cimport pthread_mutex_t, sys_reads

cdef enum:
    MAX_AREAS = 16
    MAX_BLOCKS = 1 << 20
    BUFFERS_MAX = 6         # blocks in memory: one open, the rest being written or kept until needed
    BUFFERS_MIN = 3
    FETCHES = 4
    NO_BLOCK = 0xFFFFFFFF
    NO_SLOT = 0xFFFFFFFF

cdef enum BlockState:
    BLOCK_FREE
    BLOCK_OPEN              # being packed, in memory
    BLOCK_FULL              # in memory, waiting for the writer
    BLOCK_WRITING           # in memory, and on its way to (area, slot)
    BLOCK_STORED            # in (area, slot); still in memory too while data is not NULL

cdef struct Block:
    uint8_t state
    uint8_t area
    uint8_t fetching        # on its way back into memory
    uint32_t slot           # place in the area, in blocks
    uint32_t live           # STORED entries that name this block
    uint32_t used           # pages packed
    uint32_t pins           # readers of data or of the slot
    uint32_t next           # list of free ids
    uint8_t *data           # BLOCK_BYTES, or NULL
    uint32_t *owners        # reverse map: the offset that each page was packed for

cdef struct Log:
    Space *space
    # Guards all below. Block.live and the words are changed together, under Space.lock.
    pthread_mutex_t lock
    Block *blocks
    uint32_t block_end
    uint32_t free_ids
    uint32_t open           # block id, or NO_BLOCK
    Store areas[16]         # a block names its area by the place here
    int area_count          # places in use; some may be gone
    int order[16]           # areas that may be written to, the first one first
    int order_count
    uint8_t *buffers[6]
    int buffers_free
    uint32_t queue[6]       # FULL blocks, oldest first
    int queued
    bint writing            # one more is on its way to an area
    uint32_t kept[6]        # STORED blocks whose data is still in memory, oldest first
    int kept_count
    uint32_t fetches[4]     # blocks that are wanted in memory, oldest first
    int fetch_count
    uint32_t fetch_wanted   # futex: there is one more
    uint32_t changed        # futex: a buffer came free, a block was queued, written or fetched
    int error               # first error of a write that no area could take, or 0
    int errors              # failed writes in a row
    bint stopping           # nobody will write or wait any more
    uint64_t slots          # of all areas
    uint64_t slots_used
    uint64_t slots_peak

cdef struct PageSource:
    uint32_t block
    uint32_t index

cdef int log_init(Log *log, Space *space, int buffers) noexcept nogil
cdef void log_populate(Log *log) noexcept nogil
cdef void log_deinit(Log *log) noexcept nogil
cdef int log_reserve(Log *log, uint8_t **at) noexcept nogil
cdef bint log_is_writing(Log *log) noexcept nogil
cdef void log_commit(Log *log, uint32_t offset, uint32_t stamp) noexcept nogil
cdef void log_freed(Log *log, uint64_t word) noexcept nogil
cdef uint8_t *log_pin(Log *log, uint32_t block) noexcept nogil
cdef void log_unpin(Log *log, uint32_t block) noexcept nogil
cdef int log_read(Log *log, uint32_t block, uint32_t index, uint32_t count, uint8_t *into) noexcept nogil
cdef int log_read_later(Log *log, sys_reads *reads, uint32_t block, uint32_t index, uint32_t count,
                        uint8_t *into) noexcept nogil
cdef bint log_in_memory(Log *log, uint32_t block) noexcept nogil
cdef void log_fetch(Log *log, uint32_t block) noexcept nogil
cdef bint log_fetch_next(Log *log) noexcept nogil
cdef uint8_t *log_fetched(Log *log, uint32_t block) noexcept nogil
cdef int log_write_next(Log *log) noexcept nogil
cdef int log_clean(Log *log, uint8_t *scratch) noexcept nogil
cdef void log_area_order(Log *log) noexcept nogil
cdef uint32_t log_slot_take(Log *log, Store *area) noexcept nogil
cdef void log_slot_return(Log *log, Store *area, uint32_t slot) noexcept nogil
cdef uint64_t log_free_slots(Log *log) noexcept nogil
