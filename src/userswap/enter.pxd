# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering: a process whose tree nears the limit gets a helper, and its memory into the engine's care."""

from userswap.mm cimport Engine

cdef void enter_wanted(Engine *engine) noexcept nogil
