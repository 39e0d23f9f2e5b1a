# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of the pages that a fill has planned: from memory, made up, or read from an area, checked and unpacked.

Without Mm.lock. The fill holds a count of each entry and a pin on each block, so that the bytes stay where they are.

That is done in a scratch, of which there is one for each thread that fills. The one used last is lent first, so that
no more of them take memory than were ever in use at once."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from userswap.codec cimport codec_unpack
from userswap.fetch cimport log_fetched
from userswap.log cimport (
    BLOCK_STORED,
    Block,
    Log,
    Place,
    log_place,
    log_place_next,
    log_read,
    log_read_later,
    log_span,
    log_take,
)
from userswap.mm cimport MAX_SCRATCH, Engine, Scratch, engine_stop, engine_stop_at
from userswap.readahead cimport WINDOW_MAX
from userswap.sums cimport sums_hold
from userswap.system cimport (
    ECANCELED,
    SYS_READS_MAX,
    add_i64,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_reads_finish,
    sys_reads_start,
    sys_release,
    sys_reserve,
)
from userswap.types cimport BLOCK_BYTES, FILLED, PAGE_BYTES, STORED

cdef enum:
    DIRECT = 16             # pages that lie together in memory are copied from there, fewer gathered first
    READ_AGAIN = 2          # times that what could not be read is read again
    DAMAGED = -74           # -EBADMSG


# ---- where

cdef uint64_t _packed_bytes() noexcept nogil:
    """A window of pages that did not become smaller, their checksums (a page), and what reads round down and up."""
    return (WINDOW_MAX + 1 + 2 * SYS_READS_MAX) * <uint64_t>PAGE_BYTES


cdef void _free_scratch(Scratch *scratch) noexcept nogil:
    if scratch.pages != NULL:
        sys_release(scratch.pages, <uint64_t>WINDOW_MAX * PAGE_BYTES)
    if scratch.packed != NULL:
        sys_release(scratch.packed, _packed_bytes())


cdef bint load_add_scratch(Engine *engine) noexcept nogil:
    """One more thread fills. False without memory."""
    cdef Scratch scratch
    cdef bint enough
    scratch.pages = <uint8_t *>sys_reserve(<uint64_t>WINDOW_MAX * PAGE_BYTES)
    scratch.packed = <uint8_t *>sys_reserve(_packed_bytes())
    pthread_mutex_lock(&engine.scratch_lock)
    enough = scratch.pages != NULL and scratch.packed != NULL and engine.scratch_made < MAX_SCRATCH
    if enough:      # lent last
        memmove(&engine.scratch[1], &engine.scratch[0], engine.scratch_count * sizeof(Scratch))
        engine.scratch[0] = scratch
        engine.scratch_count += 1
        engine.scratch_made += 1
    pthread_mutex_unlock(&engine.scratch_lock)
    if not enough:
        _free_scratch(&scratch)
    return enough


cdef void load_remove_scratch(Engine *engine) noexcept nogil:
    """One fewer does."""
    cdef Scratch scratch
    pthread_mutex_lock(&engine.scratch_lock)
    scratch = engine.scratch[0]
    engine.scratch_count -= 1
    engine.scratch_made -= 1
    memmove(&engine.scratch[0], &engine.scratch[1], engine.scratch_count * sizeof(Scratch))
    pthread_mutex_unlock(&engine.scratch_lock)
    _free_scratch(&scratch)


cdef void load_begin(Worker *worker) noexcept nogil:
    cdef Engine *engine = worker.engine
    pthread_mutex_lock(&engine.scratch_lock)
    engine.scratch_count -= 1
    worker.scratch = engine.scratch[engine.scratch_count]
    pthread_mutex_unlock(&engine.scratch_lock)


cdef void load_end(Worker *worker) noexcept nogil:
    cdef Engine *engine = worker.engine
    pthread_mutex_lock(&engine.scratch_lock)
    engine.scratch[engine.scratch_count] = worker.scratch
    engine.scratch_count += 1
    pthread_mutex_unlock(&engine.scratch_lock)


# ---- what

cdef bint _is_doubtful(Log *log, Segment *segment) noexcept nogil:
    """Whether its bytes may not be those that were evicted: a medium has had them."""
    return segment.read != NULL or log.blocks[segment.block].doubtful


cdef int _check(Log *log, Segment *segment, const uint8_t *pages) noexcept nogil:
    """Of plain pages, the segment's. Returns 0 or DAMAGED."""
    cdef uint32_t at
    for at in range(segment.count if _is_doubtful(log, segment) else 0):
        if not sums_hold(log, segment.block, segment.index + at, pages + <uint64_t>at * PAGE_BYTES, PAGE_BYTES):
            return DAMAGED
    return 0


