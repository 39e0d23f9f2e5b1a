# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults: the threads that answer them."""

from libc.stdint cimport uint64_t

from userswap.mm cimport Engine, Mm, Worker

cdef Worker *worker_make(Engine *engine) noexcept nogil
cdef void worker_free(Worker *worker) noexcept nogil
cdef int workers_start(Engine *engine) noexcept nogil
cdef void workers_stop(Engine *engine) noexcept nogil
