# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings: which of a program's memory the engine takes into its care.

Private anonymous memory is, whatever its protection is now: pages cannot be moved out of a mapping that is not
writable, is executable or is locked (the kernel says so), but its first touches count, and its protection may change.
Everything else (files, shared memory, huge pages of hugetlbfs, the main stack) stays the kernel's.

A mapping is registered and then looked at for present pages, both under Mm.lock. An event of the program that
comes in between stays unread until we are done, and its maker waits, so what we mark PRESENT is present or is
given back by an event that we read later.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fgets, fopen, snprintf, sscanf
from libc.string cimport memset, strncmp, strstr
from posix.types cimport pid_t

from userswap.mm cimport WHOLE_TABLE_BITS, engine_stop, mm_forget, mm_is_there, mm_removed
from userswap.pagetable cimport (
    TABLE_LEAF_PAGES,
    TABLE_REMOVED,
    table_get,
    table_leaf,
    table_next,
    table_removed_for,
    table_set,
)
from userswap.ranges cimport (
    Range,
    Ranges,
    ranges_add,
    ranges_copy,
    ranges_end,
    ranges_free,
    ranges_hit,
    ranges_move,
    ranges_remove,
)
from userswap.system cimport (
    DIR,
    EAGAIN,
    ESRCH,
    PAGE_IS_PFNZERO,
    PAGE_IS_WRITTEN,
    PROCMAP_QUERY_FILE_BACKED_VMA,
    PROCMAP_QUERY_VMA_SHARED,
    SYS_madvise,
    SYS_process_madvise,
    closedir,
    page_region,
    procmap_query,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u64,
    sys_crash_point,
    sys_next_mapping,
    sys_next_task,
    sys_now_us,
    sys_open_tasks,
    sys_page_absent,
    sys_pagemap_scan,
    sys_since_us,
    sys_uffd_protect,
    sys_uffd_register,
    sys_uffd_settled,
    sys_waiting_call,
)
from userswap.trace cimport TRACE_FOUND, trace_span
from userswap.types cimport AGE_READAHEAD, PAGE_BYTES, PAGE_SHIFT, is_swapped, present_value

cdef enum:
    REGIONS = 64
    USER_END_SHIFT = 47
    GONE_MS = 1000              # after EVENT_REMOVE, until what it removed is surely gone, if it goes at all


cdef bint _ours(Mm *mm, procmap_query *mapping) noexcept nogil:
    cdef int at
    for at in range(4):
        if mapping.vma_start < mm.helper.own_end[at] and mm.helper.own_start[at] < mapping.vma_end:
            return True
    return False


cdef bint _eligible(Mm *mm, procmap_query *mapping, const char *name) noexcept nogil:
    if mapping.vma_flags & (PROCMAP_QUERY_VMA_SHARED | PROCMAP_QUERY_FILE_BACKED_VMA):
        return False
    if mapping.vma_page_size != PAGE_BYTES:
        return False
    if name[0] == c'[' and strncmp(name, b"[heap", 5) != 0 and strncmp(name, b"[anon", 5) != 0:
        return False
    return not _ours(mm, mapping)


