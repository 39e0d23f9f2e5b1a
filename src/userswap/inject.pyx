# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's way into another process: making the resident helper, asking it, ending it.

One thread of the target is stopped for as long as one `clone` takes. What follows happens in the
clone, a process of its own that shares the target's memory (`furnish`). Where memory is short the thread is held
until all is done (Hold): it would take more meanwhile than there is.

Rules, each of which was paid for with a crashed target:

- A stop may have cut short a system call. The kernel restarts it when the registers are put back at an
  event stop; at a syscall stop it does not, and the program would see -512. So after the clone the thread is
  brought to an event stop again before it is let go.
- A few calls tell EINTR even when no signal handler ran (`leaks_eintr`). Threads that sit in one are the
  last choice; when it must be one, its call is issued again.
- SIGTRAP is never raised: single-stepping with the signal blocked would reset the program's own handler.
- A thread in an uninterruptible sleep (a parent in vfork) does not stop, and one that does not stop can not
  be detached either. The tracer is therefore a thread of its own: when it ends the kernel lets go of all.
"""
from libc.errno cimport (
    EACCES, EAGAIN, EBUSY, EINTR, EINVAL, ENOENT, ENOEXEC, EPERM, ESRCH, ETIMEDOUT, errno,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtol
from libc.string cimport memset
from posix.types cimport pid_t

from userswap.furnish cimport furnish
from userswap.system cimport (
    DIR,
    PRIORITY_TRACEE,
    closedir,
    sys_hurry,
    sys_next_task,
    sys_open_tasks,
    sys_unhurry,
)
from userswap.tracee cimport (
    PAGE, STOP_LIMIT_MS, SYSCALL_STOP, Tracee, await_stop, enter_syscall, is_event_stop, is_syscall,
    locate_syscall, now_ns, read_start, reap, remote_call, set_options, sleep_us, status_field, syscall_result,
    thread_state, to_event_stop, to_syscall_stop, user_regs_struct,
)

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/mman.h>
    #include <sys/ptrace.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>
    """
    const int __WALL, WNOHANG
    const int SYS_clone, SYS_exit_group, SYS_futex, SYS_munmap, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_wait4
    const int SYS_accept, SYS_accept4, SYS_connect, SYS_epoll_wait, SYS_epoll_pwait, SYS_io_getevents
    const int SYS_io_pgetevents, SYS_io_uring_enter, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmmsg
    const int SYS_rt_sigtimedwait, SYS_semop, SYS_semtimedop, SYS_sendmsg, SYS_sendto, SYS_write, SYS_writev
    long syscall(long number, ...) nogil

    const int PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_GETSIGMASK
    const int PTRACE_SETSIGMASK, PTRACE_GETEVENTMSG, PTRACE_CONT, PTRACE_DETACH, PTRACE_O_TRACECLONE, PTRACE_O_EXITKILL
    long ptrace(int request, ...) nogil

    const int SIGKILL, SIG_SETMASK
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *mask) nogil
    int kill(pid_t pid, int signal) nogil
    pid_t getpid() nogil
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes, void *(*run)(void *) noexcept nogil, void *) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int pthread_sigmask(int how, const sigset_t *mask, sigset_t *old) nogil

    ctypedef struct timespec "struct timespec":
        long tv_sec, tv_nsec
    ctypedef struct cpu_set_t:
        pass
    void CPU_ZERO(cpu_set_t *) nogil
    void CPU_SET(int cpu, cpu_set_t *) nogil
    int sched_getcpu() nogil
    int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *) nogil

    const int CLONE_VM, CLONE_FILES, FUTEX_WAIT, FUTEX_WAKE
    int munmap(void *start, size_t length) nogil
    int close(int fd) nogil

    const short POLLIN
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events, revents
    int poll(pollfd *fds, unsigned long count, int milliseconds) nogil

    uint32_t atomic_load "__atomic_load_n"(uint32_t *word, int order) nogil
    void atomic_store "__atomic_store_n"(uint32_t *word, uint32_t value, int order) nogil
    void atomic_store_fd "__atomic_store_n"(int *word, int value, int order) nogil
    const int __ATOMIC_ACQUIRE, __ATOMIC_RELEASE

