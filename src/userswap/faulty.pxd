# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that fails as it is told, for tests."""

from userswap.stores cimport Store

cdef int faulty_wrap(Store *store) noexcept nogil
