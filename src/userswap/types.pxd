# SPDX-License-Identifier: GPL-2.0-or-later
"""The design: entry layout, page values, states, legal transitions, invariants, lock order.

    program's page --(PageTable)--> offset --(Space)--> entry word --(Log)--> block --> memory or area

A page table holds only an offset. All else about a swapped page is in its entry, one word of the
swapper space. An entry names (block, index); where the block is, only the block table knows.

Page value (32 bits, one per page of each mm, under Mm.lock)
    0                       NONE      nothing known: a fault is answered with zeros
    PRESENT | age           present, no copy kept
    PRESENT | age | offset  present and clean: write-protected, its entry still holds a true copy
    PRESENT | age | shared  present, no copy kept, shared since a fork and write-protected: a write to it
                            takes a page more
    PRESENT | age | hot     present, no copy kept; the last one lived for a short time only, and so may the next.
                            Not write-protected
    offset                  swapped
    BUSY | offset           swapped, one thread is filling it (others drop the fault: its end wakes them)
  Bit 31 is PRESENT; with it, bits 28-30 are the age, how many passes of reclaim the page survives; without
  it, bit 30 is BUSY. Bits 0-27 are the offset (1 TiB of swapped pages); offset 0 is never handed out.
  A page that the program has given back is NONE at once, although the kernel may drop it a moment later: it
  is PRESENT, and so can be evicted, only once a fault has shown that it had gone.

Entry word (written under Space.lock, read without), in one of two layouts, chosen when the engine starts
      64 bits     32 bits
    bits  0-1    bits  0-1    state    FREE, FILLED, CACHED, STORED
    bits  2-15   bits  2-4    count    page tables (and fills in flight) that name the offset
    bits 16-63   bits  5-31   payload  FILLED: how the repeated word is coded (3 bits form, 45 or 24 bits data)
                                       STORED: index (12), block (24 or 15), and in the layout of 64 bits the
                                       stamp of the eviction clock (12); in that of 32 bits a leaf has one stamp
  Above the space there are only words of 64 bits: those of 32 are widened as they are read (space_word) and cut as
  they are written. A payload is never changed by that: its block and data are made to fit before.
  The two greatest counts of either layout mean something else. COUNT_EVER: the entry stays for ever, whoever puts it;
  so are offset 0 and those of Engine.zero_offset, shared_offset and hot_offset. COUNT_MORE: so many, and as many more
  as the leaf's continuation says, which is made when it is needed. Where it cannot be, the entry is kept for ever.
  Transitions:  FREE -> CACHED -> FILLED | STORED -> FREE,  CACHED -> FREE,
                STORED -> STORED (packed, cleaned, a new stamp).
  A CACHED entry whose count drops to 0 is given back in flight: it is freed, unwritten, by its evictor.

Invariants
    sum of counts over the space = number of page values with an offset, over all mms, + fills in flight
    Block.live = number of STORED words that name the block
    Leaf.used = number of words that are not FREE
    Leaf.more[LEAF_ENTRIES] = number of those before it that are not 0; the count of their words is COUNT_MORE

Lock order:  Mm.helper_lock -> Mm.lock -> Engine.table_lock;
Mm.lock -> Space.lock -> Log.lock.  Of two Mm.locks the parent's comes before that of the child of a fork; no others are
held together. No system call that can wait for the program or for the disk is made under Space.lock or Log.lock. A
store's Link.lock is such a wait: it comes last, and not under these two. Engine.limit_lock, Engine.returns_lock and
Tree.lock come last too: nothing is taken under them.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    PAGE_SHIFT = 12
    PAGE_BYTES = 4096
    BLOCK_PAGES = 512
    BLOCK_BYTES = 2097152

cdef inline uint32_t whole_pages(uint32_t count) noexcept nogil:
    """Bytes, rounded up."""
    return (count + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES

# ---- page values
cdef enum:
    NONE = 0

cdef enum:
    OFFSET_BITS = 28
    OFFSET_MASK = (1 << 28) - 1
    AGE_MAX = 7
    AGE_FRESH = 1           # touched first, or faulted on: survives one pass
    AGE_READAHEAD = 0
    AGE_REFAULT = 3         # came back soon after it was evicted

cdef inline uint32_t present_value(uint32_t age, uint32_t offset) noexcept nogil:
    return (<uint32_t>1 << 31) | (age << 28) | offset

cdef inline uint32_t busy_value(uint32_t offset) noexcept nogil:
    return (<uint32_t>1 << 30) | offset

cdef inline bint is_present(uint32_t value) noexcept nogil:
    return (value >> 31) != 0

cdef inline bint is_busy(uint32_t value) noexcept nogil:
    return (value >> 30) == 1

cdef inline bint is_swapped(uint32_t value) noexcept nogil:
    """Swapped, and nobody is filling it."""
    return value != 0 and (value >> 30) == 0

cdef inline uint32_t offset_of(uint32_t value) noexcept nogil:
    return value & OFFSET_MASK

cdef inline uint32_t age_of(uint32_t value) noexcept nogil:
    return (value >> 28) & AGE_MAX

# ---- entry words
cdef enum:
    FREE = 0
    FILLED = 1
    CACHED = 2
    STORED = 3

cdef enum:
    COUNT_SHIFT = 2
    COUNT_MORE = (1 << 14) - 2
    COUNT_EVER = (1 << 14) - 1
    PAYLOAD_SHIFT = 16
    STAMP_SHIFT = 36        # in the payload
    NARROW_MORE = (1 << 3) - 2
    NARROW_EVER = (1 << 3) - 1
    NARROW_SHIFT = 5        # of the payload
    NARROW_BLOCKS = 1 << 15

cdef inline uint32_t entry_state(uint64_t word) noexcept nogil:
    return <uint32_t>(word & 3)

cdef inline uint32_t entry_count(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> COUNT_SHIFT) & COUNT_EVER)

cdef inline uint64_t entry_payload(uint64_t word) noexcept nogil:
    return word >> PAYLOAD_SHIFT

cdef inline uint64_t entry_make(uint32_t state, uint32_t count, uint64_t payload) noexcept nogil:
    return <uint64_t>state | (<uint64_t>count << COUNT_SHIFT) | (payload << PAYLOAD_SHIFT)

cdef inline uint32_t stored_index(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> 16) & 0xFFF)

cdef inline uint32_t stored_block(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> 28) & 0xFFFFFF)

cdef inline uint32_t stored_stamp(uint64_t word) noexcept nogil:
    return <uint32_t>(word >> 52)

cdef inline uint64_t stored_payload(uint32_t block, uint32_t index, uint32_t stamp) noexcept nogil:
    return <uint64_t>index | (<uint64_t>block << 12) | (<uint64_t>(stamp & 0xFFF) << STAMP_SHIFT)
