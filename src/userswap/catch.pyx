# SPDX-License-Identifier: GPL-2.0-or-later
"""Catching forks, where the kernel does not tell the engine of them: it does so only for CAP_SYS_PTRACE.

Without that the child of a fork would have none of its parent's registered memory registered, and read zeros where its
parent's pages are swapped. So a filter of seccomp has the kernel ask us before a process forks (notice.h). Then:

  1. The thread is seized, so that its child will be.
  2. The engine is told, and keeps what the process has as it is: it holds the lock of its address space.
  3. The thread goes on, and forks. Its child stops before its first instruction.
  4. The child gets a helper and a userfaultfd of its own. The engine is told, has the child's memory registered,
     gives it what its parent has, and lets go.
  5. Both go on.

Nobody is traced but for that long. From the first step to the third the tracer does nothing else, so that nobody is
entered either: where nothing is registered when a fork begins, nothing is when it ends.

The kernel itself writes to the child's memory before the child runs: its number, where clone(2) is told to
(CLONE_CHILD_SETTID), and, whenever it goes on after a step of ours, the number of its CPU (rseq(2)). Where these pages
are swapped, it makes fresh ones of zeros, as nothing is registered yet. The engine drops those, and what was written we
write again, to the pages that come in for it."""

from libc.errno cimport EAGAIN, EALREADY, EINVAL, ENOSYS, EPERM, ESRCH, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.types cimport pid_t
from posix.unistd cimport close

from userswap.desk cimport BIRTH_COMES, BIRTH_IS, BIRTH_IS_NOT, PLACES_MAX, births_tell
from userswap.inject cimport (
    HELPER_STAGING, bystander_release, held_inject, held_release, helper_end, helper_features, helper_hand_over,
)
from userswap.system cimport (
    PRIORITY_TRACEE,
    sys_hurry,
    sys_open_proc,
    sys_page_absent,
)
from userswap.tracee cimport (
    STEP_LIMIT_MS, Tracee, await_stop, is_event_stop, read_memory, reap, sleep_us, status_field, tracing_begin,
    tracing_end,
)
from userswap.types cimport PAGE_SHIFT

cdef extern from *:
    """
    #include <sched.h>
    #include <signal.h>
    #include <stdio.h>
    #include <sys/ptrace.h>
    #include <sys/uio.h>
    #include "notice.h"
    """
    const int PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, PTRACE_GETEVENTMSG
    const int PTRACE_O_TRACEFORK, PTRACE_O_TRACEVFORK, PTRACE_O_TRACECLONE, PTRACE_O_EXITKILL
    const int PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_CLONE
    long ptrace(int request, ...) nogil

    const uint64_t CLONE_UNTRACED, CLONE_PARENT_SETTID, CLONE_CHILD_SETTID
    const int SIGKILL
    int kill(pid_t pid, int signal) nogil
    int dprintf(int fd, const char *format, ...) nogil

    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ssize_t process_vm_writev(pid_t pid, const iovec *local, unsigned long, const iovec *remote, unsigned long,
                              unsigned long flags) nogil

    const uint32_t AUDIT_ARCH_X86_64
    ctypedef struct seccomp_data "struct seccomp_data":
        int nr
        uint32_t arch
        uint64_t args[6]
    ctypedef struct seccomp_notif "struct seccomp_notif":
        uint64_t id
        uint32_t pid
        seccomp_data data
    int notice_install() nogil
    void notice_hurry(int fd) nogil
    int notice_wait(int fd, int milliseconds) nogil
    int notice_receive(int fd, seccomp_notif *notice) nogil
    int notice_answer(int fd, uint64_t id, int error) nogil

cdef enum:
    CLONE_CALL = 56
    GET_RSEQ_CONFIGURATION = 0x420f     # PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13
    NUMBER_BYTES = 4
    RSEQ_BYTES = 32                     # of it the kernel writes: numbers of the CPU, its node, and the like
    TURN_MS = 2                         # somebody may come to wait anew, or be stopped, meanwhile
    FORK_MS = 20                        # a fork that takes longer may have failed
    INJECT_TRIES = 50
    TOUCH_TRIES = 100
    TRY_AGAIN_US = 2000

