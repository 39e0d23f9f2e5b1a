# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks: what a child has of its parent's pages, in whatever order it is told.

The kernel queues an event after the change that it tells of, and without the lock under which it made it. So where one
thread forks and another one unmaps or moves memory, these may be told in another order than they happened in. As long
as any of them is under way, from its change until its maker goes on, the kernel lets nothing be copied or moved in the
parent; then it is settled (sys_uffd_settled). Hence:

  - What is unmapped or moved away is kept as departed until all is settled. A child that is told of meanwhile gets it
    back where its own address space, when asked, has the mapping: there the fork came first.
  - The faults and events of a child wait until its parent is settled. A move that is told meanwhile has happened to
    the child as well, if the mapping is at its new place there. (What was unmapped before the fork needs nothing: no
    fault comes from there, and it is taken back when the child is entered.)

The order of MADV_DONTNEED and a fork is no matter: its pages go after it is told, and amid the call either is right.
"""

from libc.stdint cimport uint32_t

from userswap.limit cimport limit_burst, limit_near, room_left
from userswap.mappings cimport mappings_protect, mappings_unshared
from userswap.mm cimport (
    WHOLE_TABLE_BITS,
    engine_stop,
    guard_of,
    mm_forget,
    mm_insert,
    mm_make,
    mm_move,
    mm_next,
    mm_put,
)
from userswap.pagetable cimport table_get, table_make, table_set, table_visit
from userswap.ranges cimport Range, ranges_add, ranges_copy, ranges_hit, ranges_remove
from userswap.space cimport space_get
from userswap.system cimport (
    add_i64,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u32,
    sys_crash_point,
    sys_signal_eventfd,
    sys_uffd_protect,
)
from userswap.types cimport PAGE_SHIFT, age_of, is_busy, is_present, offset_of, present_value

cdef enum:
    NONE = 0
    SOME = 1
    ALL = 2

cdef struct Inheritance:
    Engine *engine
    Mm *parent
    Mm *child
    uint32_t mark


cdef bint _has(Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    """Whether all that is mapped of these pages, and something is, is registered with this mm. Write-protects it: one
    fault more."""
    return sys_uffd_protect(mm.uffd, page << PAGE_SHIFT, count << PAGE_SHIFT) == 0


# ---- a child. The parent's Mm.lock is held

cdef bint _is_to_mark(Inheritance *all, uint64_t page, uint32_t value) noexcept nogil:
    """As shared: what is present, and the parent's without condition."""
    return is_present(value) and guard_of(all.engine, value) == 0 and not ranges_hit(
        &all.parent.spared, page, page + 1)


cdef void _copy_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Inheritance *all = <Inheritance *>context
    cdef uint64_t at
    cdef uint32_t value
    pthread_mutex_lock(&all.engine.space.lock)
    for at in range(count):
        value = values[at]
        if value == 0:
            continue
        if is_busy(value):
            value = offset_of(value)
        elif all.mark != 0 and _is_to_mark(all, page + at, value):
            value = present_value(age_of(value), all.mark)
            values[at] = value
        if table_set(all.child.table, page + at, value) != 0:
            engine_stop(all.engine, b"no memory for a page table", 0)
            break
        if offset_of(value) != 0:
            space_get(&all.engine.space, offset_of(value))
        if is_present(value):
            all.child.present += 1
        else:
            all.child.swapped += 1
    pthread_mutex_unlock(&all.engine.space.lock)


cdef void _give_back(Inheritance *all, uint64_t page, uint32_t offset) noexcept nogil:
    """A page that departed from the parent after the fork."""
    if table_get(all.child.table, page) != 0:
        return
    if table_set(all.child.table, page, offset) != 0 or ranges_add(&all.child.ranges, page, page + 1) != 0:
        engine_stop(all.engine, b"no memory for a page table", 0)
        return
    pthread_mutex_lock(&all.engine.space.lock)
    space_get(&all.engine.space, offset)
    pthread_mutex_unlock(&all.engine.space.lock)
    all.child.swapped += 1


