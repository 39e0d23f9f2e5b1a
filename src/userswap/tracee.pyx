# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread of another process, stopped by ptrace: reading about it, and making it do system calls."""
from libc.errno cimport EACCES, EAGAIN, EIO, ENOENT, EPERM, ESRCH, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport FILE, fclose, fopen, getline, snprintf, sscanf
from libc.stdlib cimport free, strtoull
from libc.string cimport memcpy, strchr, strrchr, strstr
from posix.types cimport pid_t

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sched.h>
    #include <string.h>
    #include <sys/ptrace.h>
    #include <sys/uio.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>
    """
    const int PTRACE_INTERRUPT, PTRACE_SETOPTIONS, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SYSCALL, PTRACE_CONT
    const int PTRACE_POKETEXT, PTRACE_EVENT_STOP, PTRACE_O_TRACESYSGOOD
    long ptrace(int request, ...) nogil

    const int P_PID, WEXITED, WSTOPPED, WNOHANG, WNOWAIT, __WALL, __WNOTHREAD, CLD_TRAPPED, CLD_STOPPED
    ctypedef struct siginfo_t:
        int si_pid, si_code, si_status
    int waitid(int kind, int which, siginfo_t *info, int options) nogil

    const int CLOCK_MONOTONIC
    ctypedef struct timespec "struct timespec":
        long tv_sec, tv_nsec
    int clock_gettime(int clock, timespec *now) nogil
    int nanosleep(const timespec *duration, timespec *left) nogil
    int sched_yield() nogil
    const int _SC_NPROCESSORS_ONLN
    long sysconf(int) nogil

    const int O_CLOEXEC, O_RDONLY
    int open(const char *path, int flags) nogil
    int close(int fd) nogil
    ssize_t fd_read "read"(int fd, void *buffer, size_t length) nogil

    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(pid_t pid, const iovec *local, unsigned long, const iovec *remote, unsigned long,
                             unsigned long flags) nogil
    void *memmem(const void *, size_t, const void *, size_t) nogil


# ---- time, files ----

cdef uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef void sleep_us(long us) noexcept nogil:
    cdef timespec duration
    duration.tv_sec = us // 1000000
    duration.tv_nsec = us % 1000000 * 1000
    nanosleep(&duration, NULL)


cdef ssize_t read_start(const char *path, char *buffer, size_t size) noexcept nogil:
    """The first bytes of a file of /proc, ended by a 0; or -errno."""
    cdef ssize_t length
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return -errno
    length = fd_read(fd, buffer, size - 1)
    if length < 0:
        length = -errno
    close(fd)
    if length >= 0:
        buffer[length] = 0
    return length


cdef int64_t status_field(pid_t target, pid_t tid, const char *name, int base) noexcept nogil:
    """A number of /proc/PID/task/TID/status, -1 if there is none. `name` begins with the newline."""
    cdef char path[64]
    cdef char text[4096]
    cdef char *found
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/status", target, tid)
    if read_start(path, text, sizeof(text)) < 0:
        return -1
    found = strstr(text, name)
    if found == NULL:
        return -1
    return <int64_t>strtoull(strchr(found, c':') + 1, NULL, base)


cdef char thread_state(pid_t target, pid_t tid) noexcept nogil:
    cdef char path[64]
    cdef char text[512]
    cdef char *name_end
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/stat", target, tid)
    if read_start(path, text, sizeof(text)) < 0:
        return c'X'
    name_end = strrchr(text, c')')
    return name_end[2] if name_end != NULL else c'X'


# ---- reading the target's memory, before anything is stopped ----

cdef ssize_t read_memory(pid_t pid, uint64_t address, void *buffer, size_t length) noexcept nogil:
    cdef iovec local, remote
    cdef ssize_t done
    local.iov_base = buffer
    local.iov_len = length
    remote.iov_base = <void *>address
    remote.iov_len = length
    done = process_vm_readv(pid, &local, 1, &remote, 1, 0)
    return done if done >= 0 else -errno


cdef uint64_t find_syscall(pid_t pid, uint64_t start, uint64_t end) noexcept nogil:
    """The address of a `syscall` instruction, 0 if none. Any two such bytes do: we stop right after them."""
    cdef char bytes[PAGE + 1]
    cdef ssize_t length
    cdef char *found
    while start < end:
        # One byte into the next page, for an instruction that lies across.
        length = read_memory(pid, start, bytes, PAGE + 1 if end - start > PAGE else PAGE)
        if length > 0:
            found = <char *>memmem(bytes, length, b"\x0f\x05", 2)
            if found != NULL:
                return start + <uint64_t>(found - bytes)
        start += PAGE
    return 0


cdef bint is_syscall(pid_t pid, uint64_t address) noexcept nogil:
    cdef uint8_t bytes[2]
    return read_memory(pid, address, bytes, 2) == 2 and bytes[0] == 0x0f and bytes[1] == 0x05


cdef int find_vdso(pid_t pid, uint64_t *vdso) noexcept nogil:
    """AT_SYSINFO_EHDR of /proc/PID/auxv: cheaper than the list of mappings, which may be long."""
    cdef uint64_t pairs[128]
    cdef char path[64]
    cdef ssize_t length
    cdef int i
    snprintf(path, sizeof(path), b"/proc/%d/auxv", pid)
    length = read_start(path, <char *>pairs, sizeof(pairs))
    vdso[0] = 0
    for i in range(0, <int>(length // 8) - 1, 2):
        if pairs[i] == 33:
            vdso[0] = pairs[i + 1]
    return -EPERM if length == -EACCES or length == -EPERM else 0


cdef uint64_t syscall_in_text(pid_t pid) noexcept nogil:
    """For a target without a vdso: the first instruction in any of its executable mappings."""
    cdef char path[64]
    cdef char *line = NULL
    cdef size_t room = 0
    cdef unsigned long start, end
    cdef char mode[8]
    cdef uint64_t found = 0
    snprintf(path, sizeof(path), b"/proc/%d/maps", pid)
    cdef FILE *maps = fopen(path, b"re")
    if maps == NULL:
        return 0
    while found == 0 and getline(&line, &room, maps) > 0:
        if sscanf(line, b"%lx-%lx %7s", &start, &end, mode) == 3 and mode[2] == c'x':
            if strstr(line, b"[vsyscall]") == NULL:
                found = find_syscall(pid, start, end)
    free(line)
    fclose(maps)
    return found


cdef int locate_syscall(pid_t pid, uint64_t *found) noexcept nogil:
    """By the number of any thread that is alive; the first one's need not be. -ENOENT: amid an exec."""
    cdef uint64_t vdso
    cdef int rc = find_vdso(pid, &vdso)
    if rc < 0:
        return rc
    found[0] = find_syscall(pid, vdso, vdso + 2 * PAGE) if vdso != 0 else 0
    if found[0] == 0:
        found[0] = syscall_in_text(pid)
    return 0 if found[0] != 0 else -ENOENT


