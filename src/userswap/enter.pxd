# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering: a process whose tree nears the limit gets a helper, and its memory into the engine's care."""

from userswap.mm cimport Engine, Mm

cdef int enter_start(Engine *engine) noexcept nogil
cdef void enter_stop(Engine *engine) noexcept nogil
cdef bint enter_verify(Engine *engine, Mm *mm) noexcept nogil
cdef void enter_next(Engine *engine, bint wanted) noexcept nogil
