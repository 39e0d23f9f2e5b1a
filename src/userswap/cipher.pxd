# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypted stores."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from userswap.stores cimport KEY_BYTES, Store

cdef bint cipher_available() noexcept nogil
cdef int cipher_make_key(uint8_t *key) noexcept nogil
cdef int cipher_wrap(Store *store, const uint8_t *key, uint64_t medium) noexcept nogil
cdef void cipher_unwrap(Store *store) noexcept nogil
cdef void cipher_take(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil
