# SPDX-License-Identifier: GPL-2.0-or-later
"""Eviction: the thread that takes pages out, and the one that writes blocks."""

from userswap.mm cimport Engine

cdef int evict_start(Engine *engine) noexcept nogil
cdef void evict_stop(Engine *engine) noexcept nogil
