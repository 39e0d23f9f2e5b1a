# SPDX-License-Identifier: GPL-2.0-or-later
"""The desk: where the engine leaves what it wants done by ptrace, and the tracer, a thread of the keeper, leaves what
came of it.

One page of memory that both have mapped at the same address. One request is under way at a time: the engine owns the
desk while asked == answered, the tracer owns it otherwise. What the tracer has opened is open in the engine as well.
An engine that died may have left a request; what came of that its successor finds."""

from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.inject cimport Helper

cdef enum:
    DESK_BYTES = 4096
    DESK_MAKE = 0
    DESK_REMOVE = 1

cdef struct Desk:
    uint32_t asked          # futex; counted up by the engine
    uint32_t answered       # futex; set by the tracer to what `asked` was
    uint32_t what           # DESK_MAKE, DESK_REMOVE
    # DESK_MAKE, as for helper_inject.
    pid_t target
    int uffd
    uint64_t features
    uint64_t staging_length
    # The answer. Of DESK_MAKE: `helper` is to be taken (helper_take) if it is 0.
    int result
    Helper helper
    # DESK_REMOVE, as for helper_remove.
    Helper removed

cdef int desk_make(Desk *desk, const bint *stopping, pid_t target, int uffd, uint64_t features, uint64_t staging_length,
                   Helper *helper) noexcept nogil
cdef int desk_remove(Desk *desk, const bint *stopping, const Helper *helper) noexcept nogil
cdef bint desk_is_busy(Desk *desk) noexcept nogil
cdef void desk_await(Desk *desk, const bint *stopping) noexcept nogil
cdef void desk_void(Desk *desk) noexcept nogil
cdef void desk_taken(Desk *desk) noexcept nogil
cdef void desk_discard(Desk *desk) noexcept nogil
cdef bint desk_next(Desk *desk) noexcept nogil
cdef void desk_answer(Desk *desk, int result) noexcept nogil
