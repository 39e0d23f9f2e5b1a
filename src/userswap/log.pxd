# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks: where the bytes of stored pages are."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from userswap.space cimport Space
from userswap.stores cimport Store
from userswap.system cimport pthread_mutex_t, sys_reads

cdef enum:
    MAX_AREAS = 16
    MAX_BLOCKS = 1 << 20
    BUFFERS_MAX = 6         # blocks in memory besides the tier: open ones, the rest on their way out or in
    BUFFERS_MIN = 3
    BUFFERS_PACKING = 2     # more, where there is a packer
    BUFFERS_APART = 1       # more, where hot pages have open blocks of their own; as many again for a packer's
    BUFFERS_EVER = 1 << 16  # with those of the memory tier
    INDEX_MAX = 4096        # pages in a block: what an entry can name
    ANCHOR_PAGES = 8
    SUM_BYTES = 3           # of a page's checksum (sums.pyx): a packed page is followed by it
    FETCHES = 4
    NO_BLOCK = 0xFFFFFFFF

cdef enum BlockState:
    BLOCK_FREE
    BLOCK_OPEN              # being packed, in memory
    BLOCK_FULL              # in memory alone
    BLOCK_SPENT             # in memory; its pages are being packed into another block, or have been
    BLOCK_WRITING           # in memory, and on its way to (area, slot)
    BLOCK_STORED            # in (area, slot); still in memory too while data is not NULL

# Blocks that are being packed: by the evictor pages as they are; by the packer pages packed small; of both those that
# came back soon before apart from the others; by cleaning such of them as are still young, apart from all others.
cdef enum:
    OPEN_PLAIN
    OPEN_HOT
    OPEN_PACKED
    OPEN_PACKED_HOT
    OPEN_WARM
    OPEN_COLD
    OPENS

cdef enum:
    LIST_NONE
    LIST_QUEUE              # FULL blocks of plain pages, and others that are to be written next
    LIST_TIER               # FULL blocks which may stay: of packed pages, and what no area has room for
    LIST_KEPT               # STORED blocks whose data is still in memory
    LISTS

cdef struct BlockList:
    uint32_t first          # the oldest
    uint32_t last
    uint32_t count

cdef struct Block:
    uint32_t slot           # place in the area, in blocks: set with `area` by one store (store_pair)
    uint32_t area
    uint8_t state           # STORED is set after these
    uint8_t list
    uint8_t fetching        # on its way back into memory
    uint8_t packed          # its pages have different lengths
    uint8_t plain           # its buffer is counted in Log.plain
    uint8_t settled         # not worth packing, or cleaned: to be written as it is
    uint8_t kind            # what it was when it was open: OPEN_PLAIN ...
    uint8_t hot             # its pages came back soon before, or did when they were last evicted
    uint8_t cleaned         # its pages have outlived a block
    uint8_t used_lately     # read since it was last looked at
    uint8_t doubtful        # its data was read from an area that is gone, and not all of it was true
    uint8_t reads           # from its area, since it was last fetched
    uint32_t live           # STORED entries that name this block
    uint32_t used           # pages in it
    uint32_t room           # pages that its lists below have room for
    uint32_t bytes          # bytes in it
    uint32_t pins           # readers of data or of the slot
    uint32_t next           # of the same list, or of the free ids
    uint32_t previous
    uint32_t left           # Log.dropped when it last left the memory; 0: it has not, or is not packed
    uint32_t born           # Log.clock when its youngest page was evicted, to a block
    uint32_t closed         # ... and when it was closed
    uint8_t *data           # BLOCK_BYTES, or NULL
    uint32_t *owners        # reverse map: the offset that each page was packed for
    uint16_t *lengths       # packed: length - 1 (12 bits) and codec (4 bits) of each page
    uint32_t *anchors       # packed: where each ANCHOR_PAGES-th page begins
    uint8_t *sums           # plain: the checksum of each page, once it was written
    uint32_t serial         # packed: goes into the checksums of its pages

# Where a page lies in its block.
cdef struct Place:
    uint32_t start
    uint32_t length
    uint8_t codec

