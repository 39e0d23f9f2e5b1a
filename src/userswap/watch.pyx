# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CPUs' threads are told of the faults of an address space.

The kernel wakes whoever waits on a userfaultfd, so that each fault wakes a thread on every CPU, and all but one in
vain: on two CPUs that costs the one that faults a tenth of the time of a random read. So a CPU whose threads were woken
in vain several times in a row is not told any more, as long as

  - one is told. It is the one whose threads have answered, which is that of the thread that faults;
  - faults come one after the other: where two are answered at the same time all are told again;
  - faults are answered at all. When the monitor sees that none was since its last look, be it because the threads of
    that CPU are busy or stuck, all are told again; and, as the faulting thread may go elsewhere, after so many faults.

Who can run at the same moment: a CPU is told, or not, under Mm.lock. To tell it again looks whether something is there
(EPOLL_CTL_MOD), so that no fault is lost that was raised in between."""

from libc.stdint cimport uint32_t, uint64_t

from userswap.system cimport (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLET,
    EPOLLIN,
    add_u32,
    epoll_ctl,
    epoll_event,
    load_u32,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    store_u32,
)

cdef enum:
    IN_VAIN = 8             # times in a row
    FAULTS_A_CPU = 64       # after so many faults, for each CPU, all are told again


cdef void _tell(Engine *engine, Mm *mm, int cpu, int operation, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = mm.id
    epoll_ctl(engine.epolls[cpu], operation, mm.uffd, &event)


cdef void watch_begin(Engine *engine, Mm *mm) noexcept nogil:
    """All are told. A thread that is woken reads until nothing is left: it is told of edges."""
    cdef int cpu
    for cpu in range(engine.cpus):
        mm.watched[cpu // 64] |= <uint64_t>1 << cpu % 64
    mm.watchers = engine.cpus
    mm.serving = 0
    for cpu in range(engine.cpus):
        _tell(engine, mm, cpu, EPOLL_CTL_ADD, EPOLLIN | EPOLLET)


cdef void watch_end(Engine *engine, Mm *mm) noexcept nogil:
    cdef int cpu
    for cpu in range(engine.cpus):
        _tell(engine, mm, cpu, EPOLL_CTL_DEL, 0)


cdef void _tell_all(Engine *engine, Mm *mm) noexcept nogil:
    """Mm.lock is held."""
    cdef int cpu
    for cpu in range(engine.cpus):
        if not mm.watched[cpu // 64] & <uint64_t>1 << cpu % 64:
            mm.watched[cpu // 64] |= <uint64_t>1 << cpu % 64
            _tell(engine, mm, cpu, EPOLL_CTL_MOD, EPOLLIN | EPOLLET)
    store_u32(&mm.watchers, engine.cpus)


cdef void watch_serving(Worker *worker, Mm *mm) noexcept nogil:
    """A fault has been read, and watch_served is to be called. Mm.lock is held."""
    cdef Engine *engine = worker.engine
    worker.vain = 0
    mm.answered += 1
    if add_u32(&mm.serving, 1) > 1 or mm.answered % (FAULTS_A_CPU * <uint32_t>engine.cpus) == 0:
        if mm.watchers < <uint32_t>engine.cpus and not mm.dead:
            _tell_all(engine, mm)


cdef void watch_served(Mm *mm) noexcept nogil:
    add_u32(&mm.serving, -1)


cdef void watch_in_vain(Worker *worker, Mm *mm) noexcept nogil:
    """It was woken, and nothing was left. Call without Mm.lock."""
    cdef uint64_t bit = <uint64_t>1 << worker.cpu % 64
    if load_u32(&mm.watchers) <= 1:
        return
    if worker.vain_for != mm.id:
        worker.vain_for = mm.id
        worker.vain = 0
    worker.vain += 1
    if worker.vain < IN_VAIN:
        return
    worker.vain = 0
    pthread_mutex_lock(&mm.lock)
    if mm.watchers > 1 and not mm.dead and mm.watched[worker.cpu // 64] & bit:
        mm.watched[worker.cpu // 64] &= ~bit
        store_u32(&mm.watchers, mm.watchers - 1)
        _tell(worker.engine, mm, worker.cpu, EPOLL_CTL_MOD, 0)
    pthread_mutex_unlock(&mm.lock)


cdef void watch_look(Engine *engine, Mm *mm) noexcept nogil:
    """The monitor's, at each look: all are told again, unless faults are being answered."""
    cdef uint32_t answered = load_u32(&mm.answered)
    if load_u32(&mm.watchers) < <uint32_t>engine.cpus and answered == mm.answered_seen:
        pthread_mutex_lock(&mm.lock)
        if not mm.dead:
            _tell_all(engine, mm)
        pthread_mutex_unlock(&mm.lock)
    mm.answered_seen = answered