cdef uint64_t OPTIONS = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL

cdef struct RseqConfiguration:
    uint64_t address
    uint32_t size
    uint32_t signature
    uint32_t flags
    uint32_t padding

cdef struct Words:                      # of the child's, that the kernel writes
    uint64_t address
    uint64_t length                     # 0: none
    bint written
    char bytes[32]                      # RSEQ_BYTES


# ---- one fork: the one that forks

cdef void _let_die(pid_t tid) noexcept nogil:
    """One that is dead, or about to be: as long as we have not seen that, nobody else gets to."""
    tracing_end()
    reap(tid)
    tracing_begin()


cdef int _await_fork(pid_t tid, pid_t *child, int *signal, Waits waits, void *context) noexcept nogil:
    """Until it has: 0. Or -EAGAIN where it has not, and has stopped for another reason: *signal is to be delivered. Or
    -EALREADY where it has not, and waits for its next one. Or -errno, where it died or does not stop."""
    cdef unsigned long message = 0
    cdef int rc, stop = 0
    cdef int turns = 0
    while True:
        rc = await_stop(tid, &stop, TURN_MS)
        if rc == -EAGAIN and turns < STEP_LIMIT_MS // TURN_MS:
            turns += 1
            if waits(context, tid):
                return -EALREADY
            if turns == FORK_MS // TURN_MS and ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0:
                return -errno
            continue
        if rc < 0:
            return -ESRCH if rc == -ESRCH else -EINVAL
        if stop >> 8 == PTRACE_EVENT_FORK or stop >> 8 == PTRACE_EVENT_VFORK or stop >> 8 == PTRACE_EVENT_CLONE:
            if ptrace(PTRACE_GETEVENTMSG, tid, NULL, &message) < 0:
                return -errno
            child[0] = <pid_t>message
            return 0
        signal[0] = 0 if is_event_stop(stop) else stop & 0x7f
        return -EAGAIN


cdef void _touch(pid_t tid, uint64_t address) noexcept nogil:
    """So that the page is there, and the process' own."""
    cdef iovec here, there
    cdef uint32_t number = 0
    if read_memory(tid, address, &number, sizeof(number)) != sizeof(number):
        return
    here.iov_base = &number
    there.iov_base = <void *>address
    here.iov_len = there.iov_len = sizeof(number)
    tracing_end()
    process_vm_writev(tid, &here, 1, &there, 1, 0)
    tracing_begin()


cdef int _tell(Births *births, uint32_t what) noexcept nogil:
    """Another engine may have to be started meanwhile."""
    cdef int result
    tracing_end()
    result = births_tell(births, what)
    tracing_begin()
    return result


cdef int _announce(Births *births, const Notice *notice, uint64_t flags, uint64_t number_at) noexcept nogil:
    """0: the engine keeps all as it is. -ESRCH: it has nothing of that process."""
    cdef int rc
    cdef int tries = 0
    births.parent = notice.target
    births.place_count = 0
    if flags & CLONE_PARENT_SETTID:     # which would be a fault that nobody answers meanwhile
        births.places[0] = number_at >> PAGE_SHIFT
        births.places[1] = (number_at + NUMBER_BYTES - 1) >> PAGE_SHIFT
        births.place_count = 2
    while True:
        rc = _tell(births, BIRTH_COMES)
        if rc != -EAGAIN:
            return rc
        tries += 1
        if tries == TOUCH_TRIES:        # nobody can write to it: the kernel will not, either
            births.place_count = 0
        _touch(notice.tid, number_at)


# ---- and its child

cdef void _add_place(Births *births, uint64_t address) noexcept nogil:
    if births.place_count < PLACES_MAX:
        births.places[births.place_count] = address >> PAGE_SHIFT
        births.place_count += 1


