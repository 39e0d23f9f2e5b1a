# SPDX-License-Identifier: GPL-2.0-or-later
"""Eviction: the thread that takes pages out."""

from libc.stdint cimport uint8_t, uint32_t

from userswap.batch cimport Batch
from userswap.mm cimport Engine

# What is done with the batch, for the engine that comes after: until it is noted that it has been moved, staging tells
# which of its pages were; until it is noted that it is stored, the bytes of those entries that are CACHED are there.
cdef enum EvictPhase:
    EVICT_NOTHING
    EVICT_MOVING
    EVICT_STORING

cdef struct Evictor:
    Engine *engine
    uint8_t *pages          # what was read from staging
    uint32_t position       # of the clock, in Engine.mms
    bint behind             # the next batch is to be of what streams have left behind
    uint32_t phase
    uint32_t mm_id          # whose pages the batch has
    Batch batch

cdef int evict_start(Engine *engine) noexcept nogil
cdef void evict_stop(Engine *engine) noexcept nogil
