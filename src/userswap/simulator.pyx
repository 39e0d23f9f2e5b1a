# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's reclaim and readahead without an engine: over a sequence of pages that a program would touch.

They are the very functions that the engine calls, in the order in which it does. Left out is all that is a matter of
time: eviction ahead of need, first touches that bring their neighbours, several threads."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from userswap.batch cimport Batch, batch_choose, batch_choose_behind
from userswap.behind cimport (
    AS_BEHIND,
    Returns,
    returns_back,
    returns_evicted,
    returns_next_kind,
    returns_sampled,
    trail_add,
)
from userswap.mm cimport Mm
from userswap.pagetable cimport table_free, table_get, table_make, table_set
from userswap.readahead cimport (
    Window,
    readahead_done,
    readahead_find_strides,
    readahead_init,
    readahead_look_beyond,
    readahead_most,
    readahead_window,
    window_page,
)
from userswap.reclaim cimport LEFT_LEAST, STAMP_LAST, STREAMING, reclaim_age, reclaim_stamp_shift
from userswap.types cimport (
    AGE_FRESH,
    AGE_READAHEAD,
    OFFSET_MASK,
    PAGE_BYTES,
    PAGE_SHIFT,
    is_present,
    is_swapped,
    offset_of,
    present_value,
)

cdef class Memory:
    """So many pages of memory, in one address space.

    pages: the memory. behind: whether what streams leave behind may go first. window: pages that one fault brings at
    most; 0: as many as the engine would. Raises MemoryError."""
    cdef Mm *mm
    cdef Batch *batch
    cdef Returns *returns
    cdef uint64_t *evicted_at       # by the offset that stands for a page
    cdef uint32_t offsets
    cdef uint32_t room
    cdef uint64_t pages
    cdef bint behind
    cdef uint64_t clock
    cdef uint32_t stamp_shift
    cdef readonly uint64_t resident
    cdef readonly uint64_t references
    cdef readonly uint64_t first_touches
    cdef readonly uint64_t faults           # on swapped pages
    cdef readonly uint64_t brought          # pages, by these

    def __cinit__(self, uint64_t pages, bint behind=True, uint32_t window=0):
        self.mm = <Mm *>calloc(1, sizeof(Mm))
        self.batch = <Batch *>calloc(1, sizeof(Batch))
        self.returns = <Returns *>calloc(1, sizeof(Returns))
        if self.mm != NULL:
            self.mm.table = table_make()
        if self.mm == NULL or self.mm.table == NULL or self.batch == NULL or self.returns == NULL:
            raise MemoryError
        self.mm.id = 1
        self.pages = pages
        self.behind = behind
        self.offsets = 1                    # 0 is none
        self.stamp_shift = reclaim_stamp_shift(pages)
        readahead_init(&self.mm.fills, window if window != 0 else readahead_most(pages))
        readahead_find_strides(&self.mm.fills)

    def __dealloc__(self):
        if self.mm != NULL and self.mm.table != NULL:
            table_free(self.mm.table)
        free(self.mm)
        free(self.batch)
        free(self.returns)
        free(self.evicted_at)

    def touch(self, const uint64_t[::1] pages):
        """The program touches these pages, one after the other. Raises MemoryError."""
        cdef Py_ssize_t at
        cdef bint enough = True
        with nogil:
            for at in range(pages.shape[0]):
                if not _touch(self, pages[at]):
                    enough = False
                    break
        if not enough:
            raise MemoryError

    def give_back(self, uint64_t page, uint64_t count):
        """So many pages from `page` on are nobody's any more: of those that are used again it is the first time."""
        cdef uint64_t at
        cdef uint32_t value
        for at in range(page, page + count):
            value = table_get(self.mm.table, at)
            if value != 0:
                self.resident -= is_present(value)
                table_set(self.mm.table, at, 0)


cdef bint _touch(Memory memory, uint64_t page) noexcept nogil:
    """False without memory."""
    cdef uint32_t value = table_get(memory.mm.table, page)
    memory.references += 1
    if is_present(value):
        return True
    if value == 0:
        memory.first_touches += 1
        value = _new_offset(memory)
        if value == 0 or table_set(memory.mm.table, page, present_value(AGE_FRESH, value)) != 0:
            return False
        memory.resident += 1
    else:
        _fill(memory, page)
    while memory.resident > memory.pages:
        _evict(memory)
    return True


