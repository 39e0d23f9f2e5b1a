# SPDX-License-Identifier: GPL-2.0-or-later
"""The tracer: the thread of the keeper that does what the engine wants done by ptrace.

It is not the engine's own, since a program whose tracer dies amid a step runs on with registers that are not its own;
and since the keeper is an ancestor of the program, which the narrower ptrace scope asks for.

While it traces, no other thread of the keeper may wait for children, or it would be told of ptrace's stops: hence
try_hold(). Nor may one fork while it has locks: hence pause(). A thread that is to be stopped may be amid a fault that
only another engine can answer, so that one has to be started meanwhile."""

from libc.stdint cimport uint32_t
from libc.string cimport memset
from posix.types cimport pid_t

import os

from userswap.catch cimport catch_await, catch_install, catch_next
from userswap.desk cimport DESK_BYTES, DESK_REMOVE, Desk, desk_answer, desk_is_busy, desk_next, desk_void
from userswap.inject cimport Helper, helper_hand_over, helper_inject, helper_remove, inject_expect_filter
from userswap.system cimport (
    EAGAIN,
    ESRCH,
    PRIORITY_MONITOR,
    pthread_create,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    pthread_t,
    sys_map_anonymous_shared,
    sys_name_thread,
    sys_prefer,
    sys_sleep_us,
)
from userswap.tracee cimport tracing_begin, tracing_end

cdef enum:
    SPARED_MAX = 32
    TAKEN_US = 100          # an engine soon takes what it has asked for

cdef struct State:
    Desk *desk
    pthread_mutex_t lock    # held while it traces, and while children are waited for
    pid_t spared[32]        # SPARED_MAX: processes of ours below the keeper, never to be entered
    uint32_t spared_end     # those that ever were
    int listener            # where forks are told of that are caught; -1: they are not
    pid_t born              # the last child of one


cdef int _serve(State *state) noexcept nogil:
    """state.lock is held."""
    cdef Desk *desk = state.desk
    cdef uint32_t at
    cdef int result
    if desk.what == DESK_REMOVE:
        return helper_remove(&desk.removed)
    for at in range(min(state.spared_end, <uint32_t>SPARED_MAX)):
        if state.spared[at] == desk.target:
            return -ESRCH
    if state.born == desk.target:       # asked for before the engine knew that it has a helper
        state.born = 0
        return -EAGAIN
    memset(&desk.helper, 0, sizeof(Helper))
    result = helper_inject(desk.target, desk.uffd, desk.features, desk.staging_length, &desk.helper)
    if result == 0:
        helper_hand_over(&desk.helper)
    return result


cdef void *_main(void *argument) noexcept nogil:
    cdef State *state = <State *>argument
    cdef int result
    sys_name_thread(b"tracer")
    sys_prefer(0, PRIORITY_MONITOR)
    while True:
        if not desk_next(state.desk):
            continue
        pthread_mutex_lock(&state.lock)
        tracing_begin()
        if desk_is_busy(state.desk):
            result = _serve(state)
            desk_answer(state.desk, result)
        tracing_end()
        pthread_mutex_unlock(&state.lock)


cdef void *_forks_main(void *argument) noexcept nogil:
    """The same for forks. Ends when nobody is left who could fork."""
    cdef State *state = <State *>argument
    cdef bint late
    sys_name_thread(b"forks")
    sys_prefer(0, PRIORITY_MONITOR)
    while catch_await(state.listener) != 0:
        pthread_mutex_lock(&state.lock)
        # Who has just been entered is not known to the engine yet; and who is to be may be the last child.
        late = state.desk.helper.pid > 0 or desk_is_busy(state.desk)
        if not late:
            tracing_begin()
            catch_next(state.listener, &state.desk.births)
            state.born = state.desk.births.child
            tracing_end()
        pthread_mutex_unlock(&state.lock)
        if late:
            sys_sleep_us(TAKEN_US)
    return NULL


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

    def void(self):
        """What it was asked for by an engine that has died, and has not begun, it never will. Call with try_hold()."""
        desk_void(self._state.desk)
