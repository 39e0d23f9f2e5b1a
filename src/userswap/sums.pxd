# SPDX-License-Identifier: GPL-2.0-or-later
"""Checksums of what lies in areas."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from userswap.log cimport Log

cdef int sums_make(Log *log, uint32_t at) noexcept nogil
cdef void sums_seal(Log *log, int which, uint8_t *bytes, uint32_t length) noexcept nogil
cdef bint sums_hold(Log *log, uint32_t at, uint32_t index, const uint8_t *bytes, uint32_t length) noexcept nogil
cdef int sums_read(Log *log, uint32_t at, uint32_t length, uint8_t *into, bint *right) noexcept nogil
cdef bint sums_hold_all(Log *log, uint32_t at, const uint8_t *data) noexcept nogil
