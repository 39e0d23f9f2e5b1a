# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks: what a child has of its parent's pages, in whatever order it is told."""

from libc.stdint cimport uint64_t

from userswap.mm cimport Engine, Mm

cdef void forks_protect(Engine *engine, Mm *mm) noexcept nogil
cdef void forks_child(Engine *engine, Mm *mm, int uffd) noexcept nogil
cdef void forks_departing(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil
cdef void forks_moved(Engine *engine, Mm *mm, uint64_t from_page, uint64_t to_page, uint64_t count) noexcept nogil
cdef Mm *forks_caught(Engine *engine, Mm *mm, int uffd) noexcept nogil
cdef void forks_caught_done(Engine *engine, Mm *mm) noexcept nogil