cdef int _how_many_has(Mm *mm, uint64_t page, const uint32_t *values, uint64_t count) noexcept nogil:
    """Of the pages of one leaf that have values. What is asked is asked of the whole first, as there the answer is the
    same for all but seldom: if it has neither the first nor the last, and not all, then none."""
    cdef uint64_t first = 0
    cdef uint64_t last = count
    while first < count and values[first] == 0:
        first += 1
    if first == count:
        return NONE
    while values[last - 1] == 0:
        last -= 1
    if _has(mm, page + first, last - first):
        return ALL
    return SOME if _has(mm, page + first, 1) or _has(mm, page + last - 1, 1) else NONE


cdef void _give_back_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    """Of the parent's departed ones."""
    cdef Inheritance *all = <Inheritance *>context
    cdef int many = _how_many_has(all.child, page, values, count)
    cdef uint64_t at
    for at in range(count if many != NONE else 0):
        if values[at] != 0 and (many == ALL or _has(all.child, page + at, 1)):
            _give_back(all, page + at, values[at])


cdef void _forget_absent_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    """Of the child's."""
    cdef Inheritance *all = <Inheritance *>context
    cdef int many = _how_many_has(all.child, page, values, count)
    cdef uint64_t at
    for at in range(count if many != ALL else 0):
        if values[at] != 0 and (many == NONE or not _has(all.child, page + at, 1)):
            mm_forget(all.engine, all.child, page + at, 1)


cdef void _forget_unforked(Inheritance *all) noexcept nogil:
    """What MADV_DONTFORK keeps from the child is not mapped there, unless the advice came after the fork."""
    cdef uint32_t at
    cdef Range *part
    for at in range(all.parent.unforked.count):
        part = &all.parent.unforked.items[at]
        table_visit(all.child.table, part.start, part.end - part.start, _forget_absent_values, all)


cdef void _forget_wiped(Inheritance *all) noexcept nogil:
    """What MADV_WIPEONFORK does is empty."""
    cdef uint32_t at
    cdef Range *part
    for at in range(all.parent.wiped.count):
        part = &all.parent.wiped.items[at]
        mm_forget(all.engine, all.child, part.start, part.end - part.start)


cdef Mm *_make_child(Engine *engine, Mm *parent, int uffd, bint mark, bint told) noexcept nogil:
    """The child of a fork shares the parent's entries by count. NULL without memory.

    The helper's own areas are not in the child. With `mark` all that is present in both is marked as shared; the
    caller is to write-protect it. Where the kernel has `told` of the fork it was at a moment that has gone, and the
    child's memory is registered."""
    cdef Mm *child = mm_make(engine, uffd, 0)
    cdef Inheritance all
    if child == NULL:
        return NULL
    child.parent = parent.pid
    child.parent_mm = parent.id
    child.unsettled = True
    child.shared = True
    child.exposed = not mark
    parent.shared = True
    parent.young += 1
    if (ranges_copy(&child.ranges, &parent.ranges) != 0 or ranges_copy(&child.wiped, &parent.wiped) != 0
            or ranges_copy(&child.doubtful, &parent.doubtful) != 0):
        engine_stop(engine, b"no memory for a page table", 0)
    all.engine = engine
    all.parent = parent
    all.child = child
    all.mark = engine.shared_offset if mark else 0
    table_visit(parent.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _copy_values, &all)
    if told and parent.departed != NULL:
        table_visit(parent.departed, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _give_back_values, &all)
    if told:
        _forget_unforked(&all)
    _forget_wiped(&all)
    return child


cdef bint _is_known(Engine *engine, int uffd) noexcept nogil:
    cdef uint32_t position = 0
    cdef bint known = False
    cdef Mm *mm
    while not known:
        mm = mm_next(engine, &position)
        if mm == NULL:
            break
        known = mm.uffd == uffd
        mm_put(engine, mm)
    return known


cdef void forks_child(Engine *engine, Mm *mm, int uffd) noexcept nogil:
    """The mm has forked; `uffd` is the child's. If an engine before has made it already, but may not have done all
    else, it is only protected once more."""
    cdef Mm *child
    cdef bint mark = limit_near(engine) or mm.present > room_left(engine) // 2
    if mm.event_again and _is_known(engine, uffd):
        mm.protect_wanted = mark
        return
    if mark:
        # As soon as can be: they run already, or will in a moment. Who is told of a write has to wait for our lock.
        mappings_protect(mm, uffd)
        mm.protect_wanted = not mappings_protect(mm, mm.uffd)
        limit_burst(engine)
    mappings_unshared(engine, mm)
    child = _make_child(engine, mm, uffd, mark, True)
    sys_crash_point(b"fork-made")
    mm.exposed = mm.exposed or not mark
    add_i64(&engine.counters.forks, 1)
    if child == NULL or mm_insert(engine, child) != 0:
        engine_stop(engine, b"too many processes, or no memory for the page table of a fork", 0)
    sys_crash_point(b"fork-inserted")
    if mm.protect_wanted:       # the one that forked had still to go on from there
        mm.protect_wanted = not mappings_protect(mm, mm.uffd)
    sys_signal_eventfd(engine.attention)


