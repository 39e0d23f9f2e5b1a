# SPDX-License-Identifier: GPL-2.0-or-later
"""The few calls of the C library that Python's own modules lack. Each raises OSError."""

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
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


def memory_file_system(fd: int) -> str | None:
    """The name of the file system of an open file if it lies in memory, else None."""
    buffer = (ctypes.c_ulong * 64)()  # struct statfs begins with its type and is far smaller
    _checked(_libc.fstatfs(fd, ctypes.byref(buffer)))
    return _MEMORY_FILE_SYSTEMS.get(buffer[0])
