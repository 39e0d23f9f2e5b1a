# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: a radix tree of four levels (8 + 9 + 9 bits, and leaves of 512 pages), 4 bytes a page, made where
something is known of a page.

The caller holds the lock of the address space (Mm.lock).
"""

from userswap.arena cimport arena_give, arena_take

cdef enum:
    LEAF_BYTES = (TABLE_LEAF_PAGES + 1) * 4


cdef PageTable *table_make() noexcept nogil:
    return <PageTable *>arena_take(sizeof(PageTable))


cdef void table_free(PageTable *table) noexcept nogil:
    cdef uint32_t top, upper, lower
    cdef TableNode *node
    if table == NULL:
        return
    for top in range(256):
        if table.tops[top] == NULL:
            continue
        for upper in range(TABLE_FANOUT):
            node = <TableNode *>table.tops[top].children[upper]
            if node == NULL:
                continue
            for lower in range(TABLE_FANOUT):
                if node.children[lower] != NULL:
                    arena_give(node.children[lower], LEAF_BYTES)
            arena_give(node, sizeof(TableNode))
        arena_give(table.tops[top], sizeof(TableNode))
    arena_give(table, sizeof(PageTable))


cdef TableNode *_node(PageTable *table, uint64_t leaf) noexcept nogil:
    """The node that holds leaf number `leaf`, or NULL."""
    cdef TableNode *top
    if leaf >= TABLE_LEAVES:
        return NULL
    top = table.tops[leaf >> 18]
    return NULL if top == NULL else <TableNode *>top.children[(leaf >> 9) % TABLE_FANOUT]


cdef uint32_t *_leaf(PageTable *table, uint64_t leaf) noexcept nogil:
    cdef TableNode *node = _node(table, leaf)
    return NULL if node == NULL else <uint32_t *>node.children[leaf % TABLE_FANOUT]


cdef uint32_t table_get(PageTable *table, uint64_t page) noexcept nogil:
    cdef uint32_t *leaf = _leaf(table, page // TABLE_LEAF_PAGES)
    return 0 if leaf == NULL else leaf[page % TABLE_LEAF_PAGES]


cdef void *_made(void **slot, size_t size) noexcept nogil:
    """What the slot holds, made (all zero) if it holds nothing; NULL without memory."""
    if slot[0] == NULL:
        slot[0] = arena_take(size)
    return slot[0]


cdef uint32_t *table_leaf(PageTable *table, uint64_t page) noexcept nogil:
    """The leaf that holds the page, made if need be; NULL without memory or above the user's addresses."""
    cdef uint64_t number = page // TABLE_LEAF_PAGES
    cdef TableNode *node
    cdef uint32_t *leaf = _leaf(table, number)
    if leaf != NULL or number >= TABLE_LEAVES:
        return leaf
    node = <TableNode *>_made(<void **>&table.tops[number >> 18], sizeof(TableNode))
    if node != NULL:
        node = <TableNode *>_made(&node.children[(number >> 9) % TABLE_FANOUT], sizeof(TableNode))
    if node == NULL:
        return NULL
    leaf = <uint32_t *>_made(&node.children[number % TABLE_FANOUT], LEAF_BYTES)
    table.leaf_count += leaf != NULL
    return leaf


cdef int table_set(PageTable *table, uint64_t page, uint32_t value) noexcept nogil:
    """Returns 0, or -ENOMEM."""
    cdef uint32_t *leaf = _leaf(table, page // TABLE_LEAF_PAGES)
    if leaf == NULL and value == 0:
        return 0
    if leaf == NULL:
        leaf = table_leaf(table, page)
    if leaf == NULL:
        return -12
    leaf[page % TABLE_LEAF_PAGES] = value
    return 0


cdef uint32_t *table_next(PageTable *table, uint64_t *page) noexcept nogil:
    """The leaf that holds *page, or the first one above it; *page moves on to its start then. NULL past the last."""
    cdef uint64_t number = page[0] // TABLE_LEAF_PAGES
    cdef TableNode *node
    while number < TABLE_LEAVES:
        node = _node(table, number)
        if table.tops[number >> 18] == NULL:
            number = ((number >> 18) + 1) << 18
        elif node == NULL:
            number = ((number >> 9) + 1) << 9
        elif node.children[number % TABLE_FANOUT] == NULL:
            number += 1
        else:
            page[0] = max(page[0], number * TABLE_LEAF_PAGES)
            return <uint32_t *>node.children[number % TABLE_FANOUT]
    return NULL


cdef int32_t table_removed_for(const uint32_t *leaf, uint32_t now) noexcept nogil:
    """For how many ms the leaf has known of an EVENT_REMOVE; 0 where none has hit it of late. A stamp may be ahead of
    `now`, by the bit that sets it apart from 0: that is no age."""
    return max(<int32_t>(now - leaf[TABLE_REMOVED]), <int32_t>0) if leaf[TABLE_REMOVED] != 0 else 0


cdef void table_visit(PageTable *table, uint64_t page, uint64_t count,
                      table_visitor visit, void *context) noexcept nogil:
    """Visits what has a leaf among `count` pages from `page` on."""
    cdef uint64_t end = page + count
    cdef uint64_t part
    cdef uint32_t *leaf
    while page < end:
        leaf = table_next(table, &page)
        if leaf == NULL or page >= end:
            return
        part = min(end - page, TABLE_LEAF_PAGES - page % TABLE_LEAF_PAGES)
        visit(context, page, &leaf[page % TABLE_LEAF_PAGES], part)
        page += part