cdef int _unpack(Worker *worker, Segment *segment, const uint8_t *data) noexcept nogil:
    """Checks and unpacks the pages of a segment; `data` is where its block would begin. Returns 0 or DAMAGED."""
    cdef Log *log = &worker.engine.log
    cdef bint doubtful = _is_doubtful(log, segment)
    cdef uint8_t *into = worker.scratch.pages + <uint64_t>segment.first * PAGE_BYTES
    cdef Place place
    cdef uint32_t at
    log_place(log, segment.block, segment.index, &place)
    for at in range(segment.count):
        if at > 0:
            log_place_next(log, segment.block, segment.index + at, &place)
        if doubtful and not sums_hold(log, segment.block, segment.index + at, data + place.start, place.length):
            return DAMAGED
        if not codec_unpack(&worker.unpacker, place.codec, data + place.start, place.length,
                            into + <uint64_t>at * PAGE_BYTES):
            return DAMAGED
    return 0


cdef int _load_segment(Worker *worker, Segment *segment) noexcept nogil:
    """What is in memory, or made up."""
    cdef uint8_t *into = worker.scratch.pages + <uint64_t>segment.first * PAGE_BYTES
    cdef uint64_t length = <uint64_t>segment.count * PAGE_BYTES
    cdef const uint8_t *pages = segment.data + <uint64_t>segment.index * PAGE_BYTES
    cdef uint64_t at
    if segment.state == FILLED:
        for at in range(length // 8):
            (<uint64_t *>into)[at] = segment.word
    elif segment.data == NULL:
        return 0
    elif segment.packed:
        return _unpack(worker, segment, segment.data)
    elif segment.count >= DIRECT:
        segment.direct = True
        return _check(&worker.engine.log, segment, pages)
    else:
        memcpy(into, pages, length)
        return _check(&worker.engine.log, segment, into)
    return 0


cdef int _read_segment(Worker *worker, Segment *segment, uint64_t *used) noexcept nogil:
    """Begins to read what is in an area only: plain pages to where they are wanted, packed ones to
    worker.scratch.packed, of which *used bytes are."""
    cdef uint32_t start, length
    cdef uint8_t *into = worker.scratch.pages + <uint64_t>segment.first * PAGE_BYTES
    log_span(&worker.engine.log, segment.block, segment.index, segment.count, &start, &length)
    if segment.packed:
        into = worker.scratch.packed + used[0]
        used[0] += length
        segment.origin = into - start
    segment.read = into
    return log_read_later(&worker.engine.log, &worker.reads, segment.block, start, length, into)


cdef int _take_read(Worker *worker, Segment *segment) noexcept nogil:
    """What was read of it. Returns 0 or DAMAGED."""
    if segment.packed:
        return _unpack(worker, segment, segment.origin)
    return _check(&worker.engine.log, segment, segment.read)


cdef void _stop_for(Engine *engine, Segment *segment, int error) noexcept nogil:
    """The program cannot have these pages, and must not have others."""
    cdef Block *block = &engine.log.blocks[segment.block]
    cdef uint32_t start, length
    if block.state != BLOCK_STORED:
        engine_stop(engine, b"swapped memory came back damaged from a swap area that is gone", 0)
        return
    log_span(&engine.log, segment.block, segment.index, segment.count, &start, &length)
    engine_stop_at(engine, b"swapped memory came back damaged" if error == DAMAGED else
                   b"swapped memory could not be read back", 0 if error == DAMAGED else error,
                   <int>block.area, <uint64_t>block.slot * BLOCK_BYTES + start)


cdef int _finish_read(Worker *worker, Segment *segment, int error) noexcept nogil:
    """Takes what was read of a segment; `error` is what any of the reads gave, of which its checksum tells whether it
    was this one. What is not as it was written is read again. Returns 0 or -errno."""
    cdef Engine *engine = worker.engine
    cdef uint32_t start, length
    cdef int _turn
    if error == -ECANCELED:
        return error
    log_span(&engine.log, segment.block, segment.index, segment.count, &start, &length)
    log_take(&engine.log, segment.block, start, length, segment.read)
    error = _take_read(worker, segment)
    for _turn in range(READ_AGAIN):
        if error == 0:
            return 0
        add_i64(&engine.counters.reads_repeated, 1)
        error = log_read(&engine.log, segment.block, start, length, segment.read)
        if error == -ECANCELED:
            return error
        if error == 0:
            error = _take_read(worker, segment)
    if error != 0:
        _stop_for(engine, segment, error)
    return error


cdef int load_pages(Worker *worker, Fill *fill) noexcept nogil:
    """Puts the bytes together in the worker's scratch: what is in memory while the areas are being read."""
    cdef uint64_t used = 0
    cdef uint32_t at
    cdef int error
    cdef int result = 0
    cdef int read = 0
    cdef Segment *segment
    for at in range(fill.segments):
        segment = &fill.segment[at]
        if segment.state != STORED or segment.data != NULL:
            continue
        segment.data = log_fetched(&worker.engine.log, segment.block)
        if segment.data == NULL:
            error = _read_segment(worker, segment, &used)
            read = error if error != 0 else read
    sys_reads_start(&worker.reads)
    for at in range(fill.segments):
        error = _load_segment(worker, &fill.segment[at])
        if error == DAMAGED:
            _stop_for(worker.engine, &fill.segment[at], error)
        result = error if error != 0 else result
    error = <int>sys_reads_finish(&worker.reads)
    read = error if error != 0 else read
    for at in range(fill.segments):
        if fill.segment[at].read != NULL and result == 0:
            result = _finish_read(worker, &fill.segment[at], read)
    return result
