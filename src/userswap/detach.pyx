# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching: a process gets all its pages back, and then nothing of us is left in it.

 1. No page of it is evicted and no mapping registered any more (Mm.detaching).
 2. All swapped pages are brought back, as by faults that do not wait for room.
 3. Under Mm.lock, with no event under way and no page swapped: its ranges are unregistered. From here on its faults
    are the kernel's again, and what it does is told nobody.
 4. Huge pages are made again where the kernel would have made them; the helper goes, and the address space is
    forgotten.

Who can run at the same moment, and what they see. The program runs all the time. While pages come back it may touch,
give back or move them, and fork, which fault threads and whoever else reads its events see to as ever: 3 is tried
again until nothing is left to be brought back. What it does after 3 concerns pages that are its own alone. A child
that it forked before is an address space of its own, and stays with the engine; one that it forks in the middle of 3
may have ranges registered, but no swapped page, so that its descriptor may be closed."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fgets, fopen, snprintf, sscanf
from libc.string cimport strncmp
from posix.unistd cimport close

from userswap.desk cimport desk_remove
from userswap.events cimport events_await_parent, events_drain
from userswap.fault cimport worker_free, worker_make
from userswap.fill cimport fill_page
from userswap.inject cimport USERSWAP_MADVISE, helper_call, helper_end
from userswap.mm cimport Mm, Worker, mm_end, mm_get, mm_put, mms_unclaimed
from userswap.pagetable cimport TABLE_LEAF_PAGES, table_next
from userswap.processes cimport Process, tree_find_again, tree_leave_out
from userswap.ranges cimport ranges_hit
from userswap.system cimport (
    EAGAIN,
    ECANCELED,
    ENOMEM,
    ESRCH,
    load_u32,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_flag,
    sys_available_pages,
    sys_crash_point,
    sys_process_dead,
    sys_reads_deinit,
    sys_reads_init,
    sys_sleep_us,
    sys_uffd_settled,
    sys_uffd_unregister,
)
from userswap.types cimport PAGE_SHIFT, is_busy, is_present, is_swapped

cdef enum:
    MARGIN_PAGES = 8192         # of memory that are to be left when all has come back
    COLLAPSE = 25               # MADV_COLLAPSE, Linux 6.1
    HUGE_PAGES = 512            # pages in a huge page
    WAIT_US = 1000
    LATER = 0xffffffff


# ---- bringing everything back

cdef bint _next_out(Mm *mm, uint64_t *page) noexcept nogil:
    """The first page from *page on that is not there, or just on its way. Mm.lock is held."""
    cdef uint32_t *leaf
    while True:
        leaf = table_next(mm.table, page)
        if leaf == NULL:
            return False
        while True:
            if is_swapped(leaf[page[0] % TABLE_LEAF_PAGES]) or is_busy(leaf[page[0] % TABLE_LEAF_PAGES]):
                return True
            page[0] += 1
            if page[0] % TABLE_LEAF_PAGES == 0:
                break


cdef int _bring_back(Worker *worker, Mm *mm) noexcept nogil:
    """All that is swapped. Returns 0, or -ECANCELED when the run ends or cannot go on."""
    cdef Engine *engine = worker.engine
    cdef uint64_t page = 0
    cdef uint32_t *leaf
    cdef int result
    while True:
        if engine.stopping or engine.reason[0] != 0:
            return -ECANCELED
        result = -EAGAIN
        pthread_mutex_lock(&mm.lock)
        if mm.dead or not _next_out(mm, &page):
            pthread_mutex_unlock(&mm.lock)
            return 0
        leaf = table_next(mm.table, &page)
        if is_swapped(leaf[page % TABLE_LEAF_PAGES]):
            result = fill_page(worker, mm, page << PAGE_SHIFT, True)
            page += 1       # what could not be put in place is found in the next round
        pthread_mutex_unlock(&mm.lock)
        if result == -EAGAIN:
            events_drain(engine, mm, NULL)


# ---- letting go of the address space

cdef bint _is_all_there(Mm *mm) noexcept nogil:
    """Mm.lock is held."""
    cdef uint64_t page = 0
    return not _next_out(mm, &page)


cdef int _unregister(Worker *worker, Mm *mm) noexcept nogil:
    """Returns 0, or -ECANCELED."""
    cdef uint32_t at
    cdef int result
    cdef bint done = False
    while not done:
        result = _bring_back(worker, mm)
        if result != 0:
            return result
        pthread_mutex_lock(&mm.lock)
        done = mm.dead or (sys_uffd_settled(mm.uffd) and _is_all_there(mm))
        if done:
            store_flag(&mm.detached, True)
            for at in range(mm.ranges.count):
                sys_uffd_unregister(mm.uffd, mm.ranges.items[at].start << PAGE_SHIFT,
                                    (mm.ranges.items[at].end - mm.ranges.items[at].start) << PAGE_SHIFT)
            if mm.entered:
                sys_uffd_unregister(mm.uffd, mm.helper.staging, mm.helper.staging_length)
            sys_crash_point(b"detach-unregistered")
        pthread_mutex_unlock(&mm.lock)
        if not done:
            events_drain(worker.engine, mm, NULL)
    return 0


# ---- huge pages

cdef bint _is_full(Mm *mm, uint64_t page) noexcept nogil:
    """Whether all of a huge page is there, and was in our care."""
    cdef uint64_t at = page
    cdef uint32_t *leaf = table_next(mm.table, &at)
    cdef uint32_t index
    if leaf == NULL or at != page:
        return False
    for index in range(HUGE_PAGES):
        if not is_present(leaf[index]):
            return False
    return True


cdef void _make_huge(Mm *mm, uint64_t start, uint64_t end) noexcept nogil:
    """Of a mapping for which the kernel would do so, in pages."""
    cdef uint64_t page = (start + HUGE_PAGES - 1) // HUGE_PAGES * HUGE_PAGES
    while page + HUGE_PAGES <= end:
        if _is_full(mm, page):
            mm.helper.mailbox.items[0].src = page << PAGE_SHIFT
            mm.helper.mailbox.items[0].len = <uint64_t>HUGE_PAGES << PAGE_SHIFT
            mm.helper.mailbox.items[0].dst = COLLAPSE
            mm.helper.mailbox.request = USERSWAP_MADVISE
            mm.helper.mailbox.count = 1
            if helper_call(&mm.helper) != 0:
                return
        page += HUGE_PAGES