# ---- who traces, and who has to wait for it ----

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned value)
    int sem_wait(sem_t *semaphore)
    int sem_post(sem_t *semaphore)

cdef sem_t at_rest
sem_init(&at_rest, 0, 1)


cdef void tracing_begin() noexcept nogil:
    """From here on, but for the times at which a thread of a target is awaited, nobody may fork: the child could not
    use what locks we have."""
    while sem_wait(&at_rest) != 0:
        pass


cdef void tracing_end() noexcept nogil:
    sem_post(&at_rest)


# ---- driving a tracee ----

cdef int await_stop(pid_t tid, int *stop, uint64_t limit_ms) noexcept nogil:
    """Wait for a stop: its signal, and its event above that. -ESRCH: it died, -EAGAIN: it does not stop.

    It may be amid a fault that only an engine can answer which is still to be started: that can be done meanwhile."""
    cdef int rc
    tracing_end()
    rc = _look_for_stop(tid, stop, limit_ms)
    tracing_begin()
    return rc


cdef int _look_for_stop(pid_t tid, int *stop, uint64_t limit_ms) noexcept nogil:
    """WNOWAIT leaves an exit status for the one it belongs to. Looking again and again instead of sleeping is cheap,
    as a tracee stops within microseconds, while being woken from another CPU takes a hundred."""
    cdef siginfo_t info
    cdef uint64_t start = now_ns(), waited
    cdef bint yielding = sysconf(_SC_NPROCESSORS_ONLN) > 1     # else it could not run while we look
    while True:
        info.si_pid = 0
        if waitid(P_PID, tid, &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL | __WNOTHREAD) < 0:
            return -ESRCH
        if info.si_pid != 0:
            if info.si_code != CLD_TRAPPED and info.si_code != CLD_STOPPED:
                return -ESRCH
            stop[0] = info.si_status
            return 0
        waited = now_ns() - start
        if waited > limit_ms * 1000000:
            return -EAGAIN
        if waited < 1000000 and yielding:
            sched_yield()
        else:
            sleep_us(100)


