# SPDX-License-Identifier: GPL-2.0-or-later
"""The invariants of types.pxd, as functions: run by tests and torture while the engine works.

They cost a walk over everything, and are run only where USERSWAP_CHECK is set. A violation stops the program:
its memory can be trusted no more.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from userswap.log cimport BLOCK_FREE, Log
from userswap.mm cimport ENTRIES_FOR_EVER, Mm, engine_stop, mm_check, mm_next, mm_put
from userswap.space cimport LEAF_ENTRIES, Leaf, Space, space_word
from userswap.system cimport pthread_mutex_lock, pthread_mutex_unlock
from userswap.types cimport COUNT_MORE, FREE, STORED, entry_count, entry_state, stored_block, stored_index


cdef uint32_t _check_leaf(Engine *engine, uint32_t at, uint32_t *live) noexcept nogil:
    """Counts the entries of a leaf in use, and for each block those that it holds."""
    cdef Leaf *leaf = &engine.space.leaves[at]
    cdef uint32_t index
    cdef uint32_t used = 0
    cdef uint32_t continued = 0
    cdef uint64_t word
    for index in range(LEAF_ENTRIES):
        word = space_word(&engine.space, at * LEAF_ENTRIES + index)
        used += entry_state(word) != FREE
        if leaf.more != NULL and leaf.more[index] > 0:
            continued += 1
            if entry_count(word) != COUNT_MORE:
                engine_stop(engine, b"invariant: a continuation of no count", at * LEAF_ENTRIES + index)
        if entry_state(word) != STORED:
            continue
        live[stored_block(word)] += 1
        if engine.log.blocks[stored_block(word)].owners[stored_index(word)] != at * LEAF_ENTRIES + index:
            engine_stop(engine, b"invariant: a block knows another owner of a page", stored_block(word))
    if leaf.more != NULL and (continued == 0 or leaf.more[LEAF_ENTRIES] != continued):
        engine_stop(engine, b"invariant: counts continued of a leaf", at)
    return used


cdef void _check_leaves(Engine *engine, uint32_t *live) noexcept nogil:
    cdef Space *space = &engine.space
    cdef uint32_t at, used
    cdef uint64_t entries = 0
    for at in range(space.leaf_end):
        used = _check_leaf(engine, at, live)
        if used != space.leaves[at].used:
            engine_stop(engine, b"invariant: entries in use of a leaf", at)
        entries += used - (at == 0)     # offset 0 is nobody's
    if entries != space.entries:
        engine_stop(engine, b"invariant: entries in use", <long>entries - <long>space.entries)


cdef void _check_space(Engine *engine) noexcept nogil:
    cdef Log *log = &engine.log
    cdef uint32_t at
    cdef uint32_t *live
    pthread_mutex_lock(&engine.space.lock)
    pthread_mutex_lock(&log.lock)
    live = <uint32_t *>calloc(log.block_end + 1, sizeof(uint32_t))
    if live != NULL:
        _check_leaves(engine, live)
        for at in range(log.block_end):
            if log.blocks[at].state != BLOCK_FREE and log.blocks[at].live != live[at]:
                engine_stop(engine, b"invariant: live pages of a block", at)
    free(live)
    pthread_mutex_unlock(&log.lock)
    pthread_mutex_unlock(&engine.space.lock)


cdef void check_running(Engine *engine) noexcept nogil:
    """What holds at any moment. Takes the locks that it needs."""
    cdef uint32_t position = 0
    cdef Mm *mm
    _check_space(engine)
    while True:
        mm = mm_next(engine, &position)
        if mm == NULL:
            return
        pthread_mutex_lock(&mm.lock)
        mm_check(engine, mm)
        pthread_mutex_unlock(&mm.lock)
        mm_put(engine, mm)


cdef void check_ended(Engine *engine) noexcept nogil:
    """When no address space is left, no entry, no live page and no pin is."""
    cdef uint32_t at
    _check_space(engine)
    if engine.cancelled:
        return
    if engine.space.entries != ENTRIES_FOR_EVER:
        engine_stop(engine, b"leak: entries left at the end", <long>engine.space.entries - ENTRIES_FOR_EVER)
    for at in range(engine.log.block_end):
        if engine.log.blocks[at].live != 0 or engine.log.blocks[at].pins != 0:
            engine_stop(engine, b"leak: a block left at the end", at)
