# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor: the thread that watches how much memory the tree uses."""

from userswap.mm cimport Engine

cdef int monitor_start(Engine *engine) noexcept nogil
cdef void monitor_stop(Engine *engine) noexcept nogil
