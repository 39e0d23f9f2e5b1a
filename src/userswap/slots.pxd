# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots: the places of blocks in swap areas."""

from libc.stdint cimport uint32_t, uint64_t

from userswap.log cimport Block, Log
from userswap.stores cimport Store

cdef enum:
    NO_SLOT = 0xFFFFFFFF
    SLOTS_SPARE = 4         # that cleaning needs to work in, and so the evictor to go on: slots_spare says how many
    SPARE_APART = 2         # more, where there are open blocks for hot pages: all may become full at once

cdef void slots_order_areas(Log *log) noexcept nogil
cdef uint64_t slots_spare(Log *log) noexcept nogil
cdef uint64_t slots_free_of(Store *area) noexcept nogil
cdef bint slots_keep_copies(Log *log, Block *block) noexcept nogil
cdef uint32_t slot_take(Log *log, Store *area) noexcept nogil
cdef void slot_return(Log *log, Store *area, uint32_t slot) noexcept nogil
cdef bint slots_discard_next(Log *log) noexcept nogil
