# SPDX-License-Identifier: GPL-2.0-or-later
"""The desk: where the engine leaves what it wants done by ptrace, and the tracer, a thread of the keeper, leaves what
came of it.

One page of memory that both have mapped at the same address. One request is under way at a time: the engine owns the
desk while asked == answered, the tracer owns it otherwise. What the tracer has opened is open in the engine as well.
An engine that died may have left a request; what came of that its successor finds.

The other way round, where the kernel does not tell of forks: the tracer, which catches them, says to the engine what is
about to happen, and what has (Births). It does not matter which engine answers: a request stays until one has."""

from libc.stdint cimport uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.inject cimport Helper

cdef enum:
    DESK_BYTES = 4096
    DESK_MAKE = 0
    DESK_REMOVE = 1

    # What the tracer says.
    # A process is about to fork: what it has stays as it is until one of the others is said. 0; -ESRCH: nothing of it
    # is ours; -EAGAIN: a page of `places` is to be touched first.
    BIRTH_COMES = 0
    BIRTH_IS = 1            # it has, and there is a helper in its child. 0 or -errno
    BIRTH_IS_NOT = 2        # it has not
    PLACES_MAX = 8

# One side asks, the other answers; a question is under way while asked != answered.
cdef struct Line:
    uint32_t asked          # futex; counted up by who asks
    uint32_t answered       # futex; set by who answers to what `asked` was
    int result

cdef struct Births:
    Line line
    bint caught             # forks are
    uint32_t what
    pid_t parent
    pid_t child
    Helper helper           # in the child
    uint64_t places[8]      # PLACES_MAX; pages of either that the kernel writes to itself, amid the fork
    uint32_t place_count

cdef struct Desk:
    # The result: of DESK_MAKE, `helper` is to be taken (helper_take) if it is 0.
    Line line
    uint32_t what           # DESK_MAKE, DESK_REMOVE
    # DESK_MAKE, as for helper_inject.
    pid_t target
    int uffd
    uint64_t features
    uint64_t staging_length
    bint holds              # a thread of the target, until desk_let_go
    # The answer.
    Helper helper
    uint32_t held           # futex; 1: it is held
    # DESK_REMOVE, as for helper_remove.
    Helper removed
    Births births

cdef bint line_next(Line *line, uint64_t us) noexcept nogil
cdef void line_answer(Line *line, int result) noexcept nogil

cdef int desk_make(Desk *desk, const bint *stopping, pid_t target, int uffd, uint64_t features, uint64_t staging_length,
                   bint holds, Helper *helper) noexcept nogil
cdef int desk_remove(Desk *desk, const bint *stopping, const Helper *helper) noexcept nogil
cdef bint desk_is_busy(Desk *desk) noexcept nogil
cdef void desk_await(Desk *desk, const bint *stopping) noexcept nogil
cdef void desk_void(Desk *desk) noexcept nogil
cdef void desk_taken(Desk *desk) noexcept nogil
cdef void desk_let_go(Desk *desk) noexcept nogil
cdef void desk_discard(Desk *desk) noexcept nogil
cdef int births_tell(Births *births, uint32_t what) noexcept nogil

cdef inline pid_t desk_target(const Desk *desk) noexcept nogil:
    """The process that is asked for."""
    return desk.removed.target if desk.what == DESK_REMOVE else desk.target