cdef enum:
    USER64_CS = 0x33
    ERESTARTNOINTR = 513                # the kernel's own: seen by tracers only
    ALL_SIGNALS_SIZE = 8
    CANDIDATES = 16
    O_SUSPEND_SECCOMP = 1 << 21         # PTRACE_O_SUSPEND_SECCOMP, for CAP_SYS_ADMIN
    SYSCALL_USER_DISPATCH_GET = 0x4210  # PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4
    ATTEMPTS = 200
    CLONE_TRIES = 100
    ANSWER_SLICE_MS = 100
    ANSWER_LIMIT_MS = 30000

cdef struct Candidate:
    pid_t tid
    int cost

cdef struct Job:
    Helper helper
    bint remove             # ... it. Else make one
    Hold *hold              # or NULL
    bint held               # the victim is
    int uffd                # one to use, or -1
    uint64_t features
    uint64_t staging_length
    pid_t reaped            # to be waited for by a thread of the program, as it knows it; 0: none
    int error


# ---- choosing a thread ----

cdef bint leaks_eintr(int64_t number) noexcept nogil:
    """Calls that tell the program EINTR after a stop without a signal. Issuing one again is right: nothing
    has been done yet. Its timeout starts anew."""
    return (number == SYS_epoll_wait or number == SYS_epoll_pwait or number == 441 or  # epoll_pwait2
            number == SYS_rt_sigtimedwait or number == SYS_semop or number == SYS_semtimedop or
            number == SYS_recvfrom or number == SYS_recvmmsg or number == 47 or        # recvmsg
            number == SYS_sendto or number == SYS_sendmsg or number == 307 or          # sendmmsg
            number == SYS_accept or number == SYS_accept4 or number == SYS_connect or
            number == SYS_read or number == SYS_readv or number == SYS_write or number == SYS_writev or
            number == SYS_io_getevents or number == SYS_io_pgetevents or number == SYS_io_uring_enter)


cdef int thread_cost(pid_t target, pid_t tid) noexcept nogil:
    """How little we would like to stop this thread; -1: it can not be."""
    cdef char state = thread_state(target, tid)
    cdef char path[64]
    cdef char text[256]
    if state == c'Z' or state == c'X':
        return -1
    if state == c'D':
        return 3
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/syscall", target, tid)
    if read_start(path, text, sizeof(text)) <= 0 or text[0] == c'r':
        return 1    # running
    return 2 if leaks_eintr(strtol(text, NULL, 10)) else 0


cdef void offer(Candidate *best, int *count, pid_t tid, int cost) noexcept nogil:
    """Keep the CANDIDATES cheapest, cheapest first."""
    cdef int i = count[0]
    if i == CANDIDATES:
        if best[i - 1].cost <= cost:
            return
        i -= 1
    else:
        count[0] += 1
    while i > 0 and best[i - 1].cost > cost:
        best[i] = best[i - 1]
        i -= 1
    best[i].tid = tid
    best[i].cost = cost


cdef int choose_threads(pid_t target, Candidate *best) noexcept nogil:
    """How many were found, or -errno. A few that cost nothing end the search."""
    cdef DIR *tasks = sys_open_tasks(target)
    cdef pid_t tid
    cdef int count = 0, cost
    if tasks == NULL:
        return -ESRCH
    while count < 2 or best[1].cost > 0:
        tid = sys_next_task(tasks)
        if tid == 0:
            break
        cost = thread_cost(target, tid)
        if cost >= 0:
            offer(best, &count, tid, cost)
    closedir(tasks)
    return count if count > 0 else -ESRCH


# ---- the victim: one thread of the target, stopped for one clone, or to reap what that made ----

cdef int seize(pid_t target, pid_t tid) noexcept nogil:
    if ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0:
        return 0
    if errno == EPERM and thread_state(target, tid) == c'Z':
        return -ESRCH
    if errno == EPERM and status_field(target, tid, b"\nTracerPid:", 10) > 0:
        return -EBUSY
    return -errno


cdef bint dispatches_syscalls(pid_t tid) noexcept nogil:
    """Whether its system calls are handed to the program itself (Wine): a strange one would kill it."""
    cdef uint64_t config[4]
    memset(config, 0, sizeof(config))
    return ptrace(<int>SYSCALL_USER_DISPATCH_GET, tid, <void *>sizeof(config), config) == 0 and config[0] != 0