cdef struct Log:
    Space *space
    # Guards all below. Block.live and the words are changed together, under Space.lock.
    pthread_mutex_t lock
    Block *blocks
    uint32_t block_end
    uint32_t block_limit    # what it may be: blocks that an entry can name
    uint32_t blocks_used    # that are not FREE
    uint32_t free_ids
    uint32_t open[6]        # block ids, or NO_BLOCK
    bint apart              # hot pages have open blocks of their own: there are buffers enough for that
    uint32_t serial         # the last block's
    uint32_t clock          # blocks that evicted pages have filled
    uint64_t stored         # pages: live ones of all blocks
    uint64_t used           # ... and dead ones
    uint32_t dropped        # packed blocks that have left the memory
    Store areas[16]         # a block names its area by the place here
    int area_count          # places in use; some may be gone
    int order[16]           # areas that may be written to, the first one first
    int order_count
    uint8_t **buffers       # those that are free
    uint32_t buffers_free
    uint32_t buffers_made   # free or not
    uint32_t buffers_base   # ... that there are besides those of the tier
    uint32_t plain          # buffers that hold plain pages not written yet
    uint32_t plain_most     # ... and how many may
    uint32_t tier_most      # FULL blocks that may stay
    BlockList lists[4]
    bint writing            # one more is on its way to an area
    bint packs              # somebody packs: plain blocks may wait for it
    bint plain_waits        # the evictor waits: too many plain pages are not written yet
    bint buffer_waits       # somebody waits as no buffer is free
    uint32_t fetches[4]     # blocks that are wanted in memory, oldest first
    int fetch_count
    uint32_t fetch_wanted   # futex: there is one more
    uint32_t changed        # futex: a buffer came free, a block was queued, written or fetched
    int error               # first error of a write that no area could take, or 0
    int errors              # failed writes in a row
    int error_area          # where the last one was to go, -1: nowhere
    uint32_t error_slot
    bint stopping           # nobody will write or wait any more
    uint64_t slots          # of all areas
    uint64_t slots_used
    uint64_t slots_peak
    bint encrypts           # all areas, with this key
    uint8_t key[64]         # KEY_BYTES
    uint64_t mediums        # areas that there ever were

cdef int log_init(Log *log, Space *space, int buffers) noexcept nogil
cdef void log_populate(Log *log) noexcept nogil
cdef void log_deinit(Log *log) noexcept nogil
cdef bint log_tier_grow(Log *log) noexcept nogil
cdef uint32_t log_tier_shrink(Log *log, uint32_t blocks) noexcept nogil
cdef bint log_buffer_drop(Log *log, uint32_t base) noexcept nogil
cdef bint log_can_pack(Log *log) noexcept nogil
cdef int log_reserve(Log *log, int which, uint8_t **at) noexcept nogil
cdef void log_commit(Log *log, int which, uint32_t offset, uint32_t length, uint8_t codec,
                     uint32_t stamp) noexcept nogil
cdef int log_open_plain(Log *log, bint hot) noexcept nogil
cdef int log_open_packed(Log *log, bint hot) noexcept nogil
cdef bint log_is_young(Log *log, Block *block) noexcept nogil
cdef bint log_is_writing(Log *log) noexcept nogil
cdef uint32_t log_unwritten(Log *log) noexcept nogil
cdef void log_freed(Log *log, uint64_t word) noexcept nogil
cdef uint8_t *log_pin(Log *log, uint32_t block) noexcept nogil
cdef void log_unpin(Log *log, uint32_t block) noexcept nogil
cdef void log_unpin_locked(Log *log, uint32_t block) noexcept nogil
cdef void log_place(Log *log, uint32_t block, uint32_t index, Place *place) noexcept nogil
cdef void log_place_next(Log *log, uint32_t block, uint32_t index, Place *place) noexcept nogil
cdef void log_span(Log *log, uint32_t block, uint32_t index, uint32_t count, uint32_t *at,
                   uint32_t *length) noexcept nogil
cdef int log_read(Log *log, uint32_t block, uint32_t at, uint32_t length, uint8_t *into) noexcept nogil
cdef int log_read_whole(Log *log, uint32_t block, uint8_t *into) noexcept nogil
cdef int log_read_later(Log *log, sys_reads *reads, uint32_t block, uint32_t at, uint32_t length,
                        uint8_t *into) noexcept nogil
cdef void log_take(Log *log, uint32_t block, uint32_t at, uint32_t length, uint8_t *into) noexcept nogil
cdef int log_write_next(Log *log) noexcept nogil
cdef uint64_t log_free_slots(Log *log) noexcept nogil
cdef void log_keep(Log *log, uint32_t at) noexcept nogil
cdef void log_keep_in(Log *log, uint32_t at, uint8_t *buffer, bint doubtful) noexcept nogil
