# SPDX-License-Identifier: GPL-2.0-or-later
"""Writeback: full blocks to the areas, and room in these."""

from libc.stdint cimport uint8_t

from userswap.mm cimport Engine

cdef void *writeback_main(void *argument) noexcept nogil
cdef void *fetch_main(void *argument) noexcept nogil
cdef void writeback_make_room(Engine *engine, uint8_t *scratch) noexcept nogil
cdef void writeback_failed(Engine *engine, int result) noexcept nogil
