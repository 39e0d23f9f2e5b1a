# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's way into another process: making the resident helper, asking it, ending it.

One thread of the target is stopped for as long as one `clone` takes. All that follows happens in the clone,
a process of its own that shares the target's memory, and that is set up by system calls which we make it do
(`remote_call`) while it has not yet run an instruction of its own.

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
    EACCES, EAGAIN, EBUSY, EINTR, EINVAL, EIO, ENOENT, ENOEXEC, ENOMEM, EPERM, ESRCH, ETIMEDOUT, errno,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fopen, getline, snprintf, sscanf
from libc.stdlib cimport free, strtol, strtoull
from libc.string cimport memcpy, memset, strchr, strrchr, strstr
from posix.types cimport pid_t

cdef extern from *:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stddef.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/ptrace.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <sys/user.h>
    #include <sys/wait.h>
    #include <asm/ptrace-abi.h>
    #include <dirent.h>
    #include <fcntl.h>
    #include <linux/close_range.h>
    #include <linux/futex.h>
    #include <sys/prctl.h>
    #include <time.h>
    #include <unistd.h>
    #include "uapi.h"
    """
    const int SYS_clone, SYS_chdir, SYS_close, SYS_close_range, SYS_dup3, SYS_ftruncate, SYS_futex, SYS_ioctl
    const int SYS_madvise, SYS_memfd_create, SYS_mmap, SYS_mprotect, SYS_munlock, SYS_munmap, SYS_pidfd_getfd
    const int SYS_pidfd_open
    const int SYS_pidfd_send_signal, SYS_prctl, SYS_recvmsg, SYS_setsid, SYS_socketpair, SYS_userfaultfd
    const int SYS_accept, SYS_accept4, SYS_connect, SYS_epoll_wait, SYS_epoll_pwait, SYS_io_getevents
    const int SYS_io_pgetevents, SYS_io_uring_enter, SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmmsg
    const int SYS_rt_sigtimedwait, SYS_semop, SYS_semtimedop, SYS_sendmsg, SYS_sendto, SYS_write, SYS_writev
    long syscall(long number, ...) nogil

    const int PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_SETOPTIONS, PTRACE_GETREGS, PTRACE_SETREGS
    const int PTRACE_GETSIGMASK, PTRACE_SETSIGMASK, PTRACE_GETEVENTMSG, PTRACE_SYSCALL, PTRACE_CONT
    const int PTRACE_DETACH, PTRACE_POKETEXT, PTRACE_EVENT_CLONE, PTRACE_EVENT_STOP
    const int PTRACE_O_TRACECLONE, PTRACE_O_TRACESYSGOOD, PTRACE_O_EXITKILL
    long ptrace(int request, ...) nogil
    ctypedef struct user_regs_struct "struct user_regs_struct":
        unsigned long long rip, rsp, rax, rdi, rsi, rdx, r10, r8, r9, orig_rax, cs, eflags

    const int P_PID, WEXITED, WSTOPPED, WNOHANG, WNOWAIT, __WALL, __WNOTHREAD, CLD_TRAPPED, CLD_STOPPED
    ctypedef struct siginfo_t:
        int si_pid, si_code, si_status
    int waitid(int kind, int which, siginfo_t *info, int options) nogil

    const int SIGKILL, SIGTRAP, SIG_SETMASK
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *mask) nogil
    int kill(pid_t pid, int signal) nogil
    pid_t getpid() nogil
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes, void *(*run)(void *) noexcept nogil, void *) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int pthread_sigmask(int how, const sigset_t *mask, sigset_t *old) nogil

    const int CLOCK_MONOTONIC
    ctypedef struct timespec "struct timespec":
        long tv_sec, tv_nsec
    int clock_gettime(int clock, timespec *now) nogil
    int nanosleep(const timespec *duration, timespec *left) nogil

    ctypedef struct cpu_set_t:
        pass
    void CPU_ZERO(cpu_set_t *) nogil
    void CPU_SET(int cpu, cpu_set_t *) nogil
    int sched_getcpu() nogil
    int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *) nogil
    int sched_yield() nogil

    const int PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_FIXED
    const int MAP_NORESERVE, MADV_DONTFORK, MADV_NOHUGEPAGE, CLONE_VM, CLONE_FILES, CLOSE_RANGE_UNSHARE
    const int PR_SET_NAME, FUTEX_WAIT, FUTEX_WAKE, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, MFD_CLOEXEC
    void *mmap(void *start, size_t length, int protection, int flags, int fd, long offset) nogil
    int munmap(void *start, size_t length) nogil
    void *MAP_FAILED
    int open(const char *path, int flags) nogil
    int close(int fd) nogil
    ssize_t fd_read "read"(int fd, void *buffer, size_t length) nogil
    int ioctl(int fd, unsigned long request, ...) nogil

    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ssize_t process_vm_readv(pid_t pid, const iovec *local, unsigned long, const iovec *remote, unsigned long,
                             unsigned long flags) nogil

    const short POLLIN
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events, revents
    int poll(pollfd *fds, unsigned long count, int milliseconds) nogil

    ctypedef struct DIR:
        pass
    ctypedef struct dirent "struct dirent":
        char d_name[256]
    DIR *opendir(const char *path) nogil
    dirent *readdir(DIR *directory) nogil
    int closedir(DIR *directory) nogil

    const int AF_UNIX, SOCK_DGRAM, SOCK_CLOEXEC, SOL_SOCKET, SCM_RIGHTS, MSG_CMSG_CLOEXEC
    ctypedef struct msghdr "struct msghdr":
        void *msg_name
        unsigned msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ctypedef struct cmsghdr "struct cmsghdr":
        size_t cmsg_len
        int cmsg_level, cmsg_type
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil

    const unsigned long UFFDIO_API, UFFDIO_REGISTER, USERFAULTFD_IOC_NEW
    const uint64_t UFFD_API, UFFDIO_REGISTER_MODE_MISSING
    ctypedef struct uffdio_api "struct uffdio_api":
        uint64_t api, features, ioctls
    ctypedef struct uffdio_range "struct uffdio_range":
        uint64_t start, len
    ctypedef struct uffdio_register "struct uffdio_register":
        uffdio_range range
        uint64_t mode, ioctls

    void *memmem(const void *, size_t, const void *, size_t) nogil
    uint32_t atomic_load "__atomic_load_n"(uint32_t *word, int order) nogil
    void atomic_store "__atomic_store_n"(uint32_t *word, uint32_t value, int order) nogil
    const int __ATOMIC_ACQUIRE, __ATOMIC_RELEASE

cdef extern from "helper.h" nogil:
    const void *userswap_helper_code()
    uint64_t userswap_helper_code_length()
    uint64_t userswap_helper_entry()

cdef enum:
    PAGE = 4096
    HUGE_PAGE = 2 << 20
    USER64_CS = 0x33
    SYSCALL_STOP = 5 | 0x80             # SIGTRAP, marked by PTRACE_O_TRACESYSGOOD
    ERESTARTNOINTR = 513                # the kernel's own: seen by tracers only
    ALL_SIGNALS_SIZE = 8
    CANDIDATES = 16
    O_SUSPEND_SECCOMP = 1 << 21         # PTRACE_O_SUSPEND_SECCOMP, for CAP_SYS_ADMIN
    SYSCALL_USER_DISPATCH_GET = 0x4210  # PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4
    # A runnable thread stops within a scheduling delay. One that has not by then is in an uninterruptible
    # sleep, and another thread is the better choice.
    STOP_LIMIT_MS = 500
    # From then on a thread of the program runs with our registers: to give up would be to crash it. Only a
    # frozen or a starved one takes long.
    STEP_LIMIT_MS = 60000
    ATTEMPTS = 20
    ANSWER_SLICE_MS = 100
    ANSWER_LIMIT_MS = 30000

cdef struct Tracee:
    pid_t tid
    uint64_t instruction                # of a `syscall`, anywhere in its memory
    user_regs_struct registers          # as they were when it stopped
    uint64_t mask                       # likewise
    uint64_t options                    # of ptrace, beyond those that every tracee gets

cdef struct Candidate:
    pid_t tid
    int cost

cdef struct Region:
    uint64_t start, length, code, stack, mailbox, staging, staging_length

cdef struct Job:
    Helper helper
    uint64_t features
    uint64_t staging_length
    int error


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
    return <int64_t>strtoull(strchr(found, b":"[0]) + 1, NULL, base)


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
        if sscanf(line, b"%lx-%lx %7s", &start, &end, mode) == 3 and mode[2] == b"x"[0]:
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


cdef char thread_state(pid_t target, pid_t tid) noexcept nogil:
    cdef char path[64]
    cdef char text[512]
    cdef char *name_end
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/stat", target, tid)
    if read_start(path, text, sizeof(text)) < 0:
        return b"X"[0]
    name_end = strrchr(text, b")"[0])
    return name_end[2] if name_end != NULL else b"X"[0]


cdef int thread_cost(pid_t target, pid_t tid) noexcept nogil:
    """How little we would like to stop this thread; -1: it can not be."""
    cdef char state = thread_state(target, tid)
    cdef char path[64]
    cdef char text[256]
    if state == b"Z"[0] or state == b"X"[0]:
        return -1
    if state == b"D"[0]:
        return 3
    snprintf(path, sizeof(path), b"/proc/%d/task/%d/syscall", target, tid)
    if read_start(path, text, sizeof(text)) <= 0 or text[0] == b"r"[0]:
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
    cdef char path[64]
    cdef DIR *directory
    cdef dirent *entry
    cdef int count = 0, cost
    snprintf(path, sizeof(path), b"/proc/%d/task", target)
    directory = opendir(path)
    if directory == NULL:
        return -ESRCH
    while count < 2 or best[1].cost > 0:
        entry = readdir(directory)
        if entry == NULL:
            break
        if entry.d_name[0] == b"."[0]:
            continue
        cost = thread_cost(target, <pid_t>strtol(entry.d_name, NULL, 10))
        if cost >= 0:
            offer(best, &count, <pid_t>strtol(entry.d_name, NULL, 10), cost)
    closedir(directory)
    return count if count > 0 else -ESRCH


# ---- driving a tracee ----

cdef int await_stop(pid_t tid, int *stop, uint64_t limit_ms) noexcept nogil:
    """Wait for a stop: its signal, and its event above that. -ESRCH: it died, -EAGAIN: it does not stop.

    WNOWAIT leaves an exit status for the one it belongs to. Looking again and again instead of sleeping is
    cheap, as a tracee stops within microseconds, while being woken from another CPU takes a hundred."""
    cdef siginfo_t info
    cdef uint64_t start = now_ns(), waited
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
        if waited < 1000000:
            sched_yield()
        else:
            sleep_us(100)


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


# ---- the victim: one thread of the target, stopped for one clone ----

cdef int seize(pid_t target, pid_t tid) noexcept nogil:
    if ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0:
        return 0
    if errno == EPERM and thread_state(target, tid) == b"Z"[0]:
        return -ESRCH
    if errno == EPERM and status_field(target, tid, b"\nTracerPid:", 10) > 0:
        return -EBUSY
    return -errno


cdef bint dispatches_syscalls(pid_t tid) noexcept nogil:
    """Whether its system calls are handed to the program itself (Wine): a strange one would kill it."""
    cdef uint64_t config[4]
    memset(config, 0, sizeof(config))
    return ptrace(<int>SYSCALL_USER_DISPATCH_GET, tid, <void *>sizeof(config), config) == 0 and config[0] != 0


cdef uint64_t seccomp_option(pid_t target, pid_t tid) noexcept nogil:
    """A program that sandboxed itself may be killed for a clone of ours. Where it only has the filters that
    we live under too (a container's) that is not to be feared."""
    cdef pid_t self = getpid()
    cdef int64_t filters = status_field(target, tid, b"\nSeccomp_filters:", 10)
    cdef bint strict = status_field(target, tid, b"\nSeccomp:", 10) == 1
    return O_SUSPEND_SECCOMP if strict or filters > status_field(self, self, b"\nSeccomp_filters:", 10) else 0


cdef int set_options(Tracee *tracee, uint64_t more) noexcept nogil:
    more |= PTRACE_O_TRACESYSGOOD | tracee.options
    if ptrace(PTRACE_SETOPTIONS, tracee.tid, NULL, <void *>more) == 0:
        return 0
    return -EACCES if tracee.options != 0 and errno != ESRCH else -errno


cdef int prepare_victim(Tracee *victim) noexcept nogil:
    """Keep what has to be put back, and block all signals: a pending one would make clone give up."""
    cdef uint64_t all_signals = ~<uint64_t>0
    if ptrace(PTRACE_GETREGS, victim.tid, NULL, &victim.registers) < 0:
        return -errno
    if victim.registers.cs != USER64_CS:
        return -ENOEXEC
    if not is_syscall(victim.tid, victim.instruction):
        return -ERESTARTNOINTR      # it was looked up before an exec
    if dispatches_syscalls(victim.tid):
        return -EACCES
    if ptrace(PTRACE_GETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &victim.mask) < 0:
        return -errno
    if ptrace(PTRACE_SETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &all_signals) < 0:
        return -errno
    # Only now: from the first option on, whatever the thread clones would be stopped for us too.
    return set_options(victim, PTRACE_O_TRACECLONE)


cdef int clone_victim(Tracee *victim, pid_t *child) noexcept nogil:
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


cdef bint has_deliverable_signal(pid_t target, Tracee *victim) noexcept nogil:
    cdef int64_t own = status_field(target, victim.tid, b"\nSigPnd:", 16)
    cdef int64_t shared = status_field(target, victim.tid, b"\nShdPnd:", 16)
    return ((<uint64_t>own | <uint64_t>shared) & ~victim.mask) != 0


cdef void reissue_if_leaked(pid_t target, Tracee *victim) noexcept nogil:
    """A call that our stop ended with EINTR is issued again, unless a signal is the true cause."""
    cdef user_regs_struct *registers = &victim.registers
    if <int64_t>registers.rax != -EINTR or not leaks_eintr(<int64_t>registers.orig_rax):
        return
    if not is_syscall(victim.tid, registers.rip - 2) or has_deliverable_signal(target, victim):
        return
    registers.rip -= 2
    registers.rax = registers.orig_rax
    registers.orig_rax = <unsigned long long>-1


cdef int release_victim(pid_t target, Tracee *victim) noexcept nogil:
    reissue_if_leaked(target, victim)
    if ptrace(PTRACE_SETREGS, victim.tid, NULL, &victim.registers) < 0:
        return -errno
    if ptrace(PTRACE_SETSIGMASK, victim.tid, <void *>ALL_SIGNALS_SIZE, &victim.mask) < 0:
        return -errno
    return 0 if ptrace(PTRACE_DETACH, victim.tid, NULL, NULL) == 0 else -errno


cdef int stop_victim(pid_t target, Tracee *victim) noexcept nogil:
    """Seized and at an event stop; or let go again where that can be done."""
    cdef int stop = 0, rc = seize(target, victim.tid)
    if rc < 0:
        return rc
    if ptrace(PTRACE_INTERRUPT, victim.tid, NULL, NULL) < 0:
        return -errno
    rc = await_stop(victim.tid, &stop, STOP_LIMIT_MS)
    while rc == 0 and not is_event_stop(stop):
        # A signal came first: it goes on its way.
        if ptrace(PTRACE_CONT, victim.tid, NULL, <void *><long>(stop & 0x7f if stop >> 8 == 0 else 0)) < 0:
            return -errno
        rc = await_stop(victim.tid, &stop, STOP_LIMIT_MS)
    if rc < 0:
        return rc
    rc = prepare_victim(victim)
    if rc < 0:
        ptrace(PTRACE_DETACH, victim.tid, NULL, NULL)
    return rc


cdef int clone_in(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    cdef uint64_t start = now_ns()
    cdef int left, rc = stop_victim(job.helper.target, victim)
    if rc < 0:
        return rc
    rc = clone_victim(victim, child)
    left = to_event_stop(victim.tid)
    if left == 0:
        left = release_victim(job.helper.target, victim)
    job.helper.stopped_ns = now_ns() - start
    return rc if rc < 0 else left


cdef int clone_in_any(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
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
        rc = clone_in(job, victim, child)
        if child[0] != 0 or (rc != -EAGAIN and rc != -ESRCH and rc != -ENOEXEC):
            return rc
    return -ENOENT if rc == -ESRCH else rc


cdef int try_to_clone(Job *job, Tracee *victim, pid_t *child) noexcept nogil:
    """Again where the program changed under our hands: a stop signal had just come, which the thread has to
    be let have; it ran another program; or the threads that we knew of are gone."""
    cdef int _, rc = -EAGAIN
    for _ in range(ATTEMPTS):
        rc = clone_in_any(job, victim, child)
        if rc != -ERESTARTNOINTR and rc != -ENOENT:
            return rc
        sleep_us(200)
    return -EAGAIN


# ---- the child: made into the helper by system calls that it is made to do ----

cdef int first_stop(Tracee *child) noexcept nogil:
    """EXITKILL: should the engine die while the child is unfinished, it is gone too."""
    cdef int stop, rc = await_stop(child.tid, &stop, STEP_LIMIT_MS)
    if rc < 0:
        return rc
    rc = set_options(child, PTRACE_O_EXITKILL)
    if rc < 0:
        return rc
    return 0 if ptrace(PTRACE_GETREGS, child.tid, NULL, &child.registers) == 0 else -errno


cdef int64_t map_part(Tracee *child, uint64_t start, uint64_t length, int protection, int flags,
                      int fd) noexcept nogil:
    return remote_call(child, SYS_mmap, start, length, protection, flags, <uint64_t><int64_t>fd, 0)


cdef int reserve_region(Tracee *child, uint64_t staging_length, Region *region) noexcept nogil:
    """One mapping that nobody can use, with our parts inside: code, stack, mailbox, staging. What remains at
    its ends keeps the kernel from merging our parts with the program's. Staging is aligned for huge pages.

    The program may have asked that all its memory be locked (mlockall). Unlocked while it can not be used,
    the area is never populated; and MOVE takes no page from unlocked to locked memory."""
    cdef uint64_t head = 3 * PAGE + USERSWAP_MAILBOX_SIZE
    cdef uint64_t alignment = HUGE_PAGE if staging_length >= HUGE_PAGE else PAGE
    cdef int64_t start
    region.length = head + staging_length + PAGE + alignment - PAGE
    region.staging_length = staging_length
    start = map_part(child, 0, region.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)
    if start < 0 and start > -PAGE:
        return <int>start
    region.start = <uint64_t>start
    region.staging = (region.start + head + alignment - 1) // alignment * alignment
    region.mailbox = region.staging - USERSWAP_MAILBOX_SIZE
    region.stack = region.mailbox - PAGE
    region.code = region.stack - PAGE
    return <int>remote_call(child, SYS_munlock, region.start, region.length)


cdef int fill_region(Tracee *child, Region *region) noexcept nogil:
    """All but the mailbox. The code is mapped anew, as a right to execute can often not be added."""
    cdef int usable = PROT_READ | PROT_WRITE
    cdef int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    if map_part(child, region.code, PAGE, PROT_READ | PROT_EXEC, fixed, -1) < 0:
        return -EACCES      # a rule against new code, as SELinux has
    if remote_call(child, SYS_mprotect, region.stack, PAGE, usable) < 0:
        return -ENOMEM
    if remote_call(child, SYS_mprotect, region.staging, region.staging_length, usable) < 0:
        return -ENOMEM
    remote_call(child, SYS_madvise, region.staging, region.staging_length, MADV_NOHUGEPAGE)
    return write_memory(child.tid, region.code, userswap_helper_code(), userswap_helper_code_length())


cdef int shield_region(Tracee *child, Region *region) noexcept nogil:
    """Not for the program's children; and not locked, the parts that were mapped since included."""
    cdef int rc = <int>remote_call(child, SYS_madvise, region.start, region.length, MADV_DONTFORK)
    return rc if rc < 0 else <int>remote_call(child, SYS_munlock, region.start, region.length)


cdef int cut_loose(Tracee *child) noexcept nogil:
    """Out of the program's session, and away from its files."""
    remote_call(child, SYS_setsid)
    return <int>remote_call(child, SYS_close_range, 0, <uint32_t>-1, CLOSE_RANGE_UNSHARE)


cdef int place_fd(Tracee *child, int fd, int number) noexcept nogil:
    cdef int rc
    if fd < 0 or fd == number:
        return fd
    rc = <int>remote_call(child, SYS_dup3, fd, number, O_CLOEXEC)
    remote_call(child, SYS_close, fd)
    return rc


cdef int name_child(Tracee *child, uint64_t scratch) noexcept nogil:
    """And out of the program's directory, which somebody may want to unmount. `scratch` keeps the name."""
    cdef char name[16]
    memset(name, 0, sizeof(name))
    name[0] = b"/"[0]
    cdef int rc = write_memory(child.tid, scratch, name, sizeof(name))
    if rc == 0:
        remote_call(child, SYS_chdir, scratch)
        memcpy(name, b"userswap-helper", 15)
        rc = write_memory(child.tid, scratch, name, sizeof(name))
    if rc == 0:
        rc = <int>remote_call(child, SYS_prctl, PR_SET_NAME, scratch)
    return rc


cdef int make_mailbox(Tracee *child, Region *region, int pidfd, userswap_mailbox **mailbox) noexcept nogil:
    """A memory file at its fixed number, mapped on both sides. The scratch page holds its name."""
    cdef int fd = <int>remote_call(child, SYS_memfd_create, region.stack, MFD_CLOEXEC)
    cdef int rc
    fd = place_fd(child, fd, USERSWAP_HELPER_MAILBOX)
    if fd < 0:
        return fd
    rc = <int>remote_call(child, SYS_ftruncate, fd, USERSWAP_MAILBOX_SIZE)
    if rc < 0:
        return rc
    if map_part(child, region.mailbox, USERSWAP_MAILBOX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                fd) < 0:
        return -ENOMEM
    fd = <int>take_fd(pidfd, fd)
    if fd < 0:
        return fd
    cdef void *mapped = mmap(NULL, USERSWAP_MAILBOX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    close(fd)
    if mapped == MAP_FAILED:
        return -ENOMEM
    mailbox[0] = <userswap_mailbox *>mapped
    return 0


cdef int take_fd(int pidfd, int number) noexcept nogil:
    cdef int fd = <int>syscall(SYS_pidfd_getfd, pidfd, number, 0)
    return fd if fd >= 0 else -errno


# ---- the userfaultfd ----

cdef struct Rights:     # a message that carries one fd; the kernel's layout
    msghdr message
    iovec vector
    cmsghdr header
    int fd
    int padding
    uint64_t byte


cdef void write_rights(Rights *rights, uint64_t base, int fd) noexcept nogil:
    """As it is to lie at address `base` of whoever passes it to the kernel."""
    memset(rights, 0, sizeof(Rights))
    rights.message.msg_iov = <iovec *>(base + (<char *>&rights.vector - <char *>rights))
    rights.message.msg_iovlen = 1
    rights.message.msg_control = <void *>(base + (<char *>&rights.header - <char *>rights))
    rights.message.msg_controllen = sizeof(cmsghdr) + 2 * sizeof(int)
    rights.vector.iov_base = <void *>(base + (<char *>&rights.byte - <char *>rights))
    rights.vector.iov_len = 1
    rights.header.cmsg_len = sizeof(cmsghdr) + sizeof(int)
    rights.header.cmsg_level = SOL_SOCKET
    rights.header.cmsg_type = SCM_RIGHTS
    rights.fd = fd


cdef int post_rights(int socket, int fd) noexcept nogil:
    cdef Rights rights
    write_rights(&rights, <uint64_t>&rights, fd)
    return 0 if sendmsg(socket, &rights.message, 0) == 1 else -errno


cdef int receive_rights(Tracee *child, int socket, uint64_t scratch) noexcept nogil:
    """The number that the fd has in the child."""
    cdef Rights rights
    cdef int rc
    write_rights(&rights, scratch, -1)
    rc = write_memory(child.tid, scratch, &rights, sizeof(rights))
    if rc == 0:
        rc = <int>remote_call(child, SYS_recvmsg, socket, scratch, MSG_CMSG_CLOEXEC)
    if rc < 0:
        return rc
    if read_memory(child.tid, scratch, &rights, sizeof(rights)) != sizeof(rights):
        return -EIO
    return rights.fd if rights.fd >= 0 else -EIO


cdef int send_fd(Tracee *child, int pidfd, int fd, uint64_t scratch) noexcept nogil:
    """Give the child an fd of ours, through a pair of sockets that it makes and we take one of."""
    cdef int pair[2]
    cdef int socket, rc
    rc = <int>remote_call(child, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, scratch)
    if rc < 0:
        return rc
    if read_memory(child.tid, scratch, pair, sizeof(pair)) != sizeof(pair):
        return -EIO
    socket = take_fd(pidfd, pair[0])
    rc = socket
    if socket >= 0:
        rc = post_rights(socket, fd)
        close(socket)
    if rc == 0:
        rc = receive_rights(child, pair[1], scratch)
    remote_call(child, SYS_close, pair[0])
    remote_call(child, SYS_close, pair[1])
    return rc


cdef int uffd_by_device(Tracee *child, int pidfd, uint64_t scratch) noexcept nogil:
    """Our right to the device counts, and our view of /dev, not the target's; the ioctl must be the child's,
    as it binds the new fd to the memory of its caller."""
    cdef int fd, ours = open(b"/dev/userfaultfd", O_RDWR | O_CLOEXEC)
    cdef int device
    if ours < 0:
        return -EPERM
    device = send_fd(child, pidfd, ours, scratch)
    close(ours)
    if device < 0:
        return device
    fd = <int>remote_call(child, SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
    remote_call(child, SYS_close, device)
    return fd


cdef int open_uffd(Tracee *child, int pidfd, uint64_t scratch) noexcept nogil:
    """In full mode only: with user mode only, system calls on evicted memory would give EFAULT."""
    cdef int fd = <int>remote_call(child, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        fd = uffd_by_device(child, pidfd, scratch)
    fd = place_fd(child, fd, USERSWAP_HELPER_UFFD)
    return take_fd(pidfd, fd) if fd >= 0 else fd


cdef int set_up_uffd(int uffd, uint64_t features, Region *region) noexcept nogil:
    cdef uffdio_api api
    cdef uffdio_register area
    api.api = UFFD_API
    api.features = features
    if ioctl(uffd, UFFDIO_API, &api) < 0:
        return -errno
    area.range.start = region.staging
    area.range.len = region.staging_length
    area.mode = UFFDIO_REGISTER_MODE_MISSING
    return 0 if ioctl(uffd, UFFDIO_REGISTER, &area) == 0 else -errno


# ---- all of it ----

cdef void describe(Helper *helper, Region *region) noexcept nogil:
    cdef userswap_mailbox *mailbox = helper.mailbox
    helper.own_start[0] = region.start
    helper.own_end[0] = region.start + region.length
    helper.staging = region.staging
    helper.staging_length = region.staging_length
    mailbox.region = region.start
    mailbox.region_length = region.length
    mailbox.staging = region.staging
    mailbox.staging_length = region.staging_length
    mailbox.uffd = USERSWAP_HELPER_UFFD
    mailbox.magic = USERSWAP_MAILBOX_MAGIC


cdef int set_off(Tracee *child, Region *region) noexcept nogil:
    """Into the helper's code. The direction flag is as C expects it, the stack as after a call."""
    cdef user_regs_struct registers = child.registers
    registers.rip = region.code + userswap_helper_entry()
    registers.rsp = region.mailbox - 8
    registers.rdi = region.mailbox
    registers.orig_rax = <unsigned long long>-1
    registers.eflags &= ~<unsigned long long>0x400
    if ptrace(PTRACE_SETREGS, child.tid, NULL, &registers) < 0:
        return -errno
    return 0 if ptrace(PTRACE_DETACH, child.tid, NULL, NULL) == 0 else -errno


cdef int furnish(Job *job, Tracee *child, Region *region) noexcept nogil:
    cdef Helper *helper = &job.helper
    cdef int rc = cut_loose(child)
    if rc == 0:
        rc = fill_region(child, region)
    if rc == 0:
        rc = name_child(child, region.stack)
    if rc == 0:
        rc = make_mailbox(child, region, helper.pidfd, &helper.mailbox)
    if rc == 0:
        rc = shield_region(child, region)
    if rc == 0:
        helper.uffd = open_uffd(child, helper.pidfd, region.stack)
        rc = helper.uffd if helper.uffd < 0 else 0
    if rc == 0:
        rc = set_up_uffd(helper.uffd, job.features, region)
    if rc == 0:
        describe(helper, region)
        rc = set_off(child, region)
    if rc == 0:
        rc = try_out(helper)
    return rc


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


cdef int make_helper(Job *job, Tracee *child) noexcept nogil:
    """Out of the new clone; on failure its memory is given back and it is dead."""
    cdef Region region
    cdef int rc
    memset(&region, 0, sizeof(region))
    job.helper.pid = child.tid
    rc = first_stop(child)
    if rc == 0:
        job.helper.pidfd = <int>syscall(SYS_pidfd_open, child.tid, 0)
        rc = reserve_region(child, job.staging_length, &region) if job.helper.pidfd >= 0 else -errno
    if rc == 0:
        rc = furnish(job, child, &region)
    if rc < 0 and region.start != 0:    # of no effect if it has run already
        remote_call(child, SYS_munmap, region.start, region.length)
    return rc


cdef int inject(Job *job) noexcept nogil:
    cdef Tracee victim, child
    memset(&child, 0, sizeof(child))
    cdef int rc = try_to_clone(job, &victim, &child.tid)
    if child.tid == 0:
        return rc
    # Even if something went wrong with the thread since, the clone is there and has to be dealt with.
    child.instruction = victim.instruction
    child.options = victim.options
    return make_helper(job, &child)


cdef void *tracer(void *argument) noexcept nogil:
    cdef Job *job = <Job *>argument
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
    return 0 if state != b"X"[0] else -ESRCH


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


cdef int helper_inject(pid_t target, uint64_t uffd_features, uint64_t staging_length,
                       Helper *out) noexcept nogil:
    cdef Job job
    cdef int rc
    if staging_length == 0 or staging_length % PAGE != 0:
        return -EINVAL
    memset(&job, 0, sizeof(job))
    job.features = uffd_features
    job.staging_length = staging_length
    job.helper.target = target
    job.helper.pidfd = job.helper.uffd = job.helper.target_pidfd = job.helper.cpu = -1
    rc = check_target(&job)
    if rc == 0:
        rc = run_tracer(&job)
    if rc == 0:
        out[0] = job.helper
        return 0
    if job.helper.uffd >= 0:
        close(job.helper.uffd)
    let_go(&job.helper)
    return rc


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


cdef void end_process(Helper *helper) noexcept nogil:
    """Through the pidfd, where there is one yet, so that a number used anew is never meant."""
    cdef pollfd one
    if helper.pidfd < 0:
        if helper.pid > 0:
            kill(helper.pid, SIGKILL)
        return
    syscall(SYS_pidfd_send_signal, helper.pidfd, SIGKILL, NULL, 0)
    one.fd = helper.pidfd
    one.events = POLLIN
    poll(&one, 1, 5000)


cdef void close_if_open(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


cdef void let_go(Helper *helper) noexcept nogil:
    if helper.mailbox != NULL:
        munmap(helper.mailbox, USERSWAP_MAILBOX_SIZE)
    helper.mailbox = NULL
    close_if_open(&helper.pidfd)
    close_if_open(&helper.target_pidfd)


cdef void helper_end(Helper *helper) noexcept nogil:
    end_process(helper)
    helper.pid = 0
    let_go(helper)
