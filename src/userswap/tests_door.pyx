# SPDX-License-Identifier: GPL-2.0-or-later
"""A door for tests to the structures of the data plane. The product does not use it.

Each class owns one structure and takes its locks as the engine does; what a test wants to know beyond the
functions themselves, `check` (the invariants of types.pxd) and the snapshots, is here and not in the engine.
"""
import errno
import os

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from userswap.codec cimport (
    Packer, Unpacker, codec_pack, codec_unpack, packer_deinit, packer_init, unpacker_deinit, unpacker_init,
)
from userswap.log cimport (
    BLOCK_FREE, BLOCK_FULL, BLOCK_OPEN, BLOCK_STORED, LIST_KEPT, LIST_NONE, LIST_QUEUE, LIST_TIER, MAX_AREAS,
    MAX_BLOCKS, NO_BLOCK, OPEN_PACKED, OPEN_PLAIN, OPENS, SUM_BYTES, Place, log_buffer_drop, log_commit, log_deinit,
    log_free_slots, log_freed, log_init, log_is_young, log_open_plain, log_pin, log_place, log_read, log_reserve,
    log_span, log_tier_grow, log_tier_shrink, log_unpin, log_write_next,
)
from userswap.log cimport Log as LogStruct
from userswap.pack cimport Pack, pack_clean, pack_clean_ahead, pack_compact, pack_deinit, pack_init, pack_next
from userswap.pagetable cimport PageTable as TableStruct
from userswap.pagetable cimport (
    TABLE_LEAF_PAGES,
    TABLE_REMOVED,
    table_free,
    table_get,
    table_leaf,
    table_make,
    table_next,
    table_removed_for,
    table_set,
    table_visit,
)
from userswap.ranges cimport Ranges as RangesStruct
from userswap.ranges cimport ranges_add, ranges_copy, ranges_end, ranges_free, ranges_hit, ranges_remove
from userswap.readahead cimport Streams as StreamsStruct
from userswap.readahead cimport (
    Window, readahead_done, readahead_find_strides, readahead_init, readahead_window, window_page,
)
from userswap.reclaim cimport reclaim_age as c_reclaim_age
from userswap.reclaim cimport reclaim_is_hot as c_reclaim_is_hot
from userswap.reclaim cimport reclaim_run as c_reclaim_run
from userswap.space cimport (
    FOR_EVER, LEAF_ENTRIES, NO_LEAF, space_allocate, space_change, space_count, space_deinit, space_fill_code,
    space_fill_value, space_free, space_get, space_init, space_put, space_stamp, space_word,
)
from userswap.slots cimport slots_spare, slots_discard_next, slots_order_areas
from userswap.space cimport Space as SpaceStruct
from userswap.swapoff cimport Progress, swapoff_area
from userswap.cipher cimport cipher_take, cipher_wrap
from userswap.stores cimport (
    KEY_BYTES, Store, file_store_init, store_deinit, store_end_waits, store_init,
)
from userswap.system cimport (
    EINVAL, EIO, SYS_READS_MAX, add_i64, load_i64, pthread_mutex_lock, pthread_mutex_unlock, sys_now_us,
    sys_pwrite_all, sys_reads, sys_reads_deinit, sys_reads_finish, sys_reads_init, sys_reads_start, sys_release,
    sys_reserve, sys_since_us, sys_sleep_us,
)
from userswap.types cimport (
    AGE_FRESH, AGE_REFAULT, BLOCK_BYTES, BLOCK_PAGES, CACHED, COUNT_EVER, COUNT_MORE, FILLED, FREE, NARROW_MORE,
    PAGE_BYTES, PAGE_SHIFT, STORED, age_of, entry_count, entry_make, entry_payload, entry_state, is_present,
    present_value, stored_block, stored_index, stored_stamp,
)

STATES = {'free': FREE, 'filled': FILLED, 'cached': CACHED, 'stored': STORED}
STATE_NAMES = {number: name for name, number in STATES.items()}
BLOCK_STATES = ['free', 'open', 'full', 'spent', 'writing', 'stored']
EVER = FOR_EVER()
NO_CODE = 0xFFFFFFFFFFFFFFFF
FRESH = AGE_FRESH
REFAULT = AGE_REFAULT


cdef int _fail(int result) except -1:
    raise OSError(-result, os.strerror(-result))


# ---- space

