# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: from a page of one address space to its page value (types.pxd)."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    TABLE_LEAF_PAGES = 512      # 2 MiB, 2 KiB of values
    TABLE_REMOVED = 512         # behind them: when EVENT_REMOVE last hit the leaf (monotonic ms), 0: not of late
    TABLE_FANOUT = 512
    TABLE_LEAVES = 1 << 26      # 26 + 9 bits: the 47 bits of a user address, less 12

cdef struct TableNode:
    void *children[512]

cdef struct PageTable:
    TableNode *tops[256]
    uint64_t leaf_count

# Called for each run of pages within a leaf; values has `count` of them, which it may change.
ctypedef void (*table_visitor)(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil

cdef PageTable *table_make() noexcept nogil
cdef void table_free(PageTable *table) noexcept nogil
cdef uint32_t table_get(PageTable *table, uint64_t page) noexcept nogil
cdef int table_set(PageTable *table, uint64_t page, uint32_t value) noexcept nogil
cdef uint32_t *table_leaf(PageTable *table, uint64_t page) noexcept nogil
cdef int32_t table_removed_for(const uint32_t *leaf, uint32_t now) noexcept nogil
cdef uint32_t *table_next(PageTable *table, uint64_t *page) noexcept nogil
cdef void table_visit(PageTable *table, uint64_t page, uint64_t count,
                      table_visitor visit, void *context) noexcept nogil
