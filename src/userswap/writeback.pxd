# SPDX-License-Identifier: GPL-2.0-or-later
"""Writeback: full blocks to the areas, and room in these."""

from userswap.mm cimport Engine

cdef void *writeback_main(void *argument) noexcept nogil
cdef void *fetch_main(void *argument) noexcept nogil
cdef void *pack_main(void *argument) noexcept nogil
cdef void writeback_make_room(Engine *engine) noexcept nogil
cdef void writeback_failed(Engine *engine, int result) noexcept nogil