cdef class Space:
    """A swapper space of its own, with entries of 64 or of 32 bits."""
    cdef SpaceStruct space

    def __cinit__(self, int bits=64):
        if space_init(&self.space, bits) != 0:
            raise MemoryError

    def __dealloc__(self):
        space_deinit(&self.space)

    def allocate(self, str state='cached', int count=1, uint64_t payload=0):
        """The offset of a new entry; 0 when there is none. Count -1: for ever."""
        made = count if 0 <= count < NARROW_MORE else COUNT_EVER if count < 0 else 1
        offset = space_allocate(&self.space, entry_make(STATES[state], made, payload))
        for _ in range(count - made if offset != 0 else 0):
            space_get(&self.space, offset)
        return offset

    def change(self, uint32_t offset, str state, uint64_t payload=0):
        space_change(&self.space, offset, STATES[state], payload)

    def get(self, uint32_t offset):
        space_get(&self.space, offset)

    def stamp(self, uint32_t offset, uint32_t stamp):
        space_stamp(&self.space, offset, stamp)

    def put(self, uint32_t offset):
        """Whether this freed the entry."""
        return space_put(&self.space, offset) != 0

    def free(self, uint32_t offset):
        space_free(&self.space, offset)

    def entry(self, uint32_t offset):
        """(state, count, payload) of an offset that was handed out before."""
        if offset // LEAF_ENTRIES >= self.space.leaf_end:
            raise IndexError(offset)
        word = space_word(&self.space, offset)
        count = space_count(&self.space, offset)
        told = COUNT_EVER if count == EVER else COUNT_MORE if count >= self.space.count_more else count
        assert entry_count(word) == told
        return STATE_NAMES[entry_state(word)], count, entry_payload(word)

    def fill_code(self, uint64_t value):
        return space_fill_code(&self.space, value)

    def fill_value(self, uint64_t payload):
        return space_fill_value(&self.space, payload)

    def limit(self, leaves=None, fill_words=None, continuations=None):
        """Makes it smaller than it is, so that a test can fill it."""
        if continuations is not None:
            self.space.more_limit = continuations
        if leaves is not None:
            self.space.leaf_limit = leaves
        if fill_words is not None:
            self.space.fill_limit = fill_words

    @property
    def entries(self):
        return self.space.entries

    @property
    def leaf_count(self):
        return self.space.leaf_count

    @property
    def continuations(self):
        return self.space.more_count

    @property
    def count_more(self):
        """The greatest count that needs no continuation."""
        return self.space.count_more

    @property
    def payload_bits(self):
        return 3 + self.space.data_bits

    @property
    def largest_swap(self):
        """Bytes of blocks that entries can name."""
        return min(self.space.block_limit, <uint32_t>MAX_BLOCKS) * <uint64_t>BLOCK_BYTES

    def fill(self, uint64_t pages):
        """As many filled pages, of zeros."""
        cdef uint64_t _page
        with nogil:
            for _page in range(pages):
                space_allocate(&self.space, entry_make(FILLED, 1, 0))

    def turn(self, uint32_t offset, uint64_t gets, uint64_t rounds):
        """Counts an offset up that often and down again; the nanoseconds that one of these took."""
        cdef uint64_t _round, _turn
        begun = sys_now_us()
        with nogil:
            for _round in range(rounds):
                for _turn in range(gets):
                    space_get(&self.space, offset)
                for _turn in range(gets):
                    space_put(&self.space, offset)
        return (sys_now_us() - begun) * 1000 / (2 * gets * rounds)

    @property
    def fill_words(self):
        return self.space.fill_count

    def check(self):
        """The invariants; returns the offsets in use."""
        return _check_space(&self.space)


cdef list _check_space(SpaceStruct *space):
    cdef uint32_t at, index, used
    cdef uint64_t leaves = 0
    cdef uint64_t continued = 0
    cdef uint64_t word
    cdef list offsets = []
    for at in range(space.leaf_end):
        used = 0
        for index in range(LEAF_ENTRIES):
            word = space_word(space, at * LEAF_ENTRIES + index)
            if entry_state(word) == FREE:
                assert word == 0, f'a free word is not zero: {at * LEAF_ENTRIES + index}'
                continue
            used += 1
            if at + index > 0:
                offsets.append(at * LEAF_ENTRIES + index)
        assert space.leaves[at].used == used, f'leaf {at}: used {space.leaves[at].used}, words {used}'
        leaves += used > 0
        continued += space.leaves[at].more != NULL
        _check_more(space, at)
    assert space.leaf_count == leaves, f'leaf_count {space.leaf_count}, leaves {leaves}'
    assert space.more_count == continued, f'more_count {space.more_count}, leaves that have one {continued}'
    assert space.entries == len(offsets), f'entries {space.entries}, words {len(offsets)}'
    _check_room(space)
    return offsets


cdef _check_more(SpaceStruct *space, uint32_t at):
    """The continuation of a leaf is there for counts that need it, and only for these."""
    cdef uint32_t index
    if space.leaves[at].more == NULL:
        return
    continued = [index for index in range(LEAF_ENTRIES) if space.leaves[at].more[index] > 0]
    assert space.leaves[at].more[LEAF_ENTRIES] == len(continued) > 0, f'leaf {at}: {len(continued)} are continued'
    for index in continued:
        assert entry_count(space_word(space, at * LEAF_ENTRIES + index)) == COUNT_MORE, f'{index} of leaf {at}'


cdef _check_room(SpaceStruct *space):
    cdef uint32_t at = space.room
    cdef uint32_t previous = NO_LEAF
    cdef uint32_t listed = 0
    while at != NO_LEAF:
        assert space.leaves[at].used < LEAF_ENTRIES, f'leaf {at} has no room'
        assert space.leaves[at].previous == previous, f'the list is broken at {at}'
        listed += 1
        previous = at
        at = space.leaves[at].next
    assert listed == sum([space.leaves[at].used < LEAF_ENTRIES for at in range(space.leaf_end)])


# ---- page tables

cdef struct Visits:
    void *list
    uint32_t add


cdef void _visit(void *context, uint64_t page, uint32_t *values, uint64_t count) noexcept nogil:
    cdef Visits *visits = <Visits *>context
    cdef uint64_t at
    with gil:
        (<list>visits.list).append((page, [values[at] for at in range(count)]))
    for at in range(count):
        if values[at] != 0:
            values[at] += visits.add


cdef class PageTable:
    cdef TableStruct *table

    def __cinit__(self):
        self.table = table_make()
        if self.table == NULL:
            raise MemoryError

    def __dealloc__(self):
        table_free(self.table)

    def get(self, uint64_t page):
        return table_get(self.table, page)

    def set(self, uint64_t page, uint32_t value):
        cdef int result = table_set(self.table, page, value)
        if result != 0:
            _fail(result)

    def visit(self, uint64_t page, uint64_t count, uint32_t add=0):
        """(page, values) of each run visited, before `add` is added to those that are not 0."""
        cdef Visits visits
        runs = []
        visits.list = <void *>runs
        visits.add = add
        with nogil:
            table_visit(self.table, page, count, _visit, &visits)
        return runs

    def removed_for(self, uint64_t page, uint32_t stamp, uint32_t now):
        """Milliseconds since `stamp` at `now`, as the leaf that holds the page tells."""
        cdef uint32_t *leaf = table_leaf(self.table, page)
        leaf[TABLE_REMOVED] = stamp
        return table_removed_for(leaf, now)

    @property
    def leaf_count(self):
        return self.table.leaf_count

    def check(self):
        """leaf_count is the number of leaves."""
        cdef uint64_t leaves = 0
        cdef uint64_t page = 0
        while table_next(self.table, &page) != NULL:
            leaves += 1
            page += TABLE_LEAF_PAGES
        assert self.table.leaf_count == leaves, f'leaf_count {self.table.leaf_count}, leaves {leaves}'


