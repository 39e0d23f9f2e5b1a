# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking over what an engine that died has left."""

from userswap.mm cimport Engine

cdef int takeover_claim(Engine *old) noexcept nogil
cdef int takeover_area(Engine *engine, Engine *old, int area, int fd, int shared) noexcept nogil
cdef int takeover_all(Engine *engine, Engine *old) noexcept nogil
cdef const char *takeover_damage() noexcept nogil
cdef void takeover_begin(Engine *engine) noexcept nogil
