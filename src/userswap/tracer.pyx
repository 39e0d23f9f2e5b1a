# SPDX-License-Identifier: GPL-2.0-or-later
"""The tracer: the thread of the keeper that does what the engine wants done by ptrace.

It is not the engine's own, since a program whose tracer dies amid a step runs on with registers that are not its own;
and since the keeper is an ancestor of the program, which the narrower ptrace scope asks for.

While it traces, no other thread of the keeper may wait for children, or it would be told of ptrace's stops: hence
try_hold(). Nor may one fork while it has locks: hence pause(). A thread that is to be stopped may be amid a fault that
only another engine can answer, so that one has to be started meanwhile."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.types cimport pid_t

import os

from userswap.catch cimport Notice, catch_await, catch_fork, catch_hurry, catch_install, catch_receive
from userswap.desk cimport DESK_BYTES, DESK_REMOVE, Desk, desk_is_busy, desk_target, desk_void, line_answer, line_next
from userswap.inject cimport Helper, Hold, helper_hand_over, helper_inject, helper_remove, inject_expect_filter
from userswap.system cimport (
    EAGAIN,
    ESRCH,
    FOR_EVER_US,
    PRIORITY_MONITOR,
    PRIORITY_SAMPLER,
    load_u32,
    pthread_create,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    pthread_t,
    store_u32,
    sys_futex_advance,
    sys_futex_wait,
    sys_map_anonymous_shared,
    sys_name_thread,
    sys_now_us,
    sys_prefer,
    sys_shared_wait,
    sys_since_us,
    sys_sleep_us,
)
from userswap.tracee cimport tracing_begin, tracing_end

cdef enum:
    SPARED_MAX = 32
    NOTICES_MAX = 256
    HOLD_US = 100000
    SOON_US = 100
    FAILURES = 500          # forks in a row that fail at once

cdef struct State:
    Desk *desk
    pthread_mutex_t lock    # held while it traces, and while children are waited for
    pid_t spared[32]        # SPARED_MAX: processes of ours below the keeper, never to be entered
    uint32_t spared_end     # those that ever were
    int listener            # where forks are told of that are caught; -1: they are not
    pid_t born              # the last child of one
    # Held to receive, and while what the engine asks for is done: who forks then can be stopped. Guards what follows;
    # comes after `lock`.
    pthread_mutex_t receive_lock
    Notice notices[256]     # NOTICES_MAX: forks that wait, [first, end)
    uint32_t first
    uint32_t end
    uint32_t received       # futex


cdef struct Held:
    Hold hold
    Desk *desk
    bint answered


cdef void _made(Hold *hold, Helper *helper) noexcept nogil:
    """Answers, and holds the process until the engine has taken its memory into care. An engine that does not, it may
    have died, is not waited for."""
    cdef Held *held = <Held *>hold
    cdef uint64_t start = sys_now_us()
    helper_hand_over(helper)
    held.desk.helper = helper[0]
    store_u32(&held.desk.held, 1)
    held.answered = True
    line_answer(&held.desk.line, 0)
    tracing_end()
    while load_u32(&held.desk.held) != 0 and sys_since_us(start) < HOLD_US:
        sys_shared_wait(&held.desk.held, 1, HOLD_US)
    tracing_begin()


cdef int _make(State *state, Held *held) noexcept nogil:
    """What is to be answered, unless it was."""
    cdef Desk *desk = state.desk
    cdef Helper helper
    cdef uint32_t at
    cdef int result
    for at in range(min(state.spared_end, <uint32_t>SPARED_MAX)):
        if state.spared[at] == desk.target:
            return -ESRCH
    if state.born == desk.target:       # asked for before the engine knew that it has a helper
        state.born = 0
        return -EAGAIN
    memset(&desk.helper, 0, sizeof(Helper))
    result = helper_inject(desk.target, desk.uffd, desk.features, desk.staging_length,
                           &held.hold if desk.holds else NULL, &helper)
    if result == 0 and not held.answered:
        helper_hand_over(&helper)
        desk.helper = helper
    return result


cdef void _serve(State *state) noexcept nogil:
    """state.lock is held."""
    cdef Held held
    cdef int result
    held.hold.made = _made
    held.desk = state.desk
    held.answered = False
    result = helper_remove(&state.desk.removed) if state.desk.what == DESK_REMOVE else _make(state, &held)
    if not held.answered:
        line_answer(&state.desk.line, result)


# ---- forks that are caught

cdef bint _is_about_to_fork(State *state, pid_t target) noexcept nogil:
    """It waits, then, and cannot be stopped. receive_lock is held."""
    cdef uint32_t at
    for at in range(state.first, state.end):
        if state.notices[at % NOTICES_MAX].target == target:
            return True
    return False


cdef void *_receive_main(void *argument) noexcept nogil:
    """Receives what the kernel tells, at once. Ends when nobody is left who could fork."""
    cdef State *state = <State *>argument
    cdef bint full
    sys_name_thread(b"receive")
    sys_prefer(0, PRIORITY_SAMPLER)
    catch_hurry(state.listener)
    while catch_await(state.listener) != 0:
        pthread_mutex_lock(&state.receive_lock)
        full = state.end - state.first == NOTICES_MAX
        if not full and catch_receive(state.listener, &state.notices[state.end % NOTICES_MAX]):
            state.end += 1
            sys_futex_advance(&state.received)
        pthread_mutex_unlock(&state.receive_lock)
        if full:
            sys_sleep_us(SOON_US)
    return NULL


cdef bint _next_notice(State *state, Notice *notice) noexcept nogil:
    cdef bint found
    pthread_mutex_lock(&state.receive_lock)
    found = state.first != state.end
    if found:
        notice[0] = state.notices[state.first % NOTICES_MAX]
    pthread_mutex_unlock(&state.receive_lock)
    return found


cdef bint _waits(void *context, pid_t tid) noexcept nogil:
    """Whether this thread is about to fork; then its notice becomes the first."""
    cdef State *state = <State *>context
    cdef uint32_t at
    cdef Notice notice
    cdef bint found = False
    pthread_mutex_lock(&state.receive_lock)
    for at in range(state.first, state.end):
        if state.notices[at % NOTICES_MAX].tid == tid:
            notice = state.notices[at % NOTICES_MAX]
            state.notices[at % NOTICES_MAX] = state.notices[state.first % NOTICES_MAX]
            state.notices[state.first % NOTICES_MAX] = notice
            found = True
            break
    pthread_mutex_unlock(&state.receive_lock)
    return found


cdef void _catch(State *state, Notice *notice) noexcept nogil:
    """The first one. One whose forks fail again and again is not to keep the others waiting. state.lock is held."""
    cdef bint again = False
    cdef int turns = 0
    tracing_begin()
    while True:
        pthread_mutex_lock(&state.receive_lock)
        state.first += 1
        pthread_mutex_unlock(&state.receive_lock)
        again = catch_fork(state.listener, &state.desk.births, notice, again, turns >= FAILURES, _waits, state)
        if not again:
            break
        _next_notice(state, notice)
        turns += 1
    state.born = state.desk.births.child
    tracing_end()


cdef bint _is_late(State *state) noexcept nogil:
    """Whether what the engine has asked for comes first: who has just been entered is not known to it yet, and who is
    to be may be the last child. But for one that cannot be stopped. state.lock is held."""
    cdef bint late = state.desk.helper.pid > 0
    if not late and desk_is_busy(state.desk):
        pthread_mutex_lock(&state.receive_lock)
        late = not _is_about_to_fork(state, desk_target(state.desk))
        pthread_mutex_unlock(&state.receive_lock)
    return late


cdef void *_forks_main(void *argument) noexcept nogil:
    """Sees to them, one after the other."""
    cdef State *state = <State *>argument
    cdef Notice notice
    cdef uint32_t seen
    cdef bint late
    sys_name_thread(b"forks")
    sys_prefer(0, PRIORITY_MONITOR)
    while True:
        seen = load_u32(&state.received)
        if not _next_notice(state, &notice):
            sys_futex_wait(&state.received, seen, FOR_EVER_US)
            continue
        pthread_mutex_lock(&state.lock)
        late = _is_late(state)
        if not late:
            _catch(state, &notice)
        pthread_mutex_unlock(&state.lock)
        if late:
            sys_sleep_us(SOON_US)
    return NULL


# ---- what the engine asks for

cdef bint _serve_desk(State *state) noexcept nogil:
    """False where the process is about to fork: that comes first. state.lock is held."""
    cdef bint served = True
    pthread_mutex_lock(&state.receive_lock)
    tracing_begin()
    if desk_is_busy(state.desk):
        served = not _is_about_to_fork(state, desk_target(state.desk))
        if served:
            _serve(state)
    tracing_end()
    pthread_mutex_unlock(&state.receive_lock)
    return served


cdef void *_main(void *argument) noexcept nogil:
    cdef State *state = <State *>argument
    cdef bint served
    sys_name_thread(b"tracer")
    sys_prefer(0, PRIORITY_MONITOR)
    while True:
        if not line_next(&state.desk.line, FOR_EVER_US):
            continue
        pthread_mutex_lock(&state.lock)
        served = _serve_desk(state)
        pthread_mutex_unlock(&state.lock)
        if not served:
            sys_sleep_us(SOON_US)


def watch_forks():
    """This process' forks, and those of all that comes of it, wait from now on until a Tracer has seen to them that
    started with the descriptor which this returns. Raises OSError."""
    fd = catch_install()
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return fd


cdef class Tracer:
    """The keeper's. With `catches`, forks are to be caught. Raises MemoryError."""

    cdef State _state

    def __cinit__(self, bint catches=False):
        self._state.desk = <Desk *>sys_map_anonymous_shared(DESK_BYTES)
        if self._state.desk == NULL:
            raise MemoryError
        self._state.desk.births.caught = catches
        self._state.listener = -1
        pthread_mutex_init(&self._state.lock, NULL)
        pthread_mutex_init(&self._state.receive_lock, NULL)

    @property
    def desk(self):
        """The address of the desk, in this process and in those that it forks."""
        return <size_t>self._state.desk

    def start(self, int listener=-1):
        """The threads run until the process ends: that for forks where there is a listener. Raises OSError."""
        cdef pthread_t thread
        error = pthread_create(&thread, NULL, _main, &self._state)
        if error == 0 and listener >= 0:
            inject_expect_filter()
            self._state.listener = listener
            error = pthread_create(&thread, NULL, _receive_main, &self._state)
            if error == 0:
                error = pthread_create(&thread, NULL, _forks_main, &self._state)
        if error != 0:
            raise OSError(error, "the tracer cannot be started")

    def spare(self, pid_t pid):
        """Never enters this process, which is one of ours. Between pause() and go_on(), as is its start."""
        self._state.spared[self._state.spared_end % SPARED_MAX] = pid
        self._state.spared_end += 1

    def pause(self):
        """Until go_on(), it begins nothing, and goes on with nothing: the caller may fork. Waits, but for no other
        process."""
        with nogil:
            tracing_begin()

    def go_on(self):
        tracing_end()

    def try_hold(self):
        """Until release(), it does not trace: the caller may wait for children. False where it does."""
        return pthread_mutex_trylock(&self._state.lock) == 0

    def release(self):
        pthread_mutex_unlock(&self._state.lock)

    def try_still(self):
        """As try_hold(), and nobody has been received who forks, nor will be. Until go()."""
        if pthread_mutex_trylock(&self._state.lock) != 0:
            return False
        pthread_mutex_lock(&self._state.receive_lock)
        if self._state.first == self._state.end:
            return True
        self.go()
        return False

    def go(self):
        pthread_mutex_unlock(&self._state.receive_lock)
        pthread_mutex_unlock(&self._state.lock)

    def void(self):
        """What it was asked for by an engine that has died, and has not begun, it never will. Call with try_hold()."""
        desk_void(self._state.desk)