cdef void _keep(Words *words, pid_t child, int pagemap) noexcept nogil:
    """What the kernel has written, if it has: to look would make a page there, too."""
    cdef uint64_t last = words.address + words.length - 1
    words.written = (words.length > 0 and sys_page_absent(pagemap, words.address >> PAGE_SHIFT) == 0
                     and sys_page_absent(pagemap, last >> PAGE_SHIFT) == 0)
    if words.written:
        words.written = read_memory(child, words.address, words.bytes, words.length) == <ssize_t>words.length


cdef void _write_again(Words *words, pid_t child) noexcept nogil:
    """A fault, which has its answer only from an engine that may still be to be started."""
    cdef iovec here, there
    if not words.written:
        return
    here.iov_base = words.bytes
    there.iov_base = <void *>words.address
    here.iov_len = there.iov_len = words.length
    tracing_end()
    process_vm_writev(child, &here, 1, &there, 1, 0)
    tracing_begin()


cdef void _find_rseq(pid_t child, Words *words) noexcept nogil:
    cdef RseqConfiguration found
    memset(&found, 0, sizeof(found))
    if ptrace(<int>GET_RSEQ_CONFIGURATION, child, <void *>sizeof(found), &found) > 0 and found.address != 0:
        words.address = found.address
        words.length = min(found.size, <uint32_t>RSEQ_BYTES)


cdef int _serve_child(Births *births, Tracee *child, Words *words, int count) noexcept nogil:
    """The child is at its first stop, and afterwards at another."""
    cdef int at, pagemap, rc = -EAGAIN
    cdef int tries = 0
    while rc == -EAGAIN and tries < INJECT_TRIES:       # no process more is allowed just now
        if tries > 0:
            sleep_us(TRY_AGAIN_US)
        tries += 1
        rc = held_inject(child, helper_features(False), HELPER_STAGING, &births.helper)
    if rc < 0:
        return rc
    helper_hand_over(&births.helper)
    births.child = child.tid
    births.place_count = 0
    _find_rseq(child.tid, &words[1])
    pagemap = sys_open_proc(child.tid, b"pagemap")
    for at in range(count):
        if words[at].length > 0:
            _add_place(births, words[at].address)
            _add_place(births, words[at].address + words[at].length - 1)
        _keep(&words[at], child.tid, pagemap)
    if pagemap >= 0:
        close(pagemap)
    rc = _tell(births, BIRTH_IS) if pagemap >= 0 else -ESRCH
    if rc < 0:
        if births.helper.uffd >= 0:
            close(births.helper.uffd)
        helper_end(&births.helper)
        return rc
    births.helper.pid = 0
    for at in range(count):
        _write_again(&words[at], child.tid)
    return 0


cdef void _bear(Births *births, pid_t parent, pid_t pid, uint64_t number_at, bint held) noexcept nogil:
    """The child of a fork gets what it needs, and goes on. One that cannot be served ends before it has run: it would
    read zeros."""
    cdef Tracee child
    cdef Words words[2]
    cdef int stop = 0
    cdef int rc
    memset(&child, 0, sizeof(child))
    memset(words, 0, sizeof(words))
    child.tid = pid
    if number_at != 0:
        words[0].address = number_at
        words[0].length = NUMBER_BYTES
    rc = await_stop(pid, &stop, STEP_LIMIT_MS)
    if rc == 0 and not held and ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0:
        return
    sys_hurry(pid, PRIORITY_TRACEE, &child.schedule)
    if rc == 0 and held:
        rc = _serve_child(births, &child, words, 2)
    if rc < 0 and held:
        _tell(births, BIRTH_IS_NOT)
    if rc == 0 and held and held_release(&child) == 0:
        return
    if rc != -ESRCH:
        kill(pid, SIGKILL)
    _let_die(pid)
    if rc < 0 and rc != -ESRCH:
        dprintf(2, b"userswap: process %d, which process %d had just made, was ended: it could not be served (%d)\n",
                <int>pid, <int>parent, -rc)


