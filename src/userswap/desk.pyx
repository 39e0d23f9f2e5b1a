# SPDX-License-Identifier: GPL-2.0-or-later
"""The desk: how the engine has something done by the tracer (desk.pxd)."""

from posix.unistd cimport close

from userswap.inject cimport helper_end, helper_take
from userswap.system cimport ECANCELED, FOR_EVER_US, load_u32, store_u32, sys_shared_wait, sys_shared_wake

cdef enum:
    LOOK_US = 100000        # whether anybody still wants to know


cdef int _ask(Desk *desk, const bint *stopping) noexcept nogil:
    """Has done what was written to the desk. Returns the tracer's answer, or -ECANCELED when *stopping was set before
    it came."""
    cdef uint32_t number = load_u32(&desk.asked) + 1
    cdef uint32_t answered
    store_u32(&desk.asked, number)
    sys_shared_wake(&desk.asked)
    while True:
        answered = load_u32(&desk.answered)
        if answered == number:
            return desk.result
        if stopping[0]:
            return -ECANCELED
        sys_shared_wait(&desk.answered, answered, LOOK_US)


cdef int desk_make(Desk *desk, const bint *stopping, pid_t target, int uffd, uint64_t features, uint64_t staging_length,
                   Helper *helper) noexcept nogil:
    """As helper_inject. desk_taken is owed afterwards, unless it failed."""
    cdef int result
    desk.what = DESK_MAKE
    desk.target = target
    desk.uffd = uffd
    desk.features = features
    desk.staging_length = staging_length
    result = _ask(desk, stopping)
    if result != 0:
        return result
    helper[0] = desk.helper
    result = helper_take(helper)
    if result != 0:
        desk_taken(desk)
        helper_end(helper)
    return result


cdef bint desk_is_busy(Desk *desk) noexcept nogil:
    """Whether the tracer is still at what an engine before has asked for."""
    return load_u32(&desk.asked) != load_u32(&desk.answered)


cdef void desk_await(Desk *desk, const bint *stopping) noexcept nogil:
    """Until it is not, or *stopping is set."""
    cdef uint32_t answered
    while not stopping[0]:
        answered = load_u32(&desk.answered)
        if load_u32(&desk.asked) == answered:
            return
        sys_shared_wait(&desk.answered, answered, LOOK_US)


cdef void desk_void(Desk *desk) noexcept nogil:
    """The tracer's: nobody wants any more what is asked for and has not been begun."""
    if desk_is_busy(desk):
        desk.helper.pid = 0
        desk_answer(desk, -ECANCELED)


cdef int desk_remove(Desk *desk, const bint *stopping, const Helper *helper) noexcept nogil:
    """As helper_remove."""
    desk.what = DESK_REMOVE
    desk.removed = helper[0]
    return _ask(desk, stopping)


cdef void desk_taken(Desk *desk) noexcept nogil:
    """The helper is in the engine's state now, or no more: its descriptors may soon be others'."""
    desk.helper.pid = 0


cdef void desk_discard(Desk *desk) noexcept nogil:
    """Ends the helper that was made, and that nobody has got to know."""
    if helper_take(&desk.helper) == 0:
        close(desk.helper.uffd)
        helper_end(&desk.helper)


cdef bint desk_next(Desk *desk) noexcept nogil:
    """The tracer's: waits for a request, a while. False if there was none."""
    cdef uint32_t answered = load_u32(&desk.answered)
    if load_u32(&desk.asked) == answered:
        sys_shared_wait(&desk.asked, answered, FOR_EVER_US)
    return load_u32(&desk.asked) != answered


cdef void desk_answer(Desk *desk, int result) noexcept nogil:
    desk.result = result
    store_u32(&desk.answered, load_u32(&desk.asked))
    sys_shared_wake(&desk.answered)


# ---- the other way round

cdef int births_tell(Births *births, uint32_t what) noexcept nogil:
    """The tracer's: what an engine, this one or the next, answers."""
    cdef uint32_t number = load_u32(&births.asked) + 1
    cdef uint32_t answered
    births.what = what
    store_u32(&births.asked, number)
    sys_shared_wake(&births.asked)
    while True:
        answered = load_u32(&births.answered)
        if answered == number:
            return births.result
        sys_shared_wait(&births.answered, answered, FOR_EVER_US)


cdef bint births_next(Births *births, uint64_t us) noexcept nogil:
    """The engine's: waits for what the tracer says, so long. False if it said nothing."""
    cdef uint32_t answered = load_u32(&births.answered)
    if load_u32(&births.asked) == answered:
        sys_shared_wait(&births.asked, answered, us)
    return load_u32(&births.asked) != answered


cdef void births_answer(Births *births, int result) noexcept nogil:
    births.result = result
    store_u32(&births.answered, load_u32(&births.asked))
    sys_shared_wake(&births.answered)