cdef void _restore_huge_pages(Mm *mm) noexcept nogil:
    """Where smaps says that the kernel makes some. Mm.helper_lock is held."""
    cdef char line[512]
    cdef unsigned long start = 0, end = 0
    cdef int eligible = 0
    cdef FILE *smaps
    snprintf(line, sizeof(line), b"/proc/%d/smaps", <int>mm.helper.pid)
    smaps = fopen(line, b"re")
    if smaps == NULL:
        return
    while fgets(line, sizeof(line), smaps) != NULL:
        if line[0] < c'A' or line[0] > c'Z':
            sscanf(line, b"%lx-%lx", &start, &end)
        elif strncmp(line, b"THPeligible:", 12) == 0 and sscanf(line + 12, b"%d", &eligible) == 1 and eligible:
            if ranges_hit(&mm.ranges, start >> PAGE_SHIFT, end >> PAGE_SHIFT):
                _make_huge(mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    fclose(smaps)


# ---- all of it

cdef int64_t _lacking(Mm *mm) noexcept nogil:
    """How many pages of memory there are too few to hold all that is swapped; 0 if it can."""
    return max(mm.swapped + MARGIN_PAGES - sys_available_pages(), <int64_t>0)


cdef int _let_go(Engine *engine, Mm *mm) noexcept nogil:
    """The helper goes, and all that is known of the address space. Returns 0 or -EAGAIN: a zombie was left.
    Mm.helper_lock is held."""
    cdef int result = 0
    if not mm.entered:
        return 0
    if not sys_process_dead(mm.helper.pidfd):
        _restore_huge_pages(mm)
        pthread_mutex_lock(&engine.desk_lock)
        result = desk_remove(engine.desk, &engine.stopping, &mm.helper)
        pthread_mutex_unlock(&engine.desk_lock)
    pthread_mutex_lock(&mm.lock)
    mm.entered = False
    pthread_mutex_unlock(&mm.lock)
    close(mm.maps)
    close(mm.pagemap)
    helper_end(&mm.helper)
    return result


cdef int _detach(Engine *engine, Mm *mm) noexcept nogil:
    cdef Worker *worker = worker_make(engine)
    cdef int result
    if worker == NULL:
        return -ENOMEM
    worker.unbounded = True
    sys_reads_init(&worker.reads, NULL)
    if mm.unsettled:
        events_await_parent(engine, mm)
    pthread_mutex_lock(&mm.helper_lock)     # nobody is evicting it any more
    result = _unregister(worker, mm)
    if result == 0:
        result = _let_go(engine, mm)
        mm_end(engine, mm)
    pthread_mutex_unlock(&mm.helper_lock)
    sys_reads_deinit(&worker.reads)
    worker_free(worker)
    return result


cdef uint32_t _mm_of(Engine *engine, pid_t pid, bint *found) noexcept nogil:
    """Whether the process is of the tree, and its address space: 0 if it has none with us, LATER if that is still to be
    found out."""
    cdef uint32_t at
    cdef uint32_t mm_id = 0
    cdef bint strange = mms_unclaimed(engine)
    cdef Process *process
    found[0] = False
    pthread_mutex_lock(&engine.tree.lock)
    for at in range(engine.tree.all.count):
        process = engine.tree.all.items[at]
        if process.pid != pid or process.gone:
            continue
        found[0] = True
        mm_id = process.mm_id
        if process.entering:
            mm_id = LATER
        elif strange and mm_id == 0 and not process.left_alone and not process.shares and not process.helper:
            process.wanted = True       # a fork may have made its address space ours
            mm_id = LATER
        else:
            process.left_alone = True   # it is not to be entered any more
    pthread_mutex_unlock(&engine.tree.lock)
    return mm_id


cdef void _find_children(Engine *engine) noexcept nogil:
    """Those that a process has started are known before it is forgotten itself: their memory may be ours since."""
    cdef uint32_t seen
    if engine.counters.forks == 0:
        return
    tree_find_again(&engine.tree)
    seen = load_u32(&engine.samples)
    while load_u32(&engine.samples) - seen < 2 and not engine.stopping:
        sys_sleep_us(WAIT_US)


cdef int detach_process(Engine *engine, pid_t pid, int64_t *lacking) noexcept nogil:
    """Returns 0; -ESRCH when the process is not of the tree; -ENOMEM at once when memory cannot hold what it has
    swapped, with the pages that are lacking in *lacking; -EAGAIN when it was done, but a zombie was left; -ECANCELED
    when the run ended, or cannot go on. One thread at a time."""
    cdef bint found
    cdef uint32_t mm_id = _mm_of(engine, pid, &found)
    cdef Mm *mm
    cdef int result = 0
    lacking[0] = 0
    while mm_id == LATER:
        if engine.stopping or engine.reason[0] != 0:
            return -ECANCELED
        sys_sleep_us(WAIT_US)
        mm_id = _mm_of(engine, pid, &found)
    if not found:
        return -ESRCH
    mm = mm_get(engine, mm_id) if mm_id != 0 else NULL
    if mm != NULL:
        lacking[0] = _lacking(mm)
        if lacking[0] == 0:
            mm.detaching = True
            result = _detach(engine, mm)
        mm_put(engine, mm)
    if lacking[0] != 0:
        return -ENOMEM
    if result == 0 or result == -EAGAIN:
        _find_children(engine)
        tree_leave_out(&engine.tree, pid)
    return result
