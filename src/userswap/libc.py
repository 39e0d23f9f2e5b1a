# SPDX-License-Identifier: GPL-2.0-or-later
"""The few calls of the C library that Python's own modules lack. Each raises OSError."""

import ctypes
import os
import signal
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_FILES = 0x400
CLONE_CHILD_CLEARTID = 0x200000
CLONE_CHILD_SETTID = 0x1000000
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_GET_TID_ADDRESS = 40
SYS_CLONE = 56  # x86-64
SYS_USERFAULTFD = 323  # x86-64
PTRACE_SEIZE = 0x4206
WALL = 0x40000000  # __WALL: also children made by clone() without SIGCHLD, as the helpers are

# From linux/magic.h: file systems that live in memory.
_MEMORY_FILE_SYSTEMS = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x958458F6: "hugetlbfs"}
_SIGNALFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
SIGNALFD_RECORD_BYTES = 128


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children."""
    _checked(_libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0))


def die_with_parent() -> None:
    """The end of the thread that made this process is its end."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0))


def set_name(name: str) -> None:
    """What ps and top call this process: 15 bytes at most."""
    _checked(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0))


def fork_sharing_files() -> int:
    """As os.fork(), but both processes have one table of files.

    What either opens is open for both, and lives until both have ended. In the child no object may ever be
    freed that closes a file at its end which the parent uses, too. As os.fork() it is for a process of one
    thread (or whose others are known to hold no lock)."""
    # The C library notes the number of its thread: the kernel is to do so in the child, at the place that it
    # was told.
    noted = ctypes.c_void_p()
    flags = CLONE_FILES | signal.SIGCHLD
    if _libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(noted), 0, 0, 0) == 0 and noted.value:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None, use_errno=True).syscall(  # which keeps the interpreter's lock
        ctypes.c_long(SYS_CLONE), ctypes.c_ulong(flags), None, None, noted, None
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return _checked(pid)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def signalfd(signals: set[int]) -> int:
    """A nonblocking file descriptor from which blocked signals are read, SIGNALFD_RECORD_BYTES each."""
    mask = (ctypes.c_ulong * 16)()
    for number in signals:
        mask[0] |= 1 << (number - 1)
    return _checked(_libc.signalfd(-1, ctypes.byref(mask), _SIGNALFD_FLAGS))


def userfaultfd(flags: int) -> int:
    return _checked(_libc.syscall(ctypes.c_long(SYS_USERFAULTFD), ctypes.c_int(flags)))


def ptrace_seize(pid: int) -> None:
    _libc.ptrace.restype = ctypes.c_long
    _checked(_libc.ptrace(ctypes.c_long(PTRACE_SEIZE), ctypes.c_long(pid), None, None))


def ptrace_nobody() -> None:
    """Whether the call is allowed at all."""
    with suppress(ProcessLookupError):
        ptrace_seize(0)


def copy_process_memory() -> None:
    """To ourselves, by the calls that copy out of and into other processes: whether they are allowed."""
    word = ctypes.c_ulong()
    here = (ctypes.c_void_p * 2)(ctypes.addressof(word), ctypes.sizeof(word))  # struct iovec
    for call in (_libc.process_vm_readv, _libc.process_vm_writev):
        call.restype = ctypes.c_ssize_t
        one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
        _checked(call(ctypes.c_int(os.getpid()), ctypes.byref(here), one, ctypes.byref(here), one, none))


def memory_file_system(fd: int) -> str | None:
    """The name of the file system of an open file if it lies in memory, else None."""
    buffer = (ctypes.c_ulong * 64)()  # struct statfs begins with its type and is far smaller
    _checked(_libc.fstatfs(fd, ctypes.byref(buffer)))
    return _MEMORY_FILE_SYSTEMS.get(buffer[0])