# ---- ranges

cdef class Ranges:
    cdef RangesStruct ranges

    def __dealloc__(self):
        ranges_free(&self.ranges)

    def add(self, uint64_t start, uint64_t end):
        cdef int result = ranges_add(&self.ranges, start, end)
        if result != 0:
            _fail(result)

    def remove(self, uint64_t start, uint64_t end):
        cdef int result = ranges_remove(&self.ranges, start, end)
        if result != 0:
            _fail(result)

    def end(self, uint64_t page):
        return ranges_end(&self.ranges, page)

    def hit(self, uint64_t start, uint64_t end):
        return bool(ranges_hit(&self.ranges, start, end))

    def copy(self):
        cdef Ranges made = Ranges()
        cdef int result = ranges_copy(&made.ranges, &self.ranges)
        if result != 0:
            _fail(result)
        return made

    def clear(self):
        ranges_free(&self.ranges)

    @property
    def items(self):
        return [(self.ranges.items[at].start, self.ranges.items[at].end) for at in range(self.ranges.count)]

    def check(self):
        assert (self.ranges.count == 0) == (self.ranges.block == NULL)
        assert self.ranges.block == NULL or self.ranges.block.count == self.ranges.count
        last = -1
        for start, end in self.items:
            assert last < start < end, f'ranges overlap, touch or are empty: {self.items}'
            last = end


# ---- stores that fail

cdef struct Faults:
    int (*write)(Store *, uint32_t, const uint8_t *) noexcept nogil
    int (*read)(Store *, uint32_t, uint64_t, uint64_t, uint8_t *) noexcept nogil
    int write_error         # -errno, or 0
    int64_t write_errors    # how many more
    bint torn               # a failing write has changed half of its slot
    int read_error
    int64_t read_errors
    uint64_t delay_us       # of each write
    int64_t write_calls
    int64_t read_calls
    int64_t bad_calls       # outside of the area, or not aligned

# A store has no room for a context: its file descriptor, which no other open store has, leads to its faults.
cdef enum:
    MAX_FD = 1024
    EACH_TIME = 1 << 30
cdef Faults _faults[1024]


cdef bint _once_more(int64_t *errors) noexcept nogil:
    return load_i64(errors) > 0 and add_i64(errors, -1) >= 0