cdef int64_t expected_filters = 0


cdef void inject_expect_filter() noexcept nogil:
    global expected_filters
    expected_filters = 1


cdef uint64_t seccomp_option(pid_t target, pid_t tid) noexcept nogil:
    """A program that sandboxed itself may be killed for a clone of ours. Where it only has the filters that
    we live under too (a container's), and our own, that is not to be feared."""
    cdef pid_t self = getpid()
    cdef int64_t filters = status_field(target, tid, b"\nSeccomp_filters:", 10) - expected_filters
    cdef bint strict = status_field(target, tid, b"\nSeccomp:", 10) == 1
    return O_SUSPEND_SECCOMP if strict or filters > status_field(self, self, b"\nSeccomp_filters:", 10) else 0


cdef int look_at_victim(Tracee *victim) noexcept nogil:
    """Keep what has to be put back."""
    if ptrace(PTRACE_GETREGS, victim.tid, NULL, &victim.registers) < 0:
        return -errno
    if ptrace(PTRACE_GETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &victim.mask) < 0:
        return -errno
    return 0


cdef int prepare_victim(Tracee *victim) noexcept nogil:
    """All signals are blocked last: a pending one would make clone give up."""
    cdef uint64_t all_signals = ~<uint64_t>0
    cdef int rc
    if victim.registers.cs != USER64_CS:
        return -ENOEXEC
    if not is_syscall(victim.tid, victim.instruction):
        return -ERESTARTNOINTR      # it was looked up before an exec
    if dispatches_syscalls(victim.tid):
        return -EACCES
    # Only now: from the first option on, whatever the thread clones would be stopped for us too.
    rc = set_options(victim, PTRACE_O_TRACECLONE)
    if rc == 0 and ptrace(PTRACE_SETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &all_signals) < 0:
        return -errno
    return rc


cdef int clone_once(Tracee *victim, pid_t *child) noexcept nogil:
    """CLONE_FILES: the child's table of files is made empty later, without a reference to any of them ever
    having been taken. Exit signal 0: the program is never told of its child."""
    cdef uint64_t[6] arguments
    cdef unsigned long message = 0
    cdef int rc, stop
    memset(arguments, 0, sizeof(arguments))
    arguments[0] = CLONE_VM | CLONE_FILES
    rc = enter_syscall(victim, SYS_clone, arguments)
    if rc < 0:
        return rc
    rc = to_syscall_stop(victim.tid, &stop)
    if rc < 0:
        return rc
    if stop == SYSCALL_STOP:
        rc = <int>syscall_result(victim)
        return rc if rc == -ERESTARTNOINTR else -EAGAIN
    if ptrace(PTRACE_GETEVENTMSG, victim.tid, NULL, &message) < 0:
        return -errno
    child[0] = <pid_t>message
    return 0


cdef int clone_victim(Tracee *victim, pid_t *child) noexcept nogil:
    """No clone is made while a signal waits, and SIGSTOP cannot be blocked. The thread is given it on the way to the
    next try: where they come in quick succession that wins sooner than stopping it anew."""
    cdef int _, rc = -ERESTARTNOINTR
    for _ in range(CLONE_TRIES):
        rc = clone_once(victim, child)
        if rc != -ERESTARTNOINTR:
            break
    return rc


cdef int reap_in_victim(Tracee *victim, pid_t reaped) noexcept nogil:
    """-EAGAIN when the call was not made. Whether it found a child is no matter: another thread may have."""
    cdef uint64_t[6] arguments
    cdef int rc, stop
    memset(arguments, 0, sizeof(arguments))
    arguments[0] = <uint64_t>reaped
    arguments[2] = <uint64_t>(__WALL | WNOHANG)
    rc = enter_syscall(victim, SYS_wait4, arguments)
    if rc == 0:
        rc = to_syscall_stop(victim.tid, &stop)
    if rc < 0:
        return rc
    rc = <int>syscall_result(victim)
    return rc if rc == -ERESTARTNOINTR else 0


cdef bint has_deliverable_signal(pid_t target, Tracee *victim) noexcept nogil:
    cdef int64_t own = status_field(target, victim.tid, b"\nSigPnd:", 16)
    cdef int64_t shared = status_field(target, victim.tid, b"\nShdPnd:", 16)
    return ((<uint64_t>own | <uint64_t>shared) & ~victim.mask) != 0


