# SPDX-License-Identifier: GPL-2.0-or-later
"""Fill: bringing swapped pages back."""

from libc.stdint cimport uint32_t, uint64_t

from userswap.mm cimport Engine, Mm, Worker

cdef uint32_t fill_unguarded(Mm *mm, uint64_t start, uint64_t page, uint32_t count) noexcept nogil
cdef int fill_page(Worker *worker, Mm *mm, uint64_t address, bint write) noexcept nogil
