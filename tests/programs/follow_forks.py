# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command and trace it with all its children, as `strace -f` does, without looking at anything."""

import ctypes
import os
import signal
import sys

PTRACE_CONT, PTRACE_SEIZE = 7, 0x4206
FOLLOW = 1 << 1 | 1 << 2 | 1 << 3  # fork, vfork, clone
EVENT_STOP = 128
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def ptrace(request: int, pid: int, data: int) -> None:
    libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, ctypes.c_void_p(data))


def main() -> int:
    read_end, write_end = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os.execvp(sys.argv[1], sys.argv[1:])
    ptrace(PTRACE_SEIZE, first, FOLLOW)
    os.close(write_end)
    while True:
        pid, status = os.waitpid(-1, WALL)
        if os.WIFSTOPPED(status):
            number = os.WSTOPSIG(status)
            ptrace(PTRACE_CONT, pid, 0 if status >> 16 or number == signal.SIGTRAP else number)
        elif pid == first:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
