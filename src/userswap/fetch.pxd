# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching: blocks that will be read soon come back into memory whole."""

from libc.stdint cimport uint8_t, uint32_t

from userswap.log cimport Log

cdef bint log_in_memory(Log *log, uint32_t block) noexcept nogil
cdef void log_fetch(Log *log, uint32_t block) noexcept nogil
cdef void log_fetch_none(Log *log) noexcept nogil
cdef bint log_fetch_next(Log *log) noexcept nogil
cdef uint8_t *log_fetched(Log *log, uint32_t block) noexcept nogil
