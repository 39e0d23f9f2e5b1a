# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings: which of a program's memory the engine takes into its care.

Private anonymous memory is, whatever its protection is now: pages cannot be moved out of a mapping that is not
writable or is locked (the kernel says so), but its first touches count, and its protection may change.
Everything else (files, shared memory, huge pages of hugetlbfs, the main stack) stays the kernel's.

A mapping is registered and then looked at for present pages, both under Mm.lock. An event of the program that
comes in between stays unread until we are done, and its maker waits, so what we mark PRESENT is present or is
given back by an event that we read later.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fgets, fopen, snprintf, sscanf
from libc.string cimport strncmp, strstr

from userswap.mm cimport engine_stop, mm_forget
from userswap.pagetable cimport table_get, table_set
from userswap.ranges cimport ranges_add, ranges_end, ranges_hit
from userswap.system cimport (
    PROCMAP_QUERY_FILE_BACKED_VMA,
    PROCMAP_QUERY_VMA_SHARED,
    page_region,
    procmap_query,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_next_mapping,
    sys_now_us,
    sys_pagemap_present,
    sys_uffd_register,
    sys_uffd_settled,
)
from userswap.types cimport AGE_READAHEAD, PAGE_BYTES, PAGE_SHIFT, present_value

cdef enum:
    REGIONS = 64
    LEAST_BYTES = 65536         # smaller mappings are not worth a system call
    USER_END_SHIFT = 47
    QUIET_US = 100000           # after EVENT_REMOVE, until what it removed is gone


cdef bint _ours(Mm *mm, procmap_query *mapping) noexcept nogil:
    cdef int at
    for at in range(4):
        if mapping.vma_start < mm.helper.own_end[at] and mm.helper.own_start[at] < mapping.vma_end:
            return True
    return False


cdef bint _eligible(Mm *mm, procmap_query *mapping, const char *name) noexcept nogil:
    if mapping.vma_flags & (PROCMAP_QUERY_VMA_SHARED | PROCMAP_QUERY_FILE_BACKED_VMA):
        return False
    if mapping.vma_page_size != PAGE_BYTES or mapping.vma_end - mapping.vma_start < LEAST_BYTES:
        return False
    if name[0] == c'[' and strncmp(name, b"[heap", 5) != 0 and strncmp(name, b"[anon", 5) != 0:
        return False
    return not _ours(mm, mapping)


cdef bint _covered(Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    return ranges_end(&mm.ranges, start) >= end


cdef void _mark_present(Engine *engine, Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """Marks what is present in [start, end), in bytes, and was not known."""
    cdef page_region regions[64]
    cdef uint64_t at = start
    cdef uint64_t page
    cdef long count, region
    while at < end:
        count = sys_pagemap_present(mm.pagemap, &at, end, regions, REGIONS)
        if count < 0:
            return
        for region in range(count):
            for page in range(regions[region].start >> PAGE_SHIFT, regions[region].end >> PAGE_SHIFT):
                if table_get(mm.table, page) != 0:
                    continue
                if table_set(mm.table, page, present_value(AGE_READAHEAD, 0)) != 0:
                    engine_stop(engine, b"no memory for a page table", 0)
                    return
                mm.present += 1


cdef void _forget_uncovered(Engine *engine, Mm *mm, uint64_t page, uint64_t end) noexcept nogil:
    """What a table knows of pages outside its ranges is of a mapping that is gone."""
    cdef uint32_t at = 0
    while page < end:
        while at < mm.ranges.count and mm.ranges.items[at].end <= page:
            at += 1
        if at == mm.ranges.count or mm.ranges.items[at].start >= end:
            mm_forget(engine, mm, page, end - page)
            return
        if mm.ranges.items[at].start > page:
            mm_forget(engine, mm, page, mm.ranges.items[at].start - page)
        page = mm.ranges.items[at].end


cdef void mappings_unshared(Engine *engine, Mm *mm) noexcept nogil:
    """Notes which mappings a fork does not copy (MADV_DONTFORK, MADV_WIPEONFORK): only smaps tells. An mm without
    a helper knows what it has inherited. Mm.lock is held; a fork is under way."""
    cdef char line[512]
    cdef unsigned long start = 0, end = 0
    cdef int result = 0
    cdef FILE *smaps
    if not mm.entered:
        return
    snprintf(line, sizeof(line), b"/proc/%d/smaps", <int>mm.helper.pid)
    smaps = fopen(line, b"re")
    if smaps == NULL:
        return
    mm.unforked.count = 0
    mm.wiped.count = 0
    while fgets(line, sizeof(line), smaps) != NULL and result == 0:
        if strncmp(line, b"VmFlags:", 8) == 0:
            if strstr(line, b" dc") != NULL:
                result = ranges_add(&mm.unforked, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
            elif strstr(line, b" wf") != NULL:
                result = ranges_add(&mm.wiped, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        elif line[0] < c'A' or line[0] > c'Z':
            sscanf(line, b"%lx-%lx", &start, &end)
    if result != 0:
        engine_stop(engine, b"no memory for a page table", 0)
    fclose(smaps)


cdef void _register(Engine *engine, Mm *mm, procmap_query *mapping) noexcept nogil:
    cdef uint64_t start = mapping.vma_start
    cdef uint64_t end = mapping.vma_end
    if sys_uffd_register(mm.uffd, start, end - start) != 0:
        return
    _forget_uncovered(engine, mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    ranges_add(&mm.ranges, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    _mark_present(engine, mm, start, end)


cdef int mappings_register(Engine *engine, Mm *mm) noexcept nogil:
    """Registers the mappings that are not yet. Returns how many there were.

    While an event is under way the table may speak of what was at an address before: then it waits as well.
    A mapping of which a part is known already has been registered all the time, so that its rest may hold pages
    which an event has removed from our table but the kernel not yet from the mapping: it waits for quiet."""
    cdef procmap_query mapping
    cdef char name[4352]        # the kernel refuses a shorter one than the name
    cdef uint64_t at = 0
    cdef int registered = 0
    cdef bint again = False
    mm.rescan = False
    mm.scanned_at = sys_now_us()
    while at < <uint64_t>1 << USER_END_SHIFT and sys_next_mapping(mm.maps, at, &mapping, name, sizeof(name)) == 0:
        at = mapping.vma_end
        if not _eligible(mm, &mapping, name):
            continue
        pthread_mutex_lock(&mm.lock)
        if not _covered(mm, mapping.vma_start >> PAGE_SHIFT, mapping.vma_end >> PAGE_SHIFT):
            if not sys_uffd_settled(mm.uffd) or (
                    sys_now_us() - mm.removed_at < QUIET_US and _partly_known(mm, &mapping)):
                again = True
            else:
                _register(engine, mm, &mapping)
                registered += 1
        pthread_mutex_unlock(&mm.lock)
    if again:
        mm.rescan = True
    return registered


cdef bint _partly_known(Mm *mm, procmap_query *mapping) noexcept nogil:
    return ranges_hit(&mm.ranges, mapping.vma_start >> PAGE_SHIFT, mapping.vma_end >> PAGE_SHIFT)
