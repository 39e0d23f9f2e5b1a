# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching: a process is as it was before it was entered, and goes on without us."""

from libc.stdint cimport int64_t
from posix.types cimport pid_t

from userswap.mm cimport Engine

cdef int detach_process(Engine *engine, pid_t pid, int64_t *lacking) noexcept nogil
