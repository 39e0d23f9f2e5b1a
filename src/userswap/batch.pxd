# SPDX-License-Identifier: GPL-2.0-or-later
"""A batch of pages on its way out of an address space."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from userswap.mm cimport Engine, Mm

cdef enum:
    BATCH_PAGES = 256
    BATCH_RUNS = 64

cdef struct Run:
    uint64_t page
    uint32_t count          # chosen
    uint32_t moved          # taken out
    uint32_t staged         # place in staging, in pages from the start of the batch
    uint32_t first          # place of its first page in Batch.offsets

cdef struct Refused:
    uint64_t page
    uint32_t count

cdef struct Batch:
    Run runs[64]            # BATCH_RUNS
    uint32_t run_count
    uint32_t pages
    uint32_t moved
    uint64_t staging        # address of its first page
    uint32_t kind           # what chose it: BY_HAND or AS_BEHIND
    uint32_t offsets[256]   # of dirty pages, CACHED; of clean ones, what they had
    uint8_t dirty[256]
    uint8_t hot[256]        # of dirty pages: they came back soon
    # These outlast the batch.
    Refused refused[64]     # BATCH_RUNS; runs that the kernel refused, perhaps because they are shared
    uint32_t refused_count
    Refused unshared[64]    # the last that were made the address space's own, and whose
    uint32_t unshared_count
    uint32_t unshared_mm

cdef void batch_choose_behind(Mm *mm, Batch *batch) noexcept nogil
cdef bint batch_choose(Mm *mm, Batch *batch) noexcept nogil
cdef int batch_allocate(Engine *engine, Mm *mm, Batch *batch) noexcept nogil
cdef int batch_move(Engine *engine, Mm *mm, Batch *batch) noexcept nogil
cdef bint batch_was_unshared(Mm *mm, Batch *batch, uint64_t page) noexcept nogil
cdef void batch_mark(Engine *engine, Mm *mm, Batch *batch) noexcept nogil
