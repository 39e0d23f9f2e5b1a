# SPDX-License-Identifier: GPL-2.0-or-later
"""The sampler: the thread that adds up how much memory the tree uses."""

from userswap.mm cimport Engine

cdef int sampler_start(Engine *engine) noexcept nogil
cdef void sampler_await(Engine *engine) noexcept nogil
cdef void sampler_stop(Engine *engine) noexcept nogil
