# SPDX-License-Identifier: GPL-2.0-or-later
"""The invariants of types.pxd, as functions: run by tests and torture while the engine works."""

from userswap.mm cimport Engine

cdef void check_running(Engine *engine) noexcept nogil
cdef void check_ended(Engine *engine) noexcept nogil
