# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks that are caught: the engine's part."""

from userswap.mm cimport Engine

cdef void births_resume(Engine *engine) noexcept nogil
cdef int births_start(Engine *engine) noexcept nogil
cdef void births_stop(Engine *engine) noexcept nogil
cdef void births_bind(Engine *engine) noexcept nogil