cdef void reissue_if_leaked(pid_t target, Tracee *victim) noexcept nogil:
    """A call that our stop ended with EINTR is issued again, unless a signal is the true cause."""
    cdef user_regs_struct *registers = &victim.registers
    if registers.cs != USER64_CS:
        return                          # its calls have other numbers
    if <int64_t>registers.rax != -EINTR or not leaks_eintr(<int64_t>registers.orig_rax):
        return
    if not is_syscall(victim.tid, registers.rip - 2) or has_deliverable_signal(target, victim):
        return
    registers.rip -= 2
    registers.rax = registers.orig_rax
    registers.orig_rax = <unsigned long long>-1


cdef int restore_victim(Tracee *victim) noexcept nogil:
    """It could go on. Its schedule first: once it ran, in real time, we might not get to it."""
    sys_unhurry(victim.tid, &victim.schedule)
    if ptrace(PTRACE_SETREGS, victim.tid, NULL, &victim.registers) < 0:
        return -errno
    if ptrace(PTRACE_SETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &victim.mask) < 0:
        return -errno
    return 0


cdef int release_victim(pid_t target, Tracee *victim) noexcept nogil:
    cdef int rc
    reissue_if_leaked(target, victim)
    rc = restore_victim(victim)
    if rc < 0:
        return rc
    return 0 if ptrace(PTRACE_DETACH, victim.tid, NULL, NULL) == 0 else -errno


cdef int await_victim(pid_t target, pid_t tid, int *stop) noexcept nogil:
    """One that does not sleep uninterruptibly is only short of time to run, and worth a longer wait."""
    cdef int _, rc = -EAGAIN
    for _ in range(10):
        rc = await_stop(tid, stop, STOP_LIMIT_MS)
        if rc != -EAGAIN or thread_state(target, tid) == c'D':
            break
    return rc


cdef int interrupt(pid_t target, pid_t tid) noexcept nogil:
    """To an event stop. Signals that come first go on their way."""
    cdef int rc, stop = 0
    if ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0:
        return -errno
    while True:
        rc = await_victim(target, tid, &stop)
        if rc < 0 or is_event_stop(stop):
            return rc
        if ptrace(PTRACE_CONT, tid, NULL, <void *><long>(stop & 0x7f if stop >> 8 == 0 else 0)) < 0:
            return -errno


cdef int stop_victim(pid_t target, Tracee *victim) noexcept nogil:
    """Seized, at an event stop and prepared; or let go again where that can be done."""
    cdef int rc = seize(target, victim.tid)
    if rc == 0:
        rc = interrupt(target, victim.tid)
    if rc < 0:
        return rc
    rc = look_at_victim(victim)
    if rc < 0:
        return rc
    rc = prepare_victim(victim)
    if rc < 0:
        release_victim(target, victim)
    return rc


cdef int act_in(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    cdef uint64_t start = now_ns()
    cdef int left, rc = stop_victim(job.helper.target, victim)
    if rc < 0:
        return rc
    rc = clone_victim(victim, child) if job.reaped == 0 else reap_in_victim(victim, job.reaped)
    left = to_event_stop(victim.tid)
    job.held = rc == 0 and left == 0 and job.hold != NULL
    if job.held:
        left = restore_victim(victim)
    elif left == 0:
        left = release_victim(job.helper.target, victim)
    if left < 0:        # it has registers of ours, and must not run on with them if it lives
        syscall(SYS_pidfd_send_signal, job.helper.target_pidfd, SIGKILL, NULL, 0)
    job.helper.stopped_ns = now_ns() - start
    return rc if rc < 0 else left


cdef int act_in_haste(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    """Every step waits for the thread's turn on a CPU, milliseconds each where the program is busy."""
    sys_hurry(victim.tid, PRIORITY_TRACEE, &victim.schedule)
    cdef int rc = act_in(job, victim, child)
    sys_unhurry(victim.tid, &victim.schedule)       # if it was not released
    return rc


cdef int act_in_any(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    """In the best thread that can be stopped. A thread may end, or sleep on, while we ask for it."""
    cdef Candidate best[CANDIDATES]
    cdef int i, rc, count = choose_threads(job.helper.target, best)
    if count < 0:
        return count
    victim.options = seccomp_option(job.helper.target, best[0].tid)
    rc = locate_syscall(best[0].tid, &victim.instruction)
    if rc < 0:
        return rc
    for i in range(count):
        victim.tid = best[i].tid
        rc = act_in_haste(job, victim, child)
        if child[0] != 0 or rc == 0 or (rc != -EAGAIN and rc != -ESRCH and rc != -ENOEXEC):
            return rc
    return -ENOENT if rc == -ESRCH else rc


cdef int try_to_act(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    """Again where the program changed under our hands: a stop signal had just come, which the thread has to
    be let have; it ran another program; or the threads that we knew of are gone."""
    cdef int _, rc = -EAGAIN
    for _ in range(ATTEMPTS):
        rc = act_in_any(job, victim, child)
        if rc != -ERESTARTNOINTR and rc != -ENOENT:
            return rc
        sleep_us(200)
    return -EAGAIN


# ---- all of it ----

cdef int try_out(Helper *helper) noexcept nogil:
    """The calls that it will live by, once, before any page depends on it: a sandbox may forbid them."""
    helper.mailbox.request = USERSWAP_DROP
    helper.mailbox.count = 1
    helper.mailbox.items[0].src = helper.staging
    helper.mailbox.items[0].len = helper.staging_length
    if helper_call(helper) < 0 or helper.mailbox.items[0].result != 0:
        return -EACCES
    helper.mailbox.count = 0
    helper.mailbox.request = USERSWAP_NOTHING
    return 0


cdef int furnish_clone(Job *job, const Tracee *victim, pid_t clone) noexcept nogil:
    cdef Tracee child
    cdef int rc
    memset(&child, 0, sizeof(child))
    child.tid = clone
    child.instruction = victim.instruction
    child.options = victim.options
    rc = furnish(&child, &job.helper, job.uffd, job.features, job.staging_length)
    return try_out(&job.helper) if rc == 0 else rc


cdef int inject(Job *job) noexcept nogil:
    cdef Tracee victim
    cdef pid_t clone = 0
    cdef int rc = try_to_act(job, &victim, &clone)
    if clone != 0:          # even if something went wrong with the thread since, it has to be dealt with
        rc = furnish_clone(job, &victim, clone)
    if job.held:
        if rc == 0:
            job.hold.made(job.hold, &job.helper)
        release_victim(job.helper.target, &victim)
    return rc


cdef void start_job(Job *job, pid_t target, int uffd, uint64_t features, uint64_t staging_length) noexcept nogil:
    memset(job, 0, sizeof(Job))
    job.uffd = uffd
    job.features = features
    job.staging_length = staging_length
    job.helper.target = target
    job.helper.pidfd = job.helper.uffd = job.helper.target_pidfd = job.helper.mailbox_fd = job.helper.cpu = -1


cdef int finish_job(Job *job, int rc, Helper *out) noexcept nogil:
    if rc == 0:
        out[0] = job.helper
        return 0
    if job.helper.uffd >= 0:
        close(job.helper.uffd)
    let_go(&job.helper)
    return rc


cdef int clone_held(Tracee *held, pid_t *child) noexcept nogil:
    """Its tracer's end is its own: it must not run on as it is. Where it was tried before, what is to be put back is
    known."""
    cdef int left, rc = 0
    if held.instruction == 0:
        held.options = PTRACE_O_EXITKILL | seccomp_option(held.tid, held.tid)
        rc = look_at_victim(held)
    if rc == 0:
        rc = locate_syscall(held.tid, &held.instruction)
    if rc == 0:
        rc = prepare_victim(held)
    if rc == 0:
        rc = clone_victim(held, child)
    left = to_event_stop(held.tid) if rc == 0 or child[0] != 0 else 0
    return rc if rc < 0 else left


cdef int held_inject(Tracee *held, uint64_t uffd_features, uint64_t staging_length, Helper *out) noexcept nogil:
    cdef Job job
    cdef int rc
    start_job(&job, held.tid, -1, uffd_features, staging_length)
    rc = check_target(&job)
    if rc == 0:
        rc = clone_held(held, &job.helper.pid)
    if rc == 0:
        rc = furnish_clone(&job, held, job.helper.pid)
    if rc < 0 and job.helper.pid > 0:
        end_process(&job.helper)
        reap(job.helper.pid)
    return finish_job(&job, rc, out)


cdef int held_release(Tracee *held) noexcept nogil:
    return release_victim(held.tid, held)


cdef int bystander_release(pid_t target, pid_t tid) noexcept nogil:
    cdef Tracee bystander
    memset(&bystander, 0, sizeof(bystander))
    bystander.tid = tid
    if look_at_victim(&bystander) == 0:
        reissue_if_leaked(target, &bystander)
        ptrace(PTRACE_SETREGS, tid, NULL, &bystander.registers)
    return 0 if ptrace(PTRACE_DETACH, tid, NULL, NULL) == 0 else -errno


cdef int clear(Job *job) noexcept nogil:
    """Of the helper: its memory first, by itself; then it, and what the program would see of it."""
    cdef Tracee helper, victim
    cdef uint64_t[6] arguments
    cdef int rc, stop = 0
    cdef pid_t none = 0
    memset(&helper, 0, sizeof(helper))
    memset(arguments, 0, sizeof(arguments))
    helper.tid = job.helper.pid
    rc = locate_syscall(helper.tid, &helper.instruction)
    if rc == 0 and ptrace(PTRACE_SEIZE, helper.tid, NULL, NULL) < 0:
        rc = -errno
    if rc == 0:
        rc = interrupt(job.helper.target, helper.tid)
    if rc == 0:
        rc = set_options(&helper, 0)
    if rc == 0 and ptrace(PTRACE_GETREGS, helper.tid, NULL, &helper.registers) < 0:
        rc = -errno
    if rc == 0:
        rc = <int>remote_call(&helper, SYS_munmap, job.helper.own_start[0],
                              job.helper.own_end[0] - job.helper.own_start[0])
    if rc == 0:
        enter_syscall(&helper, SYS_exit_group, arguments)
        to_syscall_stop(helper.tid, &stop)      # it ends
    end_process(&job.helper)
    reap(helper.tid)
    if rc < 0 or is_dead(job.helper.target_pidfd) or status_field(
            job.helper.pid, job.helper.pid, b"\nPPid:", 10) != job.helper.target:
        return rc
    return try_to_act(job, &victim, &none)


cdef void *tracer(void *argument) noexcept nogil:
    cdef Job *job = <Job *>argument
    if job.remove:
        job.error = clear(job)
        return NULL
    job.error = inject(job)
    # What was made of the clone must not outlive us, and at the end of this thread it would be let go.
    if job.error < 0 and job.helper.pid > 0:
        end_process(&job.helper)
    return NULL


cdef int check_target(Job *job) noexcept nogil:
    """The pidfd first: what is found out by number afterwards is about a process that stays the same one."""
    cdef pid_t target = job.helper.target
    cdef char state
    job.helper.target_pidfd = <int>syscall(SYS_pidfd_open, target, 0)
    if job.helper.target_pidfd < 0:
        return -ESRCH if errno == EINVAL or errno == ESRCH else -errno
    state = thread_state(target, target)
    return 0 if state != c'X' else -ESRCH


cdef int run_tracer(Job *job) noexcept nogil:
    """In a thread that no signal handler of ours interrupts."""
    cdef pthread_t thread
    cdef sigset_t all_signals, old
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    cdef int error = pthread_create(&thread, NULL, tracer, job)
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    if error != 0:
        return -error
    pthread_join(thread, NULL)
    return job.error


cdef int helper_inject(pid_t target, int uffd, uint64_t uffd_features, uint64_t staging_length, Hold *hold,
                       Helper *out) noexcept nogil:
    cdef Job job
    cdef int rc
    if staging_length == 0 or staging_length % PAGE != 0:
        return -EINVAL
    start_job(&job, target, uffd, uffd_features, staging_length)
    job.hold = hold
    rc = check_target(&job)
    if rc == 0:
        rc = run_tracer(&job)
    return finish_job(&job, rc, out)


cdef int helper_remove(const Helper *helper) noexcept nogil:
    cdef Job job
    cdef int rc
    memset(&job, 0, sizeof(job))
    job.helper = helper[0]
    job.remove = True
    job.reaped = helper.own_pid
    rc = run_tracer(&job)
    return 0 if rc == -ESRCH else rc        # the program has gone


# ---- asking and ending ----

cdef long futex(uint32_t *word, int operation, uint32_t value, const timespec *limit) noexcept nogil:
    return syscall(SYS_futex, word, operation, value, limit, NULL, 0)


cdef bint is_dead(int pidfd) noexcept nogil:
    cdef pollfd one
    one.fd = pidfd
    one.events = POLLIN
    one.revents = 0
    return pidfd < 0 or poll(&one, 1, 0) != 0


cdef void follow_cpu(Helper *helper) noexcept nogil:
    """To wake a process on another CPU takes twenty times as long as on this one. If the program may not run
    here the helper stays where it is: only slower."""
    cdef cpu_set_t one
    cdef int cpu = sched_getcpu()
    if cpu < 0 or cpu == helper.cpu:
        return
    CPU_ZERO(&one)
    CPU_SET(cpu, &one)
    sched_setaffinity(helper.pid, sizeof(one), &one)
    helper.cpu = cpu


cdef int await_answer(Helper *helper, uint32_t posted) noexcept nogil:
    """In slices: a helper that dies wakes nobody."""
    cdef timespec slice
    cdef uint64_t start = now_ns()
    cdef uint32_t done
    slice.tv_sec = 0
    slice.tv_nsec = ANSWER_SLICE_MS * 1000000
    while True:
        done = atomic_load(&helper.mailbox.done, __ATOMIC_ACQUIRE)
        if done == posted:
            return 0
        if futex(&helper.mailbox.done, FUTEX_WAIT, done, &slice) == 0 or errno != ETIMEDOUT:
            continue
        if is_dead(helper.pidfd):
            return -ESRCH
        if now_ns() - start > <uint64_t>ANSWER_LIMIT_MS * 1000000:
            return -ETIMEDOUT


cdef int helper_call(Helper *helper) noexcept nogil:
    cdef userswap_mailbox *mailbox = helper.mailbox
    cdef uint32_t posted
    if mailbox == NULL or helper.pidfd < 0:
        return -ESRCH
    posted = mailbox.posted
    if atomic_load(&mailbox.done, __ATOMIC_ACQUIRE) != posted:
        return -ESRCH if is_dead(helper.pidfd) else -EBUSY
    follow_cpu(helper)
    posted += 1
    atomic_store(&mailbox.posted, posted, __ATOMIC_RELEASE)
    futex(&mailbox.posted, FUTEX_WAKE, 1, NULL)
    return await_answer(helper, posted)


cdef void kill_process(Helper *helper) noexcept nogil:
    syscall(SYS_pidfd_send_signal, helper.pidfd, SIGKILL, NULL, 0)


cdef void end_process(Helper *helper) noexcept nogil:
    """Through the pidfd, where there is one yet, so that a number used anew is never meant."""
    cdef pollfd one
    if helper.pidfd < 0:
        if helper.pid > 0:
            kill(helper.pid, SIGKILL)
        return
    kill_process(helper)
    one.fd = helper.pidfd
    one.events = POLLIN
    poll(&one, 1, 5000)


cdef void close_if_open(int *fd) noexcept nogil:
    """Forgotten first: whoever dies in between leaves a file open, and its successor does not close another's."""
    cdef int open_fd = fd[0]
    atomic_store_fd(fd, -1, __ATOMIC_RELEASE)
    if open_fd >= 0:
        close(open_fd)


cdef void let_go(Helper *helper) noexcept nogil:
    if helper.mailbox != NULL:
        munmap(helper.mailbox, USERSWAP_MAILBOX_SIZE)
    helper.mailbox = NULL
    close_if_open(&helper.mailbox_fd)
    close_if_open(&helper.pidfd)
    close_if_open(&helper.target_pidfd)


cdef void helper_end(Helper *helper) noexcept nogil:
    end_process(helper)
    helper.pid = 0
    let_go(helper)


cdef void helper_dismiss(Helper *helper) noexcept nogil:
    """As helper_end, but does not wait: where it is the last of its address space its end takes as long as it takes to
    free all memory."""
    kill_process(helper)
    helper.pid = 0
    let_go(helper)
