# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps CPUs from idling while one fault follows another."""

from libc.stdint cimport uint32_t

from userswap.mm cimport Engine, Warmer, Worker

cdef void warm_keep(Worker *worker) noexcept nogil
cdef int warm_start(Engine *engine) noexcept nogil
cdef void warm_stop(Engine *engine) noexcept nogil
