# SPDX-License-Identifier: GPL-2.0-or-later
"""First touches, and first writes."""

from libc.stdint cimport uint32_t, uint64_t

from userswap.mm cimport Engine, Mm, Worker

cdef int touch_page(Worker *worker, Mm *mm, uint64_t page) noexcept nogil
cdef int touch_unprotect(Worker *worker, Mm *mm, uint64_t page) noexcept nogil
cdef bint touch_takes_page(Engine *engine, Mm *mm, uint32_t value) noexcept nogil
cdef void touch_release(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil
