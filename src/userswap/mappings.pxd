# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings: which of a program's memory the engine takes into its care."""

from userswap.mm cimport Engine, Mm

cdef bint mappings_protect(Mm *mm, int uffd) noexcept nogil
cdef void mappings_unshared(Engine *engine, Mm *mm) noexcept nogil
cdef bint mappings_verify(Engine *engine, Mm *mm) noexcept nogil
cdef void mappings_promote(Engine *engine, Mm *mm) noexcept nogil
cdef void mappings_unregister_last(Engine *engine, Mm *mm) noexcept nogil
cdef void mappings_settle_doubts(Engine *engine, Mm *mm) noexcept nogil
cdef void mappings_look_again(Engine *engine, Mm *mm) noexcept nogil
cdef int mappings_register(Engine *engine, Mm *mm) noexcept nogil
cdef int mappings_register_caught(Mm *child) noexcept nogil
