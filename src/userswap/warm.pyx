# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps CPUs from idling while one fault follows another.

A program's thread whose fault has been answered is woken on another CPU if one is idle, and to wake that takes
longer, above all in a virtual machine, than to let the thread run where it was as soon as the one that answered it
sleeps. So on a machine of few CPUs a thread of the lowest priority spins on each while faults come quickly, nobody
else wants to run, and no quota of CPU time pays for it. It asks all the time who else would like to run: the scheduler
lets what runs go on for a while, of whatever priority, when the program's thread is woken. (Guest halt polling in the
kernel, cpuidle-haltpoll, does the same for the waker's side.)
"""

from libc.stdint cimport uint64_t

from userswap.mm cimport WARMERS_MAX
from userswap.system cimport (
    FOR_EVER_US,
    add_u32,
    load_u32,
    pthread_create,
    pthread_join,
    sched_yield,
    sys_cpu_to_spare,
    sys_futex_advance,
    sys_futex_wait,
    sys_humble,
    sys_name_thread,
    sys_now_us,
    sys_pause,
    sys_pin_to_cpu,
)

cdef enum:
    WARM_US = 300           # after a fault
    LOOK_EVERY = 16         # faults, at which it is looked whether somebody else wants to run


cdef void warm_keep(Worker *worker) noexcept nogil:
    """A fault has followed another soon."""
    cdef Engine *engine = worker.engine
    cdef uint64_t now = sys_now_us()
    cdef bint cold = engine.warm_until < now
    worker.served += 1
    if engine.warmer_count == 0 or ((cold or worker.served % LOOK_EVERY == 0) and not sys_cpu_to_spare(&worker.reads)):
        return
    engine.warm_until = now + WARM_US
    if cold:
        sys_futex_advance(&engine.warm)


cdef void *_warm_main(void *argument) noexcept nogil:
    cdef Warmer *warmer = <Warmer *>argument
    cdef Engine *engine = warmer.engine
    cdef uint32_t seen
    cdef int _turn
    sys_name_thread(b"warm")
    sys_pin_to_cpu(warmer.cpu)
    sys_humble()
    while True:
        seen = load_u32(&engine.warm)
        if engine.stopping:
            break
        if engine.warm_until < sys_now_us():
            sys_futex_wait(&engine.warm, seen, FOR_EVER_US)
        add_u32(&engine.spinning, 1)
        while sys_now_us() < engine.warm_until:
            for _turn in range(16):
                sys_pause()
            sched_yield()
        add_u32(&engine.spinning, -1)
    return NULL


cdef int warm_start(Engine *engine) noexcept nogil:
    """Returns 0 or -EAGAIN (as -11); warm_stop cleans up in both cases."""
    cdef Warmer *warmer
    cdef int cpu
    if not engine.may_spin or engine.cpus > WARMERS_MAX:
        return 0
    for cpu in range(engine.cpus):
        warmer = &engine.warmers[cpu]
        warmer.engine = engine
        warmer.cpu = cpu
        if pthread_create(&warmer.thread, NULL, _warm_main, warmer) != 0:
            return -11
        engine.warmer_count += 1
    return 0


cdef void warm_stop(Engine *engine) noexcept nogil:
    """engine.stopping is set."""
    cdef int at
    sys_futex_advance(&engine.warm)
    for at in range(engine.warmer_count):
        pthread_join(engine.warmers[at].thread, NULL)
    engine.warmer_count = 0
