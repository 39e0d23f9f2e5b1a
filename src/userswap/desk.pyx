# SPDX-License-Identifier: GPL-2.0-or-later
"""The desk: how the engine has something done by the tracer (desk.pxd)."""

from posix.unistd cimport close

from userswap.inject cimport helper_end, helper_take
from userswap.system cimport ECANCELED, FOR_EVER_US, load_u32, store_u32, sys_shared_wait, sys_shared_wake

cdef enum:
    LOOK_US = 100000        # whether anybody still wants to know


# ---- the line

cdef int _ask(Line *line, const bint *stopping) noexcept nogil:
    """Returns the answer to what was written beside the line; or -ECANCELED when *stopping, if there is that, was set
    before it came."""
    cdef uint32_t number = load_u32(&line.asked) + 1
    cdef uint32_t answered
    store_u32(&line.asked, number)
    sys_shared_wake(&line.asked)
    while True:
        answered = load_u32(&line.answered)
        if answered == number:
            return line.result
        if stopping != NULL and stopping[0]:
            return -ECANCELED
        sys_shared_wait(&line.answered, answered, LOOK_US if stopping != NULL else FOR_EVER_US)


cdef bint _is_busy(Line *line) noexcept nogil:
    return load_u32(&line.asked) != load_u32(&line.answered)


cdef bint line_next(Line *line, uint64_t us) noexcept nogil:
    """Waits for a question, so long. False if there was none."""
    cdef uint32_t answered = load_u32(&line.answered)
    if load_u32(&line.asked) == answered:
        sys_shared_wait(&line.asked, answered, us)
    return load_u32(&line.asked) != answered


cdef void line_answer(Line *line, int result) noexcept nogil:
    line.result = result
    store_u32(&line.answered, load_u32(&line.asked))
    sys_shared_wake(&line.answered)


# ---- what the engine asks for

cdef int desk_make(Desk *desk, const bint *stopping, pid_t target, int uffd, uint64_t features, uint64_t staging_length,
                   bint holds, Helper *helper) noexcept nogil:
    """As helper_inject. desk_taken is owed afterwards, unless it failed; and desk_let_go, where it `holds`."""
    cdef int result
    desk.what = DESK_MAKE
    desk.target = target
    desk.uffd = uffd
    desk.features = features
    desk.staging_length = staging_length
    desk.holds = holds
    result = _ask(&desk.line, stopping)
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
    return _is_busy(&desk.line)


cdef void desk_await(Desk *desk, const bint *stopping) noexcept nogil:
    """Until it is not, or *stopping is set."""
    cdef uint32_t answered
    while not stopping[0]:
        answered = load_u32(&desk.line.answered)
        if load_u32(&desk.line.asked) == answered:
            return
        sys_shared_wait(&desk.line.answered, answered, LOOK_US)


cdef void desk_void(Desk *desk) noexcept nogil:
    """The tracer's: nobody wants any more what is asked for and has not been begun."""
    if desk_is_busy(desk):
        desk.helper.pid = 0
        line_answer(&desk.line, -ECANCELED)


cdef int desk_remove(Desk *desk, const bint *stopping, const Helper *helper) noexcept nogil:
    """As helper_remove."""
    desk.what = DESK_REMOVE
    desk.removed = helper[0]
    return _ask(&desk.line, stopping)


cdef void desk_taken(Desk *desk) noexcept nogil:
    """The helper is in the engine's state now, or no more: its descriptors may soon be others'."""
    desk.helper.pid = 0


cdef void desk_let_go(Desk *desk) noexcept nogil:
    """Whom the tracer holds goes on, if it holds anybody."""
    store_u32(&desk.held, 0)
    sys_shared_wake(&desk.held)


cdef void desk_discard(Desk *desk) noexcept nogil:
    """Ends the helper that was made, and that nobody has got to know."""
    if helper_take(&desk.helper) == 0:
        close(desk.helper.uffd)
        helper_end(&desk.helper)


cdef int births_tell(Births *births, uint32_t what) noexcept nogil:
    """The tracer's: what an engine, this one or the next, answers."""
    births.what = what
    return _ask(&births.line, NULL)