cdef uint32_t _new_offset(Memory memory) noexcept nogil:
    """0 without memory."""
    cdef uint64_t *grown
    if memory.offsets >= memory.room:
        if memory.offsets > OFFSET_MASK // 2:
            return 0
        memory.room = 2 * memory.offsets + 1024
        grown = <uint64_t *>realloc(memory.evicted_at, memory.room * sizeof(uint64_t))
        if grown == NULL:
            memory.room = 0
            return 0
        memory.evicted_at = grown
    memory.offsets += 1
    return memory.offsets - 1


cdef void _plan(Memory memory, uint64_t page, Window *window) noexcept nogil:
    """The swapped pages of the window that lie beside the page, as in fill.pyx. From its address on, step by step."""
    cdef uint64_t low = page
    cdef uint64_t high = page + 1
    cdef uint32_t count = 1
    if window.step != PAGE_BYTES:
        while count < window.count and is_swapped(
                table_get(memory.mm.table, window_page(window.address, window.step, count))):
            count += 1
        window.count = count
        return
    while low > window.start and is_swapped(table_get(memory.mm.table, low - 1)):
        low -= 1
    while high < window.start + window.count and is_swapped(table_get(memory.mm.table, high)):
        high += 1
    window.start = low
    window.address = low << PAGE_SHIFT
    window.count = <uint32_t>(high - low)


cdef void _fill(Memory memory, uint64_t page) noexcept nogil:
    cdef Window window
    cdef uint64_t at
    cdef uint32_t age, offset
    cdef uint32_t turn
    cdef uint64_t gone = memory.clock - memory.evicted_at[offset_of(table_get(memory.mm.table, page))]
    memory.faults += 1
    readahead_window(&memory.mm.fills, page << PAGE_SHIFT, &window)
    _plan(memory, page, &window)
    readahead_look_beyond(memory.mm.table, &window)
    readahead_done(&memory.mm.fills, &window)
    if window.left_count >= LEFT_LEAST:
        trail_add(&memory.mm.trail, window.left_start, window.left_count)
    for turn in range(window.count):
        at = window_page(window.address, window.step, turn)
        age = AGE_READAHEAD
        if at == page and window.count < STREAMING:
            age = reclaim_age(<uint32_t>min(gone >> memory.stamp_shift, <uint64_t>STAMP_LAST), 0,
                              <uint32_t>(memory.resident >> memory.stamp_shift))
        offset = offset_of(table_get(memory.mm.table, at))
        table_set(memory.mm.table, at, present_value(age, offset))
        if returns_sampled(memory.mm.id, at, memory.pages):
            returns_back(memory.returns, memory.mm.id, at, memory.clock)
    memory.resident += window.count
    memory.brought += window.count


cdef void _evict(Memory memory) noexcept nogil:
    """A batch. Each turn of the hand lowers ages: something is found in the end."""
    cdef uint32_t kind = returns_next_kind(memory.returns, memory.clock, memory.pages)
    memory.batch.pages = 0
    if memory.behind and kind == AS_BEHIND:
        batch_choose_behind(memory.mm, memory.batch)
    while memory.batch.pages == 0:
        batch_choose(memory.mm, memory.batch)
    _take(memory)


cdef void _take(Memory memory) noexcept nogil:
    """The batch goes."""
    cdef uint32_t run, at, value
    cdef uint64_t page
    for run in range(memory.batch.run_count):
        for at in range(memory.batch.runs[run].count):
            page = memory.batch.runs[run].page + at
            value = table_get(memory.mm.table, page)
            memory.evicted_at[offset_of(value)] = memory.clock
            table_set(memory.mm.table, page, offset_of(value))
            if returns_sampled(memory.mm.id, page, memory.pages):
                returns_evicted(memory.returns, memory.mm.id, page, memory.batch.kind, memory.clock)
    memory.clock += memory.batch.pages
    memory.resident -= memory.batch.pages
