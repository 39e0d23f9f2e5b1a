# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of the program, on the descriptor on which its faults come."""

from libc.stdint cimport uint64_t

from userswap.mm cimport Engine, Mm, Worker
from userswap.system cimport uffd_msg

cdef void event_apply(Engine *engine, Mm *mm) noexcept nogil
cdef int event_read(Engine *engine, Mm *mm, uffd_msg *message) noexcept nogil
cdef bint events_drain(Engine *engine, Mm *mm, Worker *worker) noexcept nogil
cdef void events_await_parent(Engine *engine, Mm *child) noexcept nogil
