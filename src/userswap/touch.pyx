# SPDX-License-Identifier: GPL-2.0-or-later
"""First touches, and first writes: faults that are answered without any bytes of ours. Mm.lock is held."""

from libc.stdint cimport int64_t, uint32_t

from userswap.fill cimport fill_unguarded
from userswap.limit cimport room_left, room_take
from userswap.log cimport log_is_young
from userswap.mm cimport copy_of, engine_stop, entry_put, guard_of
from userswap.pagetable cimport table_get, table_set
from userswap.ranges cimport ranges_add, ranges_end
from userswap.readahead cimport Window, readahead_done, readahead_window
from userswap.space cimport space_word
from userswap.system cimport (
    EAGAIN,
    EEXIST,
    ENOENT,
    ESRCH,
    add_i64,
    sys_crash_point,
    sys_uffd_copy,
    sys_uffd_unprotect,
    sys_uffd_wake,
)
from userswap.trace cimport TRACE_TOUCHED, TRACE_WRITTEN, trace_fault
from userswap.types cimport (
    AGE_FRESH,
    AGE_READAHEAD,
    PAGE_BYTES,
    PAGE_SHIFT,
    STORED,
    age_of,
    entry_state,
    is_present,
    offset_of,
    present_value,
    stored_block,
)

cdef enum:
    STREAMING = 16          # a window from which on pages come and go in order


# ---- first touch

cdef void _trim_untouched(Mm *mm, uint64_t page, Window *window) noexcept nogil:
    """Cuts the window down to pages of which nothing is known, in the page's mapping."""
    cdef uint64_t end = min(window.start + window.count, ranges_end(&mm.ranges, page))
    cdef uint64_t low = page
    cdef uint64_t high = page + 1
    while high < end and table_get(mm.table, high) == 0:
        high += 1
    while low > window.start and table_get(mm.table, low - 1) == 0 and ranges_end(&mm.ranges, low - 1) > page:
        low -= 1
    window.start = low
    window.count = <uint32_t>(high - low)


cdef void _mark_touched(Engine *engine, Mm *mm, uint64_t fault, uint64_t page, uint64_t count,
                        uint32_t age) noexcept nogil:
    cdef uint64_t at
    for at in range(page, page + count):
        if table_set(mm.table, at, present_value(age, 0)) != 0:
            engine_stop(engine, b"no memory for a page table", 0)
            return
    if count > 0 and ranges_end(&mm.ranges, page) == page + 1:
        ranges_add(&mm.ranges, page, page + count)       # a mapping that grew where it was
    mm.present += <int64_t>count
    trace_fault(engine.trace, TRACE_TOUCHED, mm.id, fault if page <= fault < page + count else page, page,
                <uint32_t>count)
    room_take(engine, <int64_t>count)
    add_i64(&engine.counters.pages_first_touched, <int64_t>count)


cdef int touch_page(Worker *worker, Mm *mm, uint64_t page) noexcept nogil:
    """Hands out fresh memory, with Mm.lock held. Returns 0, or -EAGAIN when messages are to be read first."""
    cdef Engine *engine = worker.engine
    cdef Window window
    cdef int error = 0
    cdef uint64_t done
    readahead_window(&mm.touches, page << PAGE_SHIFT, &window)
    _trim_untouched(mm, page, &window)
    window.count = fill_unguarded(mm, window.start, page, window.count)
    if window.count == 0 or window.count > room_left(engine):
        window.start = page
        window.count = 1
    done = sys_uffd_copy(mm.uffd, window.start << PAGE_SHIFT, engine.zeros,
                         <uint64_t>window.count << PAGE_SHIFT, False, &error) >> PAGE_SHIFT
    if done == 0 and window.count > 1 and error != -EAGAIN:
        # The mapping has been split, or is not all empty: only the page itself.
        window.start = page
        window.count = 1
        done = sys_uffd_copy(mm.uffd, page << PAGE_SHIFT, engine.zeros, PAGE_BYTES, False, &error) >> PAGE_SHIFT
    sys_crash_point(b"touch-copied")
    _mark_touched(engine, mm, page, window.start, done, AGE_READAHEAD if window.count >= STREAMING else AGE_FRESH)
    window.count = <uint32_t>max(done, <uint64_t>1)
    readahead_done(&mm.touches, &window)
    if window.start <= page < window.start + done:
        return 0
    if error == -EAGAIN:
        return -EAGAIN
    if error == -EEXIST:
        _mark_touched(engine, mm, page, page, 1, AGE_FRESH)
    elif error != -ENOENT and error != -ESRCH and error != 0:
        engine_stop(engine, b"fresh memory could not be handed out", error)
    sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    return 0


