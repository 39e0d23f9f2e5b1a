# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks, where the kernel does not tell the engine of them."""

from userswap.desk cimport Births

cdef int catch_install() noexcept nogil
cdef int catch_await(int listener) noexcept nogil
cdef void catch_next(int listener, Births *births) noexcept nogil
