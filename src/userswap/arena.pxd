# SPDX-License-Identifier: GPL-2.0-or-later
"""The arena: a file in memory that holds all state which must outlive the engine.

It is mapped at an address that is chosen by us, so that its pointers mean the same in the engine that comes after:
that maps the arena of the one that died, reads it and makes one of its own, at the other of two addresses. So the
old one is never changed, and may be read again should the second engine die as well.

What lies here must make sense at any moment, as its engine may die at any. A pointer is stored after what it points
to is made, and taken back before that is given up. What can be told from other state is not relied on: counts, lists
and free places are made anew by takeover.pyx.

A second file in memory holds the blocks that are in memory. It is the same one for all engines of a run."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    ARENA_SMALL = 32768     # of this size and below what was given back is used again

# Whether there is an arena. Without, as in tests of single structures, the functions below use the process' own
# memory.
cdef int arena_begin() noexcept nogil
cdef int arena_fd() noexcept nogil
cdef void arena_set_root(void *root) noexcept nogil
cdef uint64_t arena_pages() noexcept nogil

# Small objects, all zero. NULL without memory. Given back with the size that they were taken with.
cdef void *arena_take(uint64_t bytes) noexcept nogil
cdef void arena_give(void *at, uint64_t bytes) noexcept nogil

# Large areas, all zero, of which memory is used where they are touched; dropped page by page, and never given back.
cdef void *arena_reserve(uint64_t bytes) noexcept nogil
cdef void arena_drop(void *at, uint64_t bytes) noexcept nogil
cdef void arena_release(void *at, uint64_t bytes) noexcept nogil

# An arena of an engine that died: its root, or NULL when it is none of this version's.
cdef void *arena_open(int fd) noexcept nogil
cdef void arena_close() noexcept nogil
cdef bint arena_has(const void *at, uint64_t bytes) noexcept nogil

# The file of blocks in memory.
cdef int buffers_begin(int fd) noexcept nogil
cdef int buffers_fd() noexcept nogil
cdef uint8_t *buffer_make() noexcept nogil
cdef void buffer_unmake(uint8_t *buffer) noexcept nogil
cdef bint buffer_claim(const uint8_t *buffer) noexcept nogil
cdef void buffers_drop_unclaimed() noexcept nogil