cdef void reap(pid_t tid) noexcept nogil:
    """One that is dead."""
    cdef siginfo_t info
    waitid(P_PID, tid, &info, WEXITED | __WALL | __WNOTHREAD)


cdef bint is_event_stop(int stop) noexcept nogil:
    """The stop of PTRACE_INTERRUPT, or of a group of stopped threads (SIGSTOP)."""
    return stop >> 8 == PTRACE_EVENT_STOP


cdef int resume(pid_t tid, int request, int *stop) noexcept nogil:
    """Let it run to the next stop that is not just a signal on its way, which it is given."""
    cdef long signal = 0
    cdef int rc
    while True:
        if ptrace(request, tid, NULL, <void *>signal) < 0:
            return -errno
        rc = await_stop(tid, stop, STEP_LIMIT_MS)
        if rc < 0 or stop[0] >> 8 != 0 or stop[0] == SYSCALL_STOP:
            return rc
        signal = stop[0]


cdef int to_syscall_stop(pid_t tid, int *stop) noexcept nogil:
    """As resume, past event stops: it may be stopped and continued by others while we work."""
    cdef int rc
    while True:
        rc = resume(tid, PTRACE_SYSCALL, stop)
        if rc < 0 or not is_event_stop(stop[0]):
            return rc


cdef int to_event_stop(pid_t tid) noexcept nogil:
    cdef int rc, stop = 0
    if ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0:
        return -errno
    while True:
        rc = resume(tid, PTRACE_CONT, &stop)
        if rc < 0 or is_event_stop(stop):
            return rc


cdef int enter_syscall(Tracee *tracee, long number, const uint64_t *arguments) noexcept nogil:
    """Up to the stop at the entry of a system call of ours. orig_rax = -1: there is none to restart."""
    cdef user_regs_struct registers = tracee.registers
    cdef int rc, stop
    registers.rip = tracee.instruction
    registers.rax = number
    registers.orig_rax = <unsigned long long>-1
    registers.rdi = arguments[0]
    registers.rsi = arguments[1]
    registers.rdx = arguments[2]
    registers.r10 = arguments[3]
    registers.r8 = arguments[4]
    registers.r9 = arguments[5]
    if ptrace(PTRACE_SETREGS, tracee.tid, NULL, &registers) < 0:
        return -errno
    rc = to_syscall_stop(tracee.tid, &stop)
    if rc < 0:
        return rc
    return 0 if stop == SYSCALL_STOP else -EIO


cdef int64_t syscall_result(Tracee *tracee) noexcept nogil:
    cdef user_regs_struct registers
    if ptrace(PTRACE_GETREGS, tracee.tid, NULL, &registers) < 0:
        return -errno
    return <int64_t>registers.rax


cdef int64_t remote_call(Tracee *tracee, long number, uint64_t a=0, uint64_t b=0, uint64_t c=0, uint64_t d=0,
                         uint64_t e=0, uint64_t f=0) noexcept nogil:
    """A system call made by the tracee: what it gave, -errno included."""
    cdef uint64_t[6] arguments
    cdef int rc, stop
    arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5] = a, b, c, d, e, f
    rc = enter_syscall(tracee, number, arguments)
    if rc == 0:
        rc = to_syscall_stop(tracee.tid, &stop)
    return syscall_result(tracee) if rc == 0 else rc


cdef int write_memory(pid_t tid, uint64_t address, const void *bytes, size_t length) noexcept nogil:
    """Whole words. Unlike process_vm_writev this may write to code, which so is never writable to others."""
    cdef size_t i
    cdef uint64_t word
    for i in range(0, length, 8):
        word = 0
        memcpy(&word, <const char *>bytes + i, 8 if length - i > 8 else length - i)
        if ptrace(PTRACE_POKETEXT, tid, <void *>(address + i), <void *>word) < 0:
            return -errno
    return 0


cdef int set_options(Tracee *tracee, uint64_t more) noexcept nogil:
    more |= PTRACE_O_TRACESYSGOOD | tracee.options
    if ptrace(PTRACE_SETOPTIONS, tracee.tid, NULL, <void *>more) == 0:
        return 0
    return -EACCES if tracee.options != 0 and errno != ESRCH else -errno
