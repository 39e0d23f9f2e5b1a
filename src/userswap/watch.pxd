# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CPUs' threads are told of the faults of an address space."""

from userswap.mm cimport Engine, Mm, Worker

cdef void watch_begin(Engine *engine, Mm *mm) noexcept nogil
cdef void watch_end(Engine *engine, Mm *mm) noexcept nogil
cdef void watch_serving(Worker *worker, Mm *mm) noexcept nogil
cdef void watch_served(Mm *mm) noexcept nogil
cdef void watch_in_vain(Worker *worker, Mm *mm) noexcept nogil
cdef void watch_look(Engine *engine, Mm *mm) noexcept nogil
