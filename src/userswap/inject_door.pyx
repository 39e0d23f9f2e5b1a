# SPDX-License-Identifier: GPL-2.0-or-later
"""A door for tests to the engine's way in. The product does not use it."""
import os

from libc.stdint cimport uint64_t
from posix.unistd cimport read, write

from userswap.inject cimport (
    Helper, Hold, USERSWAP_DROP, USERSWAP_EXIT, USERSWAP_MADVISE, USERSWAP_MOVE, USERSWAP_NOTHING,
    USERSWAP_POPULATE_WRITE, helper_call, helper_end, helper_inject, helper_remove,
)

NOTHING = USERSWAP_NOTHING
MOVE = USERSWAP_MOVE
DROP = USERSWAP_DROP
POPULATE_WRITE = USERSWAP_POPULATE_WRITE
MADVISE = USERSWAP_MADVISE
EXIT = USERSWAP_EXIT


cdef struct Gate:
    Hold hold
    int told
    int until


cdef void _await_gate(Hold *hold, Helper *helper) noexcept nogil:
    cdef Gate *gate = <Gate *>hold
    cdef char byte = 0
    if gate.told >= 0 and write(gate.told, &byte, 1) == 1:
        read(gate.until, &byte, 1)


cdef class Attached:
    """A helper in process `target`. `uffd` is the caller's to close. With `hold`, a thread of the target is held, until
    a byte can be read from the second of two files, or for no longer than it takes (-1). It is when there is one in
    the first."""
    cdef Helper helper

    def __init__(self, int target, uint64_t features=0, uint64_t staging_length=2 << 20, hold=None):
        cdef int rc
        cdef Gate gate
        cdef Hold *held = NULL
        gate.hold.made = _await_gate
        if hold is not None:
            gate.told, gate.until = hold
            held = &gate.hold
        with nogil:
            rc = helper_inject(target, -1, features, staging_length, held, &self.helper)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    @property
    def fields(self):
        h = &self.helper
        return {'pid': h.pid, 'uffd': h.uffd, 'target': h.target, 'own': (h.own_start[0], h.own_end[0]),
                'staging': h.staging, 'staging_length': h.staging_length, 'stopped_ns': h.stopped_ns}

    def call(self, int request, items=(), uint64_t mode=0):
        """The (result, error) of each (dst, src, len)."""
        cdef int i, rc
        box = self.helper.mailbox
        if box == NULL:
            raise ProcessLookupError
        for i, (dst, src, length) in enumerate(items):
            box.items[i].dst, box.items[i].src, box.items[i].len = dst, src, length
        box.request, box.mode, box.count = request, mode, len(items)
        with nogil:
            rc = helper_call(&self.helper)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return [(box.items[i].result, box.items[i].error) for i in range(len(items))]

    def time_call(self, int rounds):
        """Nanoseconds of each of `rounds` calls of the request that is in the mailbox."""
        import time
        cdef list times = []
        cdef int _
        for _ in range(rounds):
            start = time.perf_counter_ns()
            with nogil:
                helper_call(&self.helper)
            times.append(time.perf_counter_ns() - start)
        return times

    def remove(self):
        """As helper_remove and, in any case, helper_end."""
        cdef int rc
        with nogil:
            rc = helper_remove(&self.helper)
            helper_end(&self.helper)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def end(self):
        with nogil:
            helper_end(&self.helper)
