# SPDX-License-Identifier: GPL-2.0-or-later
"""Forks, where the kernel does not tell the engine of them."""

from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.desk cimport Births

cdef struct Notice:         # of somebody who is about to fork, and waits
    uint64_t id
    pid_t tid
    pid_t target            # its process
    int call
    uint32_t arch
    uint64_t args[6]

# Whether a thread waits for its next fork: then the one before has failed.
ctypedef bint (*Waits)(void *context, pid_t tid) noexcept nogil

cdef int catch_install() noexcept nogil
cdef void catch_hurry(int listener) noexcept nogil
cdef int catch_await(int listener) noexcept nogil
cdef bint catch_receive(int listener, Notice *notice) noexcept nogil
cdef bint catch_fork(int listener, Births *births, const Notice *notice, bint seized, bint refused, Waits waits,
                     void *context) noexcept nogil