cdef Mm *forks_caught(Engine *engine, Mm *mm, int uffd) noexcept nogil:
    """The same where the fork was caught (catch.pyx): the child has not run yet, and nothing of what the mm has has
    changed since. All that is present is marked as shared: the caller write-protects it in the child before that is
    inserted, and calls forks_caught_done. What the child has not got, since it is not for children, mappings_verify
    takes back."""
    mappings_unshared(engine, mm)
    return _make_child(engine, mm, uffd, True, False)


cdef void forks_caught_done(Engine *engine, Mm *mm) noexcept nogil:
    limit_burst(engine)
    add_i64(&engine.counters.forks, 1)
    mm.protect_wanted = not mappings_protect(mm, mm.uffd)


cdef void _mark_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Inheritance *all = <Inheritance *>context
    cdef uint64_t at
    for at in range(count):
        if _is_to_mark(all, page + at, values[at]):
            values[at] = present_value(age_of(values[at]), all.engine.shared_offset)


cdef void forks_protect(Engine *engine, Mm *mm) noexcept nogil:
    """Memory has become short since a fork: what it left shared is to be told of after all. Mm.lock is held."""
    cdef Inheritance all
    all.engine = engine
    all.parent = mm
    mm.exposed = False
    mm.protect_wanted = True
    table_visit(mm.table, 0, <uint64_t>1 << WHOLE_TABLE_BITS, _mark_values, &all)


# ---- other events about the time of a fork. Mm.lock is held

cdef void _depart_values(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Inheritance *all = <Inheritance *>context
    cdef uint64_t at
    pthread_mutex_lock(&all.engine.space.lock)
    for at in range(count):
        if values[at] == 0 or is_present(values[at]) or table_get(all.parent.departed, page + at) != 0:
            continue
        if table_set(all.parent.departed, page + at, offset_of(values[at])) != 0:
            engine_stop(all.engine, b"no memory for a page table", 0)
            break
        space_get(&all.engine.space, offset_of(values[at]))
    pthread_mutex_unlock(&all.engine.space.lock)


cdef void forks_departing(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil:
    """The pages are about to be forgotten here, or moved: a mapping has gone."""
    cdef Inheritance all
    if mm.swapped == 0:
        return
    if mm.departed == NULL:
        mm.departed = table_make()
    if mm.departed == NULL:
        engine_stop(engine, b"no memory for a page table", 0)
        return
    all.engine = engine
    all.parent = mm
    table_visit(mm.table, page, count, _depart_values, &all)


cdef bint _has_moved(Mm *child, uint64_t from_page, uint64_t to_page) noexcept nogil:
    """Whether a move of the parent's was before the fork: the child's mapping is at its new place, where none was (or
    at that alone)."""
    return ranges_hit(&child.ranges, from_page, from_page + 1) and _has(child, to_page, 1) and (
        not ranges_hit(&child.ranges, to_page, to_page + 1) or not _has(child, from_page, 1))


cdef void forks_moved(Engine *engine, Mm *mm, uint64_t from_page, uint64_t to_page, uint64_t count) noexcept nogil:
    """A move of the parent's that is told after a fork may have happened before it. Locks the children, which comes
    after their parent's lock."""
    cdef uint32_t position = 0
    cdef Mm *child
    while mm.young > 0:
        child = mm_next(engine, &position)
        if child == NULL:
            return
        if child.unsettled and child.parent_mm == mm.id:
            pthread_mutex_lock(&child.lock)
            if child.move_step == 1 or _has_moved(child, from_page, to_page):
                mm_move(engine, child, from_page, to_page, count)
                ranges_remove(&child.ranges, from_page, from_page + count)
                ranges_add(&child.ranges, to_page, to_page + count)
                store_u32(&child.move_step, 0)
            pthread_mutex_unlock(&child.lock)
        mm_put(engine, child)