cdef int _faulty_write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef Faults *faults = &_faults[store.fd]
    add_i64(&faults.write_calls, 1)
    if slot >= store.slots or <uint64_t>data % PAGE_BYTES != 0:
        add_i64(&faults.bad_calls, 1)
    if faults.delay_us > 0:
        sys_sleep_us(faults.delay_us)
    if faults.write_error != 0 and _once_more(&faults.write_errors):
        if faults.torn:
            sys_pwrite_all(store.fd, data, BLOCK_BYTES // 2, <uint64_t>slot * BLOCK_BYTES)
        return faults.write_error
    return faults.write(store, slot, data)


cdef int _faulty_read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef Faults *faults = &_faults[store.fd]
    add_i64(&faults.read_calls, 1)
    if slot >= store.slots or at % PAGE_BYTES != 0 or length % PAGE_BYTES != 0 or at + length > BLOCK_BYTES:
        add_i64(&faults.bad_calls, 1)
    if faults.read_error != 0 and _once_more(&faults.read_errors):
        return faults.read_error
    return faults.read(store, slot, at, length, into)


cdef void _wrap(Store *store) noexcept nogil:
    """From now on its faults can be set; there are none yet."""
    cdef Faults *faults = &_faults[store.fd]
    memset(faults, 0, sizeof(Faults))
    faults.write, faults.read = store.write, store.read
    store.write, store.read = _faulty_write, _faulty_read


cdef class Medium:
    """A store alone, behind one whose faults can be set. Waits without the GIL, so that threads can use it at once."""
    cdef Store store

    def __cinit__(self, int fd, uint64_t size, int shared=-1, bytes key=None):
        cdef int result
        assert 0 <= fd < MAX_FD
        result = store_init(&self.store, fd, shared, size)
        if result == 0 and key is not None:
            assert len(key) == KEY_BYTES
            result = cipher_wrap(&self.store, <const uint8_t *>key, 7)
        if result != 0:
            _fail(result)
        _wrap(&self.store)

    def __dealloc__(self):
        store_deinit(&self.store)

    def write(self, uint32_t slot, const uint8_t[::1] data):
        cdef uint8_t *block = <uint8_t *>sys_reserve(BLOCK_BYTES)   # aligned, and the thread's own
        cdef int result
        assert data.shape[0] == BLOCK_BYTES and block != NULL
        with nogil:
            memcpy(block, &data[0], BLOCK_BYTES)
            result = self.store.write(&self.store, slot, block)
            sys_release(block, BLOCK_BYTES)
        if result != 0:
            _fail(result)

    def read(self, uint32_t slot, uint64_t at, uint64_t length):
        cdef uint8_t *into = <uint8_t *>sys_reserve(BLOCK_BYTES)
        cdef int result
        assert into != NULL
        with nogil:
            result = self.store.read(&self.store, slot, at, length, into)
        try:
            if result != 0:
                _fail(result)
            return <bytes>into[:length]
        finally:
            sys_release(into, BLOCK_BYTES)

    def read_later(self, list places):
        """What is at each (slot, at, length), asked for together as a fill does."""
        cdef sys_reads reads
        cdef uint8_t *into = <uint8_t *>sys_reserve(SYS_READS_MAX * <uint64_t>BLOCK_BYTES)
        cdef uint64_t turn
        cdef int result = 0
        assert into != NULL and len(places) <= SYS_READS_MAX
        sys_reads_init(&reads, NULL)
        for turn, (slot, at, length) in enumerate(places):
            result = result or self._later(&reads, slot, at, length, into + turn * BLOCK_BYTES)
        with nogil:
            sys_reads_start(&reads)
            if result == 0:
                result = <int>sys_reads_finish(&reads)
        sys_reads_deinit(&reads)
        for turn, (slot, at, length) in enumerate(places):
            cipher_take(&self.store, slot, at, length, into + turn * BLOCK_BYTES)
        try:
            if result != 0:
                _fail(result)
            return [(<const uint8_t *>(into + turn * BLOCK_BYTES))[:place[2]] for turn, place in enumerate(places)]
        finally:
            sys_release(into, SYS_READS_MAX * <uint64_t>BLOCK_BYTES)

    cdef int _later(self, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into):
        cdef int result
        with nogil:
            result = self.store.read_later(&self.store, reads, slot, at, length, into)
        return result

    def discard(self, uint32_t slot):
        cdef int result
        with nogil:
            result = self.store.discard(&self.store, slot)
        if result != 0:
            _fail(result)

    def end_waits(self):
        store_end_waits(&self.store)

    def fail_writes(self, int error, int times=1, bint torn=False):
        """As Log.fail_writes."""
        faults = &_faults[self.store.fd]
        faults.write_error, faults.write_errors, faults.torn = -error, times, torn

    def fail_reads(self, int error, int times=1):
        faults = &_faults[self.store.fd]
        faults.read_error, faults.read_errors = -error, times

    def delay_writes(self, uint64_t us):
        _faults[self.store.fd].delay_us = us

    @property
    def slots(self):
        return self.store.slots

    @property
    def counts(self):
        return {'writes': self.store.writes, 'bytes_written': self.store.bytes_written, 'reads': self.store.reads,
                'bytes_read': self.store.bytes_read, 'bytes_discarded': self.store.bytes_discarded,
                'bad_calls': _faults[self.store.fd].bad_calls}


# ---- the log

# Of an area that keeps nothing: all its pages are the same noise, and of a block only that is known which is not.
cdef enum:
    SEALED = PAGE_BYTES + SUM_BYTES         # a packed page that did not become smaller, and its checksum
    SEALED_PAGES = BLOCK_BYTES // SEALED

cdef struct Nothing:
    bint packed
    uint8_t sums[1536]      # SEALED_PAGES of them

cdef Nothing *_nothing
cdef uint8_t[4096] _noise   # PAGE_BYTES


cdef int _write_nowhere(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef Nothing *block = &_nothing[slot]
    cdef uint32_t page
    cdef bint packed = memcmp(data + SEALED, _noise, 16) == 0
    if block.packed or packed:      # else its memory is not touched: it would be counted
        block.packed = packed
    for page in range(SEALED_PAGES if packed else 0):
        memcpy(block.sums + page * SUM_BYTES, data + page * SEALED + PAGE_BYTES, SUM_BYTES)
    store.writes += 1
    store.bytes_written += BLOCK_BYTES
    return 0


cdef int _read_noise(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    """From its beginning."""
    cdef Nothing *block = &_nothing[slot]
    cdef uint64_t stride = <uint64_t>SEALED if block.packed else <uint64_t>PAGE_BYTES
    cdef uint64_t page
    for page in range(length // stride):
        memcpy(into + page * stride, _noise, PAGE_BYTES)
        if block.packed:
            memcpy(into + page * stride + PAGE_BYTES, block.sums + page * SUM_BYTES, SUM_BYTES)
    return 0 if at == 0 else -EINVAL


cdef uint64_t _mix(uint64_t *state) noexcept nogil:
    """SplitMix64 (Steele, Lea and Flood 2014)."""
    cdef uint64_t word
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    word = (state[0] ^ (state[0] >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * <uint64_t>0x94D049BB133111EB
    return word ^ (word >> 31)


cdef double _random(uint64_t *state) noexcept nogil:
    """In [0, 1)."""
    return (_mix(state) >> 11) / <double>(<uint64_t>1 << 53)


cdef int _refused_discard(Store *store, uint32_t slot) noexcept nogil:
    return -EINVAL


cdef class Pin:
    """A block held by log_pin, as a fill holds it."""
    cdef Log log
    cdef readonly uint32_t block
    cdef uint8_t *data
    cdef bint held

    @property
    def in_memory(self):
        return self.data != NULL

    def read(self, uint32_t index, uint32_t count=1):
        """The bytes of pages of the block, without a lock, from where they were when it was pinned."""
        cdef uint8_t *into = <uint8_t *>sys_reserve(count * PAGE_BYTES)     # its own: threads read at once
        cdef uint8_t *found = <uint8_t *>sys_reserve(BLOCK_BYTES + PAGE_BYTES)
        cdef int result = 0
        if into == NULL or found == NULL:
            raise MemoryError
        with nogil:
            result = self._read(index, count, found, into)
        try:
            if result != 0:
                _fail(result)
            return into[:count * PAGE_BYTES]
        finally:
            sys_release(into, count * PAGE_BYTES)
            sys_release(found, BLOCK_BYTES + PAGE_BYTES)

    cdef int _read(self, uint32_t index, uint32_t count, uint8_t *found, uint8_t *into) noexcept nogil:
        cdef Unpacker unpacker
        cdef Place place
        cdef const uint8_t *data = self.data
        cdef uint32_t start, length, at
        cdef int result = 0
        if data == NULL:
            log_span(&self.log.log, self.block, index, count, &start, &length)
            result = log_read(&self.log.log, self.block, start, length, found)
            data = found - start
        if result == 0:
            unpacker_init(&unpacker)
            for at in range(index, index + count):
                log_place(&self.log.log, self.block, at, &place)
                if result == 0 and not codec_unpack(&unpacker, place.codec, data + place.start, place.length,
                                                    into + (at - index) * PAGE_BYTES):
                    result = -EIO
            unpacker_deinit(&unpacker)
        return result

    def unpin(self):
        assert self.held
        self.held = False
        log_unpin(&self.log.log, self.block)


cdef class Codec:
    """What one thread packs and unpacks with."""
    cdef Packer packer
    cdef Unpacker unpacker

    def __cinit__(self):
        unpacker_init(&self.unpacker)
        if packer_init(&self.packer) != 0:
            raise MemoryError

    def __dealloc__(self):
        packer_deinit(&self.packer)
        unpacker_deinit(&self.unpacker)

    def pack(self, const uint8_t[::1] page, bint cold=False):
        """(codec, packed bytes) of one page."""
        cdef uint8_t into[4096]
        cdef uint8_t codec
        assert page.shape[0] == PAGE_BYTES
        length = codec_pack(&self.packer, &page[0], into, cold, &codec)
        return codec, <bytes>into[:length]

    def unpack(self, int codec, const uint8_t[::1] packed):
        """The page, or None where `packed` is none."""
        cdef uint8_t page[4096]
        if not codec_unpack(&self.unpacker, <uint8_t>codec, &packed[0], <uint32_t>packed.shape[0], page):
            return None
        return <bytes>page[:PAGE_BYTES]

    def time(self, const uint8_t[::1] data, bint cold=False, int rounds=1):
        """Packs and unpacks all pages of `data`: bytes packed, seconds to pack, seconds to unpack."""
        cdef uint64_t pages = data.shape[0] // PAGE_BYTES
        cdef uint64_t at, begun, pack_us, unpack_us
        cdef uint64_t total = 0
        cdef int _turn
        cdef uint8_t *packed = <uint8_t *>malloc(pages * PAGE_BYTES)
        cdef uint32_t *lengths = <uint32_t *>malloc(pages * sizeof(uint32_t))
        cdef uint8_t *codecs = <uint8_t *>malloc(pages)
        cdef uint8_t page[4096]
        begun = sys_now_us()
        for _turn in range(rounds):
            total = 0
            for at in range(pages):
                lengths[at] = codec_pack(&self.packer, &data[at * PAGE_BYTES], packed + at * PAGE_BYTES, cold,
                                         &codecs[at])
                total += lengths[at]
        pack_us = sys_now_us() - begun
        begun = sys_now_us()
        for _turn in range(rounds):
            for at in range(pages):
                codec_unpack(&self.unpacker, codecs[at], packed + at * PAGE_BYTES, lengths[at], page)
        unpack_us = sys_now_us() - begun
        free(packed)
        free(lengths)
        free(codecs)
        return total, pack_us / 1e6, unpack_us / 1e6


cdef class Log:
    """A log with a space of its own. Functions that wait do so without the GIL, so that threads can test them."""
    cdef SpaceStruct space
    cdef LogStruct log
    cdef Pack pack_state
    cdef Progress progress      # of the last swapoff

    def __cinit__(self, int buffers=6, int bits=64, bint apart=False):
        if space_init(&self.space, bits) != 0 or log_init(&self.log, &self.space, buffers) != 0 \
                or pack_init(&self.pack_state) != 0:
            raise MemoryError
        self.log.apart = apart

    def __dealloc__(self):
        log_deinit(&self.log)
        pack_deinit(&self.pack_state)
        space_deinit(&self.space)

    def add_area(self, int fd, uint64_t size):
        """A file store behind one whose faults can be set; its number."""
        cdef Store *store = &self.log.areas[self.log.area_count]
        cdef int result
        assert self.log.area_count < MAX_AREAS and 0 <= fd < MAX_FD
        result = file_store_init(store, fd, size)
        if result != 0:
            _fail(result)
        _wrap(store)
        self.log.area_count += 1
        self.log.slots += store.slots
        slots_order_areas(&self.log)
        return self.log.area_count - 1

    def add_area_of_nothing(self, uint32_t slots):
        """An area that keeps nothing: what is read from it is noise, as what is written by overwrite(); all written
        blocks are counted. One at a time."""
        cdef Store *store = &self.log.areas[self.log.area_count]
        cdef int result = file_store_init(store, -1, slots * <uint64_t>BLOCK_BYTES)
        cdef uint64_t seed = 1
        cdef uint32_t word
        global _nothing
        if result != 0:
            _fail(result)
        for word in range(PAGE_BYTES // 8):
            (<uint64_t *>_noise)[word] = _mix(&seed)
        free(_nothing)
        _nothing = <Nothing *>calloc(slots, sizeof(Nothing))
        store.write, store.read = _write_nowhere, _read_noise
        self.log.area_count += 1
        slots_order_areas(&self.log)

    def overwrite(self, uint32_t[::1] offsets, int64_t writes, double hot, double hot_writes, uint64_t seed):
        """Overwrites that many random pages of those in `offsets` (0: none yet): a share of `hot_writes` of them among
        the first `hot` of the pages. Tells hot pages, writes and cleans as the engine does; bytes written to areas by
        it."""
        cdef int64_t turn, at
        cdef int64_t count = offsets.shape[0]
        cdef int64_t hot_count = <int64_t>(count * hot)
        cdef uint8_t *place = NULL
        cdef uint64_t word
        cdef int which
        cdef int result = 0
        before = self.log.areas[0].bytes_written
        with nogil:
            for turn in range(writes):
                at = turn % count
                which = OPEN_PLAIN
                if offsets[at] != 0:
                    if _random(&seed) < hot_writes:
                        at = <int64_t>(_random(&seed) * hot_count)
                    else:
                        at = hot_count + <int64_t>(_random(&seed) * (count - hot_count))
                    word = space_word(&self.space, offsets[at])
                    which = log_open_plain(&self.log, log_is_young(&self.log, &self.log.blocks[stored_block(word)]))
                    log_freed(&self.log, space_put(&self.space, offsets[at]))
                result = log_reserve(&self.log, which, &place)
                if result != 0:
                    break
                memcpy(place, _noise, PAGE_BYTES)
                offsets[at] = space_allocate(&self.space, entry_make(CACHED, 1, 0))
                log_commit(&self.log, which, offsets[at], PAGE_BYTES, 0, 0)
                while log_write_next(&self.log) == 1:
                    pass
                while log_free_slots(&self.log) < slots_spare(&self.log) and result >= 0:
                    result = pack_clean(&self.log, &self.pack_state)
                    while log_write_next(&self.log) == 1:
                        pass
                if result < 0:
                    break
        if result < 0:
            _fail(result)
        return self.log.areas[0].bytes_written - before

    def fill(self, uint64_t pages, uint32_t length):
        """As many stored pages, which came to that many bytes each: their entries and all that is known of their
        blocks, and no bytes."""
        cdef int which = OPEN_PLAIN if length == PAGE_BYTES else OPEN_PACKED
        cdef uint64_t _page
        cdef uint8_t *at = NULL
        cdef int result = 0
        with nogil:
            for _page in range(pages):
                while log_write_next(&self.log) == 1:
                    pass
                result = log_reserve(&self.log, which, &at)
                if result != 0:
                    break
                log_commit(&self.log, which, space_allocate(&self.space, entry_make(CACHED, 1, 0)), length, 0, 0)
        if result != 0:
            _fail(result)

    def is_young(self, uint32_t offset):
        """Whether the page, given up now, would be taken for hot when it is evicted again."""
        return log_is_young(&self.log, &self.log.blocks[stored_block(space_word(&self.space, offset))])

    def limit_blocks(self, uint32_t most):
        """Entries can name fewer blocks from now on."""
        self.log.block_limit = most

    def fail_writes(self, int area, int error, int times=1, bint torn=False):
        """The next writes, or with -1 all, give -error; error 0 ends it."""
        faults = &_faults[self.log.areas[area].fd]
        faults.write_error, faults.write_errors, faults.torn = -error, times if times >= 0 else EACH_TIME, torn

    def fail_reads(self, int area, int error, int times=1):
        faults = &_faults[self.log.areas[area].fd]
        faults.read_error, faults.read_errors = -error, times if times >= 0 else EACH_TIME

    def delay_writes(self, int area, uint64_t us):
        _faults[self.log.areas[area].fd].delay_us = us

    def pack(self, const uint8_t[::1] page, uint32_t stamp=0, bint hot=False):
        """Evicts a page as the evictor does: its offset. Waits while all buffers are on their way out."""
        cdef int which = log_open_plain(&self.log, hot)
        cdef uint8_t *at = NULL
        cdef uint32_t offset = 0
        cdef int result
        assert page.shape[0] == PAGE_BYTES
        with nogil:
            result = log_reserve(&self.log, which, &at)
            if result == 0:
                memcpy(at, &page[0], PAGE_BYTES)
                pthread_mutex_lock(&self.space.lock)
                offset = space_allocate(&self.space, entry_make(CACHED, 1, 0))
                if offset != 0:
                    log_commit(&self.log, which, offset, PAGE_BYTES, 0, stamp)
                pthread_mutex_unlock(&self.space.lock)
        if result != 0:
            _fail(result)
        if offset == 0:
            _fail(-errno.ENOSPC)
        return offset

    def get(self, uint32_t offset):
        pthread_mutex_lock(&self.space.lock)
        space_get(&self.space, offset)
        pthread_mutex_unlock(&self.space.lock)

    def put(self, uint32_t offset):
        """Whether this freed the entry, and its share of its block."""
        cdef uint64_t word
        with nogil:
            pthread_mutex_lock(&self.space.lock)
            word = space_put(&self.space, offset)
            if word != 0:
                log_freed(&self.log, word)
            pthread_mutex_unlock(&self.space.lock)
        return word != 0

    def read(self, uint32_t offset):
        """The page, as a fault would have it."""
        cdef Pin pin
        pin, index = self.pin(offset)
        try:
            return pin.read(index)
        finally:
            pin.unpin()

    def pin(self, uint32_t offset):
        """(pin of its block, index in it)."""
        cdef Pin pin = Pin()
        cdef uint64_t word
        with nogil:
            pthread_mutex_lock(&self.space.lock)
            word = space_word(&self.space, offset)
            pin.data = log_pin(&self.log, stored_block(word))
            pthread_mutex_unlock(&self.space.lock)
        pin.log, pin.block, pin.held = self, stored_block(word), True
        return pin, stored_index(word)

    def write_next(self):
        """1 when a block was written or dropped, 0 when none was full, or -errno."""
        cdef int result
        with nogil:
            result = log_write_next(&self.log)
        return result

    def pack_next(self):
        """1 when a full block was packed small or found not worth it, 0 when there was none, or -errno."""
        cdef int result
        with nogil:
            result = pack_next(&self.log, &self.pack_state)
        return result

    def compact(self):
        """1 if a thin block of the tier was packed together, 0, or -errno."""
        cdef int result
        with nogil:
            result = pack_compact(&self.log, &self.pack_state)
        return result

    def clean(self):
        """Dead pages of the block that was emptied, or -errno."""
        cdef int result
        with nogil:
            result = pack_clean(&self.log, &self.pack_state)
        return result

    def clean_ahead(self):
        """Dead pages of the block that was emptied, 0 if it was not time to."""
        cdef int result
        with nogil:
            result = pack_clean_ahead(&self.log, &self.pack_state)
        return result

    def refuse_discards(self, int area):
        """From now on the medium says that it cannot discard."""
        self.log.areas[area].discard = _refused_discard

    def discard_next(self):
        """Whether a free slot was given back to its medium, or refused."""
        with nogil:
            result = slots_discard_next(&self.log)
        return result

    def packs(self, bint packs):
        """Whether plain blocks wait for a packer."""
        self.log.packs = packs

    def tier(self, uint32_t most):
        """Blocks of packed pages that may stay in memory; as many buffers more or less."""
        while self.log.tier_most < most and log_tier_grow(&self.log):
            pass
        while self.log.tier_most > most:
            log_tier_shrink(&self.log, 1)
            if not log_buffer_drop(&self.log, self.log.buffers_made - self.log.tier_most - 1):
                self.log.tier_most += 1
                break
        return self.log.tier_most

    def swapoff(self, int area, uint32_t memory_blocks=0):
        """Blocks that were moved, so many into memory if need be; raises OSError."""
        cdef int result
        memset(&self.progress, 0, sizeof(Progress))
        self.progress.memory_blocks = memory_blocks
        with nogil:
            result = swapoff_area(&self.log, &self.pack_state, area, &self.progress)
        assert self.progress.bytes_moved == self.progress.blocks_moved * BLOCK_BYTES
        assert self.progress.entries_visited == 0
        if result != 0:
            _fail(result)
        return self.progress.blocks_moved

    def cancel_swapoff(self):
        self.progress.cancel = True

    def entry(self, uint32_t offset):
        """(count, block, index, stamp) of a stored page."""
        word = space_word(&self.space, offset)
        assert entry_state(word) == STORED
        return entry_count(word), stored_block(word), stored_index(word), stored_stamp(word)

    def block(self, uint32_t at):
        assert at < self.log.block_end
        b = &self.log.blocks[at]
        return {'state': BLOCK_STATES[b.state], 'area': b.area, 'slot': b.slot, 'live': b.live, 'used': b.used,
                'pins': b.pins, 'in_memory': b.data != NULL, 'bytes': b.bytes, 'packed': bool(b.packed),
                'hot': bool(b.hot), 'cleaned': bool(b.cleaned)}

    def area(self, int at):
        s = &self.log.areas[at]
        f = &_faults[s.fd]
        return {'slots': s.slots, 'slot_end': s.slot_end, 'returned': s.returned_count, 'discarded': s.discarded,
                'writes': s.writes,
                'bytes_written': s.bytes_written, 'reads': s.reads, 'bytes_read': s.bytes_read,
                'write_calls': f.write_calls, 'read_calls': f.read_calls, 'bad_calls': f.bad_calls}

    @property
    def blocks(self):
        """Blocks ever made: ids are below."""
        return self.log.block_end

    @property
    def blocks_used(self):
        return self.log.blocks_used

    @property
    def block_limit(self):
        return self.log.block_limit

    @property
    def queued(self):
        return self.log.lists[LIST_QUEUE].count

    @property
    def tiered(self):
        return self.log.lists[LIST_TIER].count

    @property
    def kept(self):
        return self.log.lists[LIST_KEPT].count

    @property
    def buffers_free(self):
        return self.log.buffers_free

    @property
    def slots_used(self):
        return self.log.slots_used

    @property
    def slots_peak(self):
        return self.log.slots_peak

    @property
    def free_slots(self):
        return log_free_slots(&self.log)

    @property
    def error(self):
        return self.log.error

    @property
    def entries(self):
        return self.space.entries

    def check(self):
        """The invariants, while no block is being written."""
        offsets = _check_space(&self.space)
        live = [0] * self.log.block_end
        for offset in offsets:
            word = space_word(&self.space, offset)
            if entry_state(word) == STORED:
                block, index = stored_block(word), stored_index(word)
                live[block] += 1
                assert index < self.log.blocks[block].used, f'{offset} names {index} in {block}'
                assert self.log.blocks[block].owners[index] == offset, f'{offset} does not own {index} in {block}'
        for block in range(self.log.block_end):
            self.check_block(block, live[block])
        assert self.log.stored == sum(live), f'{self.log.stored} live pages, words {sum(live)}'
        used = 0
        for block in range(self.log.block_end):
            used += self.log.blocks[block].used if self.log.blocks[block].state != BLOCK_FREE else 0
        assert self.log.used == used, f'{self.log.used} pages, {used} in blocks'
        self.check_lists()
        for area in range(self.log.area_count):
            self.check_area(area)

    def check_block(self, uint32_t at, uint32_t live):
        b = &self.log.blocks[at]
        if b.state == BLOCK_FREE:
            assert live == 0 and b.data == NULL and b.owners == NULL and b.lengths == NULL, f'block {at} is free'
            return
        assert b.live == live, f'block {at}: live {b.live}, words {live}'
        assert b.live <= b.used <= b.room, f'block {at}: live {b.live}, used {b.used}, room {b.room}'
        assert b.bytes <= BLOCK_BYTES and (b.packed or b.bytes == b.used * PAGE_BYTES), f'block {at}: {b.bytes} bytes'
        assert b.state == BLOCK_STORED or b.data != NULL, f'block {at} is nowhere'
        open_now = [self.log.open[which] for which in range(OPENS)]
        assert (b.state == BLOCK_OPEN) == (at in open_now), f'block {at}: the open ones are {open_now}'
        assert b.state == BLOCK_OPEN or b.packed or b.used == BLOCK_PAGES, f'block {at}: {b.used} used'
        assert b.live > 0 or b.pins > 0 or b.state == BLOCK_OPEN, f'block {at} is there for nobody'
        self.check_places(at)

    def check_places(self, uint32_t at):
        cdef Place place
        cdef uint32_t index
        cdef uint32_t end = 0
        for index in range(self.log.blocks[at].used):
            log_place(&self.log, at, index, &place)
            if place.start != end or not 0 < place.length <= PAGE_BYTES:
                raise AssertionError(f'page {index} of block {at}')
            end += place.length + self.log.blocks[at].packed * SUM_BYTES
        assert end == self.log.blocks[at].bytes, f'block {at} ends at {end}'

    def list_of(self, int name):
        """The blocks of a list, oldest first; its links agree."""
        found = []
        at, before = self.log.lists[name].first, NO_BLOCK
        while at != NO_BLOCK:
            assert self.log.blocks[at].list == name and self.log.blocks[at].previous == before
            found.append(at)
            at, before = self.log.blocks[at].next, at
        assert self.log.lists[name].last == before and self.log.lists[name].count == len(found)
        return found

    def check_lists(self):
        states = [self.log.blocks[at].state for at in range(self.log.block_end)]
        in_memory = {at for at in range(self.log.block_end) if self.log.blocks[at].data != NULL}
        buffers = {<uint64_t>self.log.blocks[at].data for at in in_memory}
        buffers |= {<uint64_t>self.log.buffers[at] for at in range(self.log.buffers_free)}
        assert len(in_memory) + self.log.buffers_free == self.log.buffers_made == len(buffers), 'a buffer is lost'
        full = self.list_of(LIST_QUEUE) + self.list_of(LIST_TIER)
        assert sorted(full) == [at for at, state in enumerate(states) if state == BLOCK_FULL]
        assert sorted(self.list_of(LIST_KEPT)) == [at for at in sorted(in_memory) if states[at] == BLOCK_STORED]
        plain = [at for at in in_memory if self.log.blocks[at].plain]
        assert not any(self.log.blocks[at].packed or states[at] == BLOCK_STORED for at in plain)
        assert len(plain) == self.log.plain <= self.log.plain_most, 'buffers of plain pages'
        unused = []
        at = self.log.free_ids
        while at != NO_BLOCK:
            assert self.log.blocks[at].list == LIST_NONE
            unused.append(at)
            at = self.log.blocks[at].next
        assert sorted(unused) == [at for at, state in enumerate(states) if state == BLOCK_FREE]
        assert self.log.blocks_used == len(states) - len(unused) <= self.log.block_limit, 'blocks in use'
        assert self.log.slots_used == states.count(BLOCK_STORED), 'a slot is lost'

    def check_area(self, int number):
        area = &self.log.areas[number]
        used = [self.log.blocks[at].slot for at in range(self.log.block_end)
                if self.log.blocks[at].state == BLOCK_STORED and self.log.blocks[at].area == number]
        returned = [area.returned[at] for at in range(area.returned_count)]
        assert sorted(used + returned) == list(range(area.slot_end)), f'slots of area {number}'
        assert area.slot_end <= area.slots
        assert area.bytes_written == area.writes * BLOCK_BYTES
        assert _faults[area.fd].bad_calls == 0, 'a write or read that is not aligned, or out of bounds'


# ---- readahead

cdef class Streams:
    cdef StreamsStruct streams

    def __cinit__(self, uint32_t most=512, bint strides=True):
        readahead_init(&self.streams, most)
        if strides:
            readahead_find_strides(&self.streams)

    def fault(self, uint64_t page, low=None, high=None):
        """(start, count, confirmed) of the window, and it is done; of its pages at most those in [low, high)."""
        cdef Window window
        readahead_window(&self.streams, page << PAGE_SHIFT, &window)
        start, end = window.start, window.start + window.count
        if low is not None:
            start = max(start, low)
        if high is not None:
            end = min(end, high)
        asked = (window.start, window.count, window.confirmed)
        window.start, window.count = start, <uint32_t>(end - start)
        readahead_done(&self.streams, &window)
        return asked

    def fault_at(self, uint64_t address, most=None):
        """(step in bytes, pages, confirmed) of the window, of which at most so many pages are taken."""
        cdef Window window
        readahead_window(&self.streams, address, &window)
        count = window.count if most is None else min(window.count, <uint32_t>most)
        pages = [window_page(window.address, window.step, at) for at in range(count)]
        asked = (window.step, pages, window.confirmed)
        window.count = count
        readahead_done(&self.streams, &window)
        return asked


# ---- reclaim

def present(uint32_t age, uint32_t offset=0):
    """The page value of a present page."""
    return present_value(age, offset)


def age(uint32_t value):
    """The age of a present page, else None."""
    return age_of(value) if is_present(value) else None


def reclaim_run(uint32_t[::1] values, uint32_t most, uint32_t first=0):
    """(start, length) of the first run to evict from `first` on; lowers ages in `values`."""
    cdef uint32_t start = 0
    cdef uint32_t length
    assert first < values.shape[0]
    length = c_reclaim_run(&values[first], <uint32_t>(values.shape[0] - first), most, &start)
    return first + start, length


def since_us(uint64_t then):
    """Microseconds since a time of the monotonic clock."""
    return sys_since_us(then)


def reclaim_is_hot(uint64_t lived, uint64_t stored):
    """Whether a page whose copy lived for so many evictions is likely to live as short again."""
    return c_reclaim_is_hot(lived, stored)


def reclaim_age(uint32_t now, uint32_t stamp, uint32_t resident):
    return c_reclaim_age(now, stamp, resident)