# ---- all of it

cdef bint catch_fork(int listener, Births *births, const Notice *notice, bint seized, bint refused, Waits waits,
                     void *context) noexcept nogil:
    """Sees to one fork, or has it fail where it is `refused`. The caller traces (tracing_begin), and nobody else does
    meanwhile. True where it failed and the thread waits for its next one already, and is still seized: that is to be
    seen to at once, by the same thread of ours, with `seized`."""
    cdef pid_t tid = notice.tid
    cdef pid_t child = 0
    cdef uint64_t flags = notice.args[0] if notice.call & 0x3fffffff == CLONE_CALL else 0
    cdef bint native = notice.arch == AUDIT_ARCH_X86_64
    cdef uint64_t number_at = notice.args[3] if flags & CLONE_CHILD_SETTID and native else 0
    cdef int signal = 0
    cdef bint held = False
    cdef int rc
    if native and flags & CLONE_UNTRACED and not seized:
        notice_answer(listener, notice.id, EPERM)
        return False
    if not seized:
        seized = ptrace(PTRACE_SEIZE, tid, NULL, <void *>OPTIONS) == 0
    refused = refused or flags & CLONE_UNTRACED != 0
    if not refused:
        held = _announce(births, notice, flags if native else 0, notice.args[2]) == 0
    if refused or (held and not (seized and native)):
        # Somebody else traces it, or it is a strange one: it gets no child that would read zeros.
        if held:
            _tell(births, BIRTH_IS_NOT)
        notice_answer(listener, notice.id, EAGAIN if native else ENOSYS)
        held = False
        rc = -EAGAIN
    else:
        rc = notice_answer(listener, notice.id, 0)
    if not seized:
        return False
    if rc == -EAGAIN:           # it is let go at the next stop that can be had
        ptrace(PTRACE_INTERRUPT, tid, NULL, NULL)
    if rc == 0 or rc == -EAGAIN:
        rc = _await_fork(tid, &child, &signal, waits, context)
    if rc == 0:
        _bear(births, notice.target, child, number_at, held)
    elif held:
        _tell(births, BIRTH_IS_NOT)
    if rc == -EALREADY:
        return True
    if rc == 0 or rc == -EAGAIN:
        if signal == 0 and rc == -EAGAIN and bystander_release(notice.target, tid) == 0:
            return False
        if ptrace(PTRACE_DETACH, tid, NULL, <void *><long>signal) == 0:
            return False
    elif rc == -EINVAL:         # it may fork at any time yet
        kill(notice.target, SIGKILL)
    _let_die(tid)
    return False


cdef int catch_install() noexcept nogil:
    """The caller's forks, and those of all that comes of it, are caught from now on by whoever has the descriptor that
    this returns; or -errno."""
    return notice_install()


cdef int catch_await(int listener) noexcept nogil:
    """1 when somebody is about to fork; 0 when nobody is left who could."""
    return notice_wait(listener, -1)


cdef void catch_hurry(int listener) noexcept nogil:
    """Asks to be told at once."""
    notice_hurry(listener)


cdef bint catch_receive(int listener, Notice *notice) noexcept nogil:
    """False where nobody waits any more. Until it is received a signal ends the wait; and the call, with EINTR, if its
    handler is of those that do not have calls restarted. From then on only the fork does."""
    cdef seccomp_notif received
    if notice_wait(listener, 0) != 1 or notice_receive(listener, &received) != 0:
        return False
    notice.id = received.id
    notice.tid = <pid_t>received.pid
    notice.target = <pid_t>status_field(notice.tid, notice.tid, b"\nTgid:", 10)
    notice.call = received.data.nr
    notice.arch = received.data.arch
    memcpy(notice.args, received.data.args, sizeof(notice.args))
    return True