cdef bint _covered(Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    return ranges_end(&mm.ranges, start) >= end


cdef void _protect_zeros(Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """Write-protects what maps the shared zero page (memory that was only read so far): a write to it allocates
    and, unlike a first touch, would tell nobody. What is written to meanwhile is protected as well: its next write
    is told, once."""
    cdef page_region regions[64]
    cdef uint64_t at = start
    cdef long count = 1
    cdef long region
    while at < end and count > 0:
        count = sys_pagemap_scan(mm.pagemap, True, &at, end, regions, REGIONS)
        for region in range(count):
            sys_uffd_protect(mm.uffd, regions[region].start, regions[region].end - regions[region].start)


cdef void _mark_region(Engine *engine, Mm *mm, page_region *region) noexcept nogil:
    """The zero page, protected, is a clean page whose copy is the entry of zeros."""
    cdef uint64_t page
    cdef uint32_t value = present_value(AGE_READAHEAD, 0)
    if region.categories & PAGE_IS_PFNZERO and not region.categories & PAGE_IS_WRITTEN:
        value = present_value(AGE_READAHEAD, engine.zero_offset)
    trace_span(engine.trace, TRACE_FOUND, mm.id, region.start >> PAGE_SHIFT, (region.end - region.start) >> PAGE_SHIFT)
    for page in range(region.start >> PAGE_SHIFT, region.end >> PAGE_SHIFT):
        if table_get(mm.table, page) != 0:
            continue
        if table_set(mm.table, page, value) != 0:
            engine_stop(engine, b"no memory for a page table", 0)
            return
        mm.present += 1


cdef void _mark_present(Engine *engine, Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """Marks what is present in [start, end), in bytes, and was not known."""
    cdef page_region regions[64]
    cdef uint64_t at = start
    cdef long count, region
    _protect_zeros(mm, start, end)
    while at < end:
        count = sys_pagemap_scan(mm.pagemap, False, &at, end, regions, REGIONS)
        if count < 0:
            return
        for region in range(count):
            _mark_region(engine, mm, &regions[region])


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
        engine_stop(engine, b"what a fork copies cannot be read of process", mm.pid)
        return
    ranges_free(&mm.unforked)
    ranges_free(&mm.wiped)
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


cdef int _protect(int uffd, uint64_t page, uint64_t end) noexcept nogil:
    return sys_uffd_protect(uffd, page << PAGE_SHIFT, (end - page) << PAGE_SHIFT) if page < end else 0


cdef bint mappings_protect(Mm *mm, int uffd) noexcept nogil:
    """Write-protects all that is present, by the mm's userfaultfd or a child's: a write to what a fork has left shared
    is told from now on. But not what is spared: the kernel's own writes there cannot be told. False while an event is
    under way: then it is to be done later. Mm.lock is held."""
    cdef uint32_t at
    cdef uint32_t spared = 0
    cdef uint64_t page
    cdef Range *part
    for at in range(mm.ranges.count):
        part = &mm.ranges.items[at]
        page = part.start
        while spared < mm.spared.count and mm.spared.items[spared].end <= page:
            spared += 1
        while spared < mm.spared.count and mm.spared.items[spared].start < part.end:
            if _protect(uffd, page, mm.spared.items[spared].start) == -EAGAIN:
                return False
            page = mm.spared.items[spared].end
            if page >= part.end:        # it may reach into the next one
                break
            spared += 1
        if _protect(uffd, page, part.end) == -EAGAIN:
            return False
    return True


cdef int _registered(Mm *mm, Ranges *registered) noexcept nogil:
    """What the kernel says is registered. Returns 0 or -errno."""
    cdef char line[512]
    cdef unsigned long start = 0, end = 0
    cdef int result = 0
    cdef FILE *smaps
    snprintf(line, sizeof(line), b"/proc/%d/smaps", <int>mm.helper.pid)
    smaps = fopen(line, b"re")
    if smaps == NULL:
        return -ESRCH
    while fgets(line, sizeof(line), smaps) != NULL and result == 0:
        if strncmp(line, b"VmFlags:", 8) == 0 and strstr(line, b" um") != NULL:
            result = ranges_add(registered, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
        elif line[0] < c'A' or line[0] > c'Z':
            sscanf(line, b"%lx-%lx", &start, &end)
    fclose(smaps)
    return result


cdef bint mappings_verify(Engine *engine, Mm *mm) noexcept nogil:
    """Takes back what a fork child is thought to have registered and has not: before it had a helper nobody could
    tell what its parent had kept from it by MADV_DONTFORK. False while an event is under way: read it first."""
    cdef Ranges registered
    cdef uint64_t at = 0
    cdef uint32_t number
    cdef bint settled
    memset(&registered, 0, sizeof(Ranges))
    pthread_mutex_lock(&mm.lock)
    settled = sys_uffd_settled(mm.uffd) and _registered(mm, &registered) == 0 and sys_uffd_settled(mm.uffd)
    if settled:
        mappings_settle_doubts(engine, mm)
        for number in range(registered.count):
            _take_back(engine, mm, at, registered.items[number].start)
            at = registered.items[number].end
        _take_back(engine, mm, at, <uint64_t>1 << (USER_END_SHIFT - PAGE_SHIFT))
    pthread_mutex_unlock(&mm.lock)
    ranges_free(&registered)
    return settled


cdef void _take_back(Engine *engine, Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    if start < end:
        mm_forget(engine, mm, start, end - start)
        ranges_remove(&mm.ranges, start, end)


cdef bint _is_whole(Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """Whether one mapping covers all of it: a part may have been unmapped since we looked, and told of before."""
    cdef procmap_query mapping
    return sys_next_mapping(mm.maps, start, &mapping, NULL, 0) == 0 and (
        mapping.vma_start <= start and end <= mapping.vma_end)


cdef bint _register(Engine *engine, Mm *mm, procmap_query *mapping) noexcept nogil:
    """A mapping of which a part is known has been registered all the time, and grew: each of its pages came by a fault
    that we have answered. What is present there and not known has just been given back, and is about to go.

    False if an event has come under way: the mapping may have been moved here since we saw another one. Then nothing is
    known of it before that is read, or it would be taken for one that is still to be unmapped (_note_taken)."""
    cdef uint64_t start = mapping.vma_start
    cdef uint64_t end = mapping.vma_end
    cdef bint grown = ranges_hit(&mm.ranges, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    if sys_uffd_register(mm.uffd, start, end - start) != 0:
        return True
    sys_crash_point(b"register-registered")
    if ranges_copy(&mm.before, &mm.ranges) != 0:
        return False
    mm.before_start = start >> PAGE_SHIFT
    store_u64(&mm.before_end, end >> PAGE_SHIFT)
    _forget_uncovered(engine, mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    ranges_add(&mm.ranges, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    sys_crash_point(b"register-added")
    if not grown:
        _mark_present(engine, mm, start, end)
    if _is_whole(mm, start, end) and sys_uffd_settled(mm.uffd):
        sys_crash_point(b"register-marked")
        store_u64(&mm.before_end, 0)
        ranges_free(&mm.before)
        return True
    mappings_unregister_last(engine, mm)
    return False


cdef void mappings_unregister_last(Engine *engine, Mm *mm) noexcept nogil:
    """Forgets of the last mapping what was not known before it was registered. Mm.lock is held."""
    ranges_move(&mm.ranges, &mm.before)
    _forget_uncovered(engine, mm, mm.before_start, mm.before_end)
    store_u64(&mm.before_end, 0)
    memset(&mm.before, 0, sizeof(Ranges))


cdef void mappings_settle_doubts(Engine *engine, Mm *mm) noexcept nogil:
    """There is a helper now, and so a way to tell which pages are present. Mm.lock is held."""
    cdef uint64_t page
    cdef uint32_t number
    cdef Ranges doubts
    memset(&doubts, 0, sizeof(Ranges))
    if ranges_copy(&doubts, &mm.doubtful) != 0:
        return
    for number in range(doubts.count):
        for page in range(doubts.items[number].start, doubts.items[number].end):
            if is_swapped(table_get(mm.table, page)) and sys_page_absent(mm.pagemap, page) == 0:
                mm_is_there(engine, mm, page)
    ranges_free(&doubts)
    ranges_free(&mm.doubtful)


cdef void mappings_look_again(Engine *engine, Mm *mm) noexcept nogil:
    """Pages that are present and not known, as an engine before has put them in place and not noted that any more, are
    found by mappings_promote a while later."""
    cdef page_region regions[64]
    cdef uint64_t at, end, page
    cdef uint32_t number
    cdef long count, region
    pthread_mutex_lock(&mm.lock)
    for number in range(mm.ranges.count):
        at = mm.ranges.items[number].start << PAGE_SHIFT
        end = mm.ranges.items[number].end << PAGE_SHIFT
        while at < end:
            count = sys_pagemap_scan(mm.pagemap, False, &at, end, regions, REGIONS)
            if count < 0:
                break
            for region in range(count):
                page = regions[region].start >> PAGE_SHIFT
                while page < regions[region].end >> PAGE_SHIFT:
                    table_leaf(mm.table, page)
                    page += TABLE_LEAF_PAGES
                table_leaf(mm.table, (regions[region].end >> PAGE_SHIFT) - 1)
    mm_removed(mm, 0, <uint64_t>1 << WHOLE_TABLE_BITS)
    mm.found = False
    pthread_mutex_unlock(&mm.lock)


cdef void _promote_leaf(Engine *engine, Mm *mm, uint64_t page, uint32_t *leaf) noexcept nogil:
    cdef page_region regions[64]
    cdef uint64_t at = page << PAGE_SHIFT
    cdef uint64_t end = (page + TABLE_LEAF_PAGES) << PAGE_SHIFT
    cdef uint64_t place
    cdef long count = 1
    cdef long region
    leaf[TABLE_REMOVED] = 0
    while at < end and count > 0:
        count = sys_pagemap_scan(mm.pagemap, False, &at, end, regions, REGIONS)
        for region in range(count):
            for place in range(regions[region].start >> PAGE_SHIFT, regions[region].end >> PAGE_SHIFT):
                if leaf[place - page] == 0 and ranges_hit(&mm.ranges, place, place + 1):
                    leaf[place - page] = present_value(AGE_READAHEAD, 0)
                    mm.present += 1


cdef bint _is_giving_back(Mm *mm) noexcept nogil:
    """Whether a thread waits amid a call that gives pages back, having told us."""
    cdef DIR *tasks = sys_open_tasks(mm.pid)
    cdef pid_t tid
    cdef long number
    cdef bint found = False
    while tasks != NULL and not found:
        tid = sys_next_task(tasks)
        if tid == 0:
            break
        number = sys_waiting_call(mm.pid, tid)
        found = number == SYS_madvise or number == SYS_process_madvise
    if tasks != NULL:
        closedir(tasks)
    return found


cdef void mappings_promote(Engine *engine, Mm *mm) noexcept nogil:
    """Pages that MADV_FREE has given back and that are still there, perhaps written to again, are taken for present
    after a while. (The event is the same for MADV_DONTNEED, whose pages the kernel drops when the caller gets to
    run after we have read it; hence the while.)"""
    cdef uint64_t page = 0
    cdef uint32_t *leaf
    cdef bint looked = False
    pthread_mutex_lock(&mm.lock)
    while mm.removed_at != 0 and sys_uffd_settled(mm.uffd):
        leaf = table_next(mm.table, &page)
        if leaf == NULL:
            break
        page -= page % TABLE_LEAF_PAGES
        if table_removed_for(leaf, <uint32_t>(sys_now_us() // 1000)) > GONE_MS:
            if not looked and _is_giving_back(mm):
                break
            looked = True
            _promote_leaf(engine, mm, page, leaf)
        page += TABLE_LEAF_PAGES
    pthread_mutex_unlock(&mm.lock)


cdef int mappings_register_caught(Mm *child) noexcept nogil:
    """Of a fork's child that has a helper, and has not run yet: registers all that may be, and write-protects what is
    present. What is known of its pages is its parent's word. 0, or -EAGAIN where swapped memory could not be."""
    cdef procmap_query mapping
    cdef char name[4352]
    cdef uint64_t at = 0
    while at < <uint64_t>1 << USER_END_SHIFT and sys_next_mapping(child.maps, at, &mapping, name, sizeof(name)) == 0:
        at = mapping.vma_end
        if not _eligible(child, &mapping, name):
            continue
        if sys_uffd_register(child.uffd, mapping.vma_start, at - mapping.vma_start) == 0:
            sys_uffd_protect(child.uffd, mapping.vma_start, at - mapping.vma_start)
        elif ranges_hit(&child.ranges, mapping.vma_start >> PAGE_SHIFT, at >> PAGE_SHIFT):
            return -EAGAIN
    return 0


cdef uint64_t _register_if_new(Engine *engine, Mm *mm, procmap_query *mapping, int *registered) noexcept nogil:
    """Returns where the next mapping is to be looked for: behind all that is known to be registered from here on."""
    cdef uint64_t end
    pthread_mutex_lock(&mm.lock)
    if not _covered(mm, mapping.vma_start >> PAGE_SHIFT, mapping.vma_end >> PAGE_SHIFT):
        if sys_uffd_settled(mm.uffd) and _register(engine, mm, mapping):
            registered[0] += 1
        else:
            mm.rescan = True
    end = ranges_end(&mm.ranges, mapping.vma_start >> PAGE_SHIFT) << PAGE_SHIFT
    pthread_mutex_unlock(&mm.lock)
    return max(mapping.vma_end, end)


cdef int mappings_register(Engine *engine, Mm *mm) noexcept nogil:
    """Registers the mappings that are not yet. Returns how many there were.

    While an event is under way the table may speak of what was at an address before: then it waits."""
    cdef procmap_query mapping
    cdef char name[4352]        # the kernel refuses a shorter one than the name
    cdef uint64_t at = 0
    cdef int registered = 0
    mm.rescan = False
    mm.scanned_at = sys_now_us()
    while at < <uint64_t>1 << USER_END_SHIFT and sys_next_mapping(mm.maps, at, &mapping, name, sizeof(name)) == 0:
        at = mapping.vma_end
        if _eligible(mm, &mapping, name):
            at = _register_if_new(engine, mm, &mapping, &registered)
    mm.scan_us = sys_since_us(mm.scanned_at)
    return registered
