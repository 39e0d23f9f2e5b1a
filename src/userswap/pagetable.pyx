# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: a radix tree of three levels, 4 bytes a page, made where something is known of a page.

The caller holds the lock of the address space (Mm.lock).
"""

from libc.stdlib cimport calloc, free


cdef PageTable *table_make() noexcept nogil:
    return <PageTable *>calloc(1, sizeof(PageTable))


cdef void table_free(PageTable *table) noexcept nogil:
    cdef uint32_t top, middle
    if table == NULL:
        return
    for top in range(TABLE_FANOUT):
        if table.middles[top] == NULL:
            continue
        for middle in range(TABLE_FANOUT):
            free(table.middles[top].leaves[middle])
        free(table.middles[top])
    free(table)


cdef uint32_t *_leaf_at(PageTable *table, uint64_t number) noexcept nogil:
    cdef TableMiddle *middle
    if number >= <uint64_t>TABLE_FANOUT * TABLE_FANOUT:
        return NULL
    middle = table.middles[number // TABLE_FANOUT]
    return NULL if middle == NULL else middle.leaves[number % TABLE_FANOUT]


cdef uint32_t table_get(PageTable *table, uint64_t page) noexcept nogil:
    cdef uint32_t *leaf = _leaf_at(table, page // TABLE_LEAF_PAGES)
    return 0 if leaf == NULL else leaf[page % TABLE_LEAF_PAGES]


cdef uint32_t *table_leaf(PageTable *table, uint64_t page) noexcept nogil:
    """The leaf that holds the page, made if need be; NULL without memory or above the user's addresses."""
    cdef uint64_t number = page // TABLE_LEAF_PAGES
    cdef TableMiddle *middle
    if number >= <uint64_t>TABLE_FANOUT * TABLE_FANOUT:
        return NULL
    middle = table.middles[number // TABLE_FANOUT]
    if middle == NULL:
        middle = <TableMiddle *>calloc(1, sizeof(TableMiddle))
        if middle == NULL:
            return NULL
        table.middles[number // TABLE_FANOUT] = middle
    if middle.leaves[number % TABLE_FANOUT] == NULL:
        middle.leaves[number % TABLE_FANOUT] = <uint32_t *>calloc(TABLE_LEAF_PAGES, sizeof(uint32_t))
        if middle.leaves[number % TABLE_FANOUT] != NULL:
            table.leaf_count += 1
    return middle.leaves[number % TABLE_FANOUT]


cdef int table_set(PageTable *table, uint64_t page, uint32_t value) noexcept nogil:
    """Returns 0, or -ENOMEM."""
    cdef uint32_t *leaf
    if value == 0:
        leaf = _leaf_at(table, page // TABLE_LEAF_PAGES)
        if leaf != NULL:
            leaf[page % TABLE_LEAF_PAGES] = 0
        return 0
    leaf = table_leaf(table, page)
    if leaf == NULL:
        return -12
    leaf[page % TABLE_LEAF_PAGES] = value
    return 0


cdef void table_visit(PageTable *table, uint64_t page, uint64_t count,
                      table_visitor visit, void *context) noexcept nogil:
    """Visits what has a leaf among `count` pages from `page` on; skips unused gigabytes at a step each."""
    cdef uint64_t end = page + count
    cdef uint64_t part, number
    cdef uint32_t *leaf
    while page < end:
        number = page // TABLE_LEAF_PAGES
        if number >= <uint64_t>TABLE_FANOUT * TABLE_FANOUT:
            return
        if table.middles[number // TABLE_FANOUT] == NULL:
            page = (number // TABLE_FANOUT + 1) * TABLE_FANOUT * TABLE_LEAF_PAGES
            continue
        part = min(end - page, TABLE_LEAF_PAGES - page % TABLE_LEAF_PAGES)
        leaf = _leaf_at(table, number)
        if leaf != NULL:
            visit(context, page, &leaf[page % TABLE_LEAF_PAGES], part)
        page += part
