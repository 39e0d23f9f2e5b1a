# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread of another process, stopped by ptrace: reading about it, and making it do system calls.

All of a tracee's calls must come from the one thread that seized it. 0 or more, or -errno."""
from libc.stdint cimport int64_t, uint64_t
from posix.types cimport pid_t

from userswap.system cimport sys_schedule

cdef extern from "<sys/user.h>" nogil:
    ctypedef struct user_regs_struct "struct user_regs_struct":
        unsigned long long rip, rsp, rax, rdi, rsi, rdx, r10, r8, r9, orig_rax, cs, eflags

cdef enum:
    PAGE = 4096
    SYSCALL_STOP = 5 | 0x80             # SIGTRAP, marked by PTRACE_O_TRACESYSGOOD
    # A runnable thread stops within a scheduling delay. One that has not by then is in an uninterruptible
    # sleep, and another thread is the better choice.
    STOP_LIMIT_MS = 500
    # From then on a thread of the program runs with our registers: to give up would be to crash it. Only a
    # frozen or a starved one takes long.
    STEP_LIMIT_MS = 60000

cdef struct Tracee:
    pid_t tid
    uint64_t instruction                # of a `syscall`, anywhere in its memory
    user_regs_struct registers          # as they were when it stopped
    uint64_t mask                       # its blocked signals, likewise
    uint64_t options                    # of ptrace, beyond those that every tracee gets
    sys_schedule schedule               # what it was before it was hurried, if it was

cdef uint64_t now_ns() noexcept nogil
cdef void sleep_us(long us) noexcept nogil

# Of /proc. A number in the status of a thread, -1 if there is none (`name` begins with the newline); its
# state, "X" if it is gone; the start of any file, ended by a 0.
cdef int64_t status_field(pid_t target, pid_t tid, const char *name, int base) noexcept nogil
cdef char thread_state(pid_t target, pid_t tid) noexcept nogil
cdef ssize_t read_start(const char *path, char *buffer, size_t size) noexcept nogil

# Of its memory, which needs no stop. -ENOENT: no such instruction, as amid an exec.
cdef ssize_t read_memory(pid_t pid, uint64_t address, void *buffer, size_t length) noexcept nogil
cdef bint is_syscall(pid_t pid, uint64_t address) noexcept nogil
cdef int locate_syscall(pid_t pid, uint64_t *found) noexcept nogil

# Stops. -ESRCH: it died, -EAGAIN: it does not stop. One that died is to be reaped by us, before its parent can.
cdef int await_stop(pid_t tid, int *stop, uint64_t limit_ms) noexcept nogil
cdef void reap(pid_t tid) noexcept nogil
cdef bint is_event_stop(int stop) noexcept nogil
cdef int to_syscall_stop(pid_t tid, int *stop) noexcept nogil
cdef int to_event_stop(pid_t tid) noexcept nogil
cdef int set_options(Tracee *tracee, uint64_t more) noexcept nogil

# System calls of a stopped tracee.
cdef int enter_syscall(Tracee *tracee, long number, const uint64_t *arguments) noexcept nogil
cdef int64_t syscall_result(Tracee *tracee) noexcept nogil
cdef int64_t remote_call(Tracee *tracee, long number, uint64_t a=*, uint64_t b=*, uint64_t c=*, uint64_t d=*,
                         uint64_t e=*, uint64_t f=*) noexcept nogil
cdef int write_memory(pid_t tid, uint64_t address, const void *bytes, size_t length) noexcept nogil

# Around all that traces, but await_stop: tracing_begin waits while somebody forks, and the other way round.
cdef void tracing_begin() noexcept nogil
cdef void tracing_end() noexcept nogil