# ---- write to a page whose copy was kept

cdef bint touch_takes_page(Engine *engine, Mm *mm, uint32_t value) noexcept nogil:
    """Whether a write to a present page makes a new one: where it maps the shared zero page, or may be shared with a
    relative."""
    return guard_of(engine, value) != 0 and (mm.shared or offset_of(value) == engine.zero_offset)


cdef uint32_t _mark_of(Engine *engine, uint32_t offset) noexcept nogil:
    """What is known of a page whose copy is given up: hot_offset if it was evicted a short while ago, or 0. Its entry
    is read without a lock, as the page's count holds it. The packer or the cleaner may move the copy meanwhile, and
    its block be another by now: what is known is wrong then, and does no harm."""
    cdef uint64_t word = space_word(&engine.space, offset)
    if entry_state(word) == STORED and log_is_young(&engine.log, &engine.log.blocks[stored_block(word)]):
        return engine.hot_offset
    return 0


cdef bint _give_up_copy(Engine *engine, Mm *mm, uint64_t page, int64_t *room,
                        int64_t *copied) noexcept nogil:
    """The page's copy is given up, so that it may be written to. False, and nothing done, where the page has no copy
    (and is not marked as shared) or would need more room than there is."""
    cdef uint32_t value = table_get(mm.table, page)
    if not is_present(value) or guard_of(engine, value) == 0:
        return False
    if touch_takes_page(engine, mm, value):
        if room[0] < 1:
            return False
        room[0] -= 1
        copied[0] += offset_of(value) != engine.zero_offset
    table_set(mm.table, page, present_value(age_of(value), _mark_of(engine, offset_of(value))))
    entry_put(engine, offset_of(value))
    mm.kept_broken += copy_of(engine, value) != 0
    return True


cdef void touch_release(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    """These pages are about to be made the mm's own by a write of nothing, which is not to be a fault for each: their
    copies are given up beforehand, whether there is room or not. (What that takes is counted when they are evicted.)
    Mm.lock is held."""
    cdef int64_t room = <int64_t>count
    cdef int64_t copied = 0
    cdef uint64_t at
    for at in range(page, page + count):
        _give_up_copy(engine, mm, at, &room, &copied)
    sys_uffd_unprotect(mm.uffd, page << PAGE_SHIFT, count << PAGE_SHIFT)


cdef int touch_unprotect(Worker *worker, Mm *mm, uint64_t page) noexcept nogil:
    """The copy is true no more: forgotten, and the write goes on. Mm.lock is held. 0 or -EAGAIN.

    Only pages without a copy are unprotected: one that kept its copy could be written to without our knowing."""
    cdef Window window
    cdef uint64_t low = page
    cdef uint64_t high = page + 1
    cdef int64_t before = max(room_left(worker.engine), <int64_t>1)
    cdef int64_t room = before
    cdef int64_t copied = 0
    cdef int result
    add_i64(&worker.engine.counters.faults_write_protected, 1)
    readahead_window(&mm.unprotects, page << PAGE_SHIFT, &window)
    _give_up_copy(worker.engine, mm, page, &room, &copied)
    while high < window.start + window.count and _give_up_copy(worker.engine, mm, high, &room, &copied):
        high += 1
    while low > window.start and _give_up_copy(worker.engine, mm, low - 1, &room, &copied):
        low -= 1
    sys_crash_point(b"unprotect-given-up")
    room_take(worker.engine, before - room)
    add_i64(&worker.engine.copied, copied)
    window.start = low
    window.count = <uint32_t>(high - low)
    readahead_done(&mm.unprotects, &window)
    trace_fault(worker.engine.trace, TRACE_WRITTEN, mm.id, page, low, window.count)
    result = sys_uffd_unprotect(mm.uffd, low << PAGE_SHIFT, (high - low) << PAGE_SHIFT)
    if result == -ENOENT and high - low > 1:
        result = sys_uffd_unprotect(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    if result == -EAGAIN:
        return -EAGAIN
    if result != 0:
        sys_uffd_wake(mm.uffd, page << PAGE_SHIFT, PAGE_BYTES)
    return 0
