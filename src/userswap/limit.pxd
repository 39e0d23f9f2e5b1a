# SPDX-License-Identifier: GPL-2.0-or-later
"""The limit: how much memory is in use, who may take more, who must wait."""

from libc.stdint cimport int64_t

from userswap.mm cimport Engine

cdef int64_t room_left(Engine *engine) noexcept nogil
cdef void room_take(Engine *engine, int64_t pages) noexcept nogil
cdef void room_give(Engine *engine, int64_t pages) noexcept nogil
cdef void room_awaited(Engine *engine) noexcept nogil
cdef bint room_is_awaited(Engine *engine) noexcept nogil
cdef void room_check_stuck(Engine *engine) noexcept nogil
cdef void room_sampled(Engine *engine, int64_t pages, int64_t granted) noexcept nogil
cdef void limit_change(Engine *engine, int64_t pages) noexcept nogil
cdef void limit_set(Engine *engine, int64_t pages) noexcept nogil
cdef bint limit_near(Engine *engine) noexcept nogil
cdef bint limit_reached_by(Engine *engine, int64_t pages) noexcept nogil
cdef int64_t limit_near_at(Engine *engine) noexcept nogil
cdef bint limit_is_near(Engine *engine, int64_t pages) noexcept nogil
cdef void limit_may_be_late(Engine *engine) noexcept nogil
cdef void limit_burst(Engine *engine) noexcept nogil
cdef int64_t limit_least() noexcept nogil
