# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes below one process: finding them and ending them."""

import os
import signal
from collections.abc import Container

from userswap import libc

HELPER_NAME = "userswap-helper"


class Process:
    __slots__ = ("name", "parent", "pid", "started", "state")

    def __init__(self, pid: int, name: str, state: str, parent: int, started: int) -> None:
        self.pid = pid
        self.name = name
        self.state = state
        self.parent = parent
        self.started = started  # ticks since the machine's start: no other one of this pid has the same


def look_at(pid: int) -> Process | None:
    """A process as /proc/PID/stat shows it; None once it is reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    # The name stands in parentheses and may hold any byte, parentheses too.
    before, _, after = text.rpartition(")")
    fields = after.split()
    return Process(pid, before.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))


def descendants(root: int, without: Container[int] = ()) -> list[Process]:
    """All processes below `root`, zombies included, but for those of `without` and what is below them."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        process = look_at(int(name)) if name.isdigit() else None
        if process is not None:
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [root]
    while parents:
        below = [one for one in children.get(parents.pop(), []) if one.pid not in without]
        found += below
        parents += [process.pid for process in below]
    return found


def programs(root: int, without: Container[int] = ()) -> list[Process]:
    """As descendants, but those alone that live and are no helpers."""
    return [one for one in descendants(root, without) if is_program(one)]


def is_program(process: Process) -> bool:
    """Whether it lives, and is no helper of ours."""
    return process.state not in "ZX" and process.name != HELPER_NAME


def is_below(pid: int, root: int) -> bool:
    """Whether a process is `root` or descends from it."""
    while pid > 1 and pid != root:
        process = look_at(pid)
        if process is None:
            return False
        pid = process.parent
    return pid == root


def kill_descendants() -> None:
    """End all processes below this one, which must be a subreaper with SIGCHLD blocked.

    A process of another user (a setuid program) cannot be killed: it has no swapped memory and is left.
    """
    foreign: set[int] = set()
    while True:
        left = 0
        for process in descendants(os.getpid()):
            if process.state == "Z" or process.pid in foreign:
                continue
            try:
                os.kill(process.pid, signal.SIGKILL)
                left += 1
            except ProcessLookupError:
                pass
            except PermissionError:
                foreign.add(process.pid)
        while reap() is not None:
            pass
        if not left:
            return
        signal.sigtimedwait({signal.SIGCHLD}, 0.01)


def reap(flags: int = 0) -> tuple[int, int] | None:
    """One child that changed, and its wait status; None if there is none now."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG | libc.WALL | flags)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None
