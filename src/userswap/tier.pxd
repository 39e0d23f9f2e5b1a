# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory packed blocks may have."""

from libc.stdint cimport uint32_t, uint64_t

from userswap.mm cimport Engine

cdef void tier_measure(Engine *engine) noexcept nogil
cdef void tier_init(Engine *engine) noexcept nogil
cdef void tier_fault(Engine *engine, uint32_t at, bint from_area, uint32_t pages_since, uint32_t pages,
                     uint64_t us) noexcept nogil
cdef void tier_fetched(Engine *engine, uint64_t us) noexcept nogil
cdef uint32_t tier_spare(Engine *engine, uint32_t wanted) noexcept nogil
cdef void tier_unspare(Engine *engine, uint32_t blocks) noexcept nogil
cdef bint tier_yield(Engine *engine) noexcept nogil
cdef void tier_trim(Engine *engine) noexcept nogil
cdef void tier_adjust(Engine *engine) noexcept nogil
