# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching: blocks that will be read soon come back into memory whole.

Who asks does not wait: one thread fetches (writeback.pyx). A block that is being fetched is pinned. Whoever needs its
bytes meanwhile waits for them, and reads them itself if they could not be fetched.
"""

from libc.string cimport memmove

from userswap.blocks cimport block_list_add, buffer_put, buffer_take, log_changed
from userswap.log cimport BLOCK_STORED, FETCHES, LIST_KEPT, NO_BLOCK, Block, log_read_whole, log_unpin_locked
from userswap.sums cimport sums_hold_all
from userswap.system cimport (
    load_u32,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_futex_advance,
    sys_futex_wait,
)


cdef bint log_in_memory(Log *log, uint32_t block) noexcept nogil:
    """Whether the block is in memory, or on its way there. An answer that is out of date does no harm."""
    return log.blocks[block].data != NULL or log.blocks[block].fetching


cdef void log_fetch(Log *log, uint32_t block) noexcept nogil:
    """Asks for the block. Where there is much to do already, nothing."""
    cdef bint added = False
    pthread_mutex_lock(&log.lock)
    if (log.fetch_count < FETCHES and not log.stopping and log.blocks[block].state == BLOCK_STORED
            and not log_in_memory(log, block)):
        log.fetches[log.fetch_count] = block
        log.fetch_count += 1
        log.blocks[block].fetching = True
        log.blocks[block].pins += 1
        added = True
    pthread_mutex_unlock(&log.lock)
    if added:
        sys_futex_advance(&log.fetch_wanted)


cdef uint8_t *_fetch_begin(Log *log, uint32_t *at) noexcept nogil:
    """The oldest block that is wanted, and a buffer for it. NULL when there is none, or none to spare: the block that
    is packed next needs one."""
    cdef uint8_t *buffer = NULL
    pthread_mutex_lock(&log.lock)
    if log.fetch_count > 0:
        at[0] = log.fetches[0]
        log.fetch_count -= 1
        memmove(log.fetches, log.fetches + 1, log.fetch_count * sizeof(uint32_t))
        buffer = buffer_take(log, 1)
    pthread_mutex_unlock(&log.lock)
    return buffer


cdef bint log_fetch_next(Log *log) noexcept nogil:
    """Fetches the oldest block that is wanted. False when there was none."""
    cdef uint32_t at = NO_BLOCK
    cdef uint8_t *buffer = _fetch_begin(log, &at)
    cdef Block *block
    cdef bint read = False
    if at == NO_BLOCK:
        return False
    block = &log.blocks[at]
    if buffer != NULL:
        # If it is damaged or cannot be read, who needs it reads it again, and tells of it.
        read = log_read_whole(log, at, buffer) == 0 and sums_hold_all(log, at, buffer)
    pthread_mutex_lock(&log.lock)
    block.fetching = False
    if read:
        block.data = buffer
        block_list_add(log, LIST_KEPT, at, False)
    elif buffer != NULL:
        buffer_put(log, buffer)
    log_unpin_locked(log, at)
    log_changed(log)
    pthread_mutex_unlock(&log.lock)
    return True


cdef void log_fetch_none(Log *log) noexcept nogil:
    """Nobody fetches any more: what is still wanted is let go."""
    cdef int at
    pthread_mutex_lock(&log.lock)
    for at in range(log.fetch_count):
        log.blocks[log.fetches[at]].fetching = False
        log_unpin_locked(log, log.fetches[at])
    log.fetch_count = 0
    pthread_mutex_unlock(&log.lock)


cdef uint8_t *log_fetched(Log *log, uint32_t block) noexcept nogil:
    """The bytes of a pinned block that was not in memory when it was pinned: waited for if they are on their way; NULL
    if they must be read."""
    cdef uint32_t seen
    cdef uint8_t *data
    cdef bint fetching = True
    while True:
        seen = load_u32(&log.changed)
        pthread_mutex_lock(&log.lock)
        fetching = log.blocks[block].fetching and not log.stopping
        data = log.blocks[block].data
        pthread_mutex_unlock(&log.lock)
        if not fetching:
            return data
        sys_futex_wait(&log.changed, seen, 1000000)
