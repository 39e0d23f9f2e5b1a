# SPDX-License-Identifier: GPL-2.0-or-later
"""What the front process leaves behind when the program has ended and some of its children live on.

The shell waits for the front process, so that has to go; but should the engine die later, somebody must still
hold the userfaultfds and end the tree. The guard is a fork of the front process, but no ancestor of the tree,
so it remembers the processes by pidfd: all of them at first, and new ones whenever the engine
has entered one. What was never entered has no swapped memory, and may live.
"""

import os
import select
import signal
from collections.abc import Iterable

from userswap import launch, libc, tree
from userswap.channel import Channel


def leave_guard(engine_pid: int, channel: Channel, held: dict[str, int]) -> None:
    """Fork the guard. Returns in the caller alone."""
    if os.fork() == 0:
        try:
            Guard(engine_pid, channel, held).serve()
        finally:
            os._exit(0)


class Guard:
    def __init__(self, engine_pid: int, channel: Channel, held: dict[str, int]) -> None:
        os.setsid()
        libc.set_name("userswap-guard")
        for number in launch.FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        let_go_of_everything()
        self._engine_pid = engine_pid
        self._channel = channel
        self._held = held
        self._known: dict[int, int] = {}  # pid -> pidfd

    def serve(self) -> None:
        """Until the engine says that the tree is over, or dies."""
        self._remember(tree.descendants(self._engine_pid))
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        while True:
            poller.poll()
            message = self._channel.receive()
            if message is None:
                continue
            words, fds = message
            if not words:
                self._end_tree()
                log("the engine died: the program was stopped, since its swapped memory is gone")
                return
            if words[0] == "over":
                return
            keep_or_release(self._held, words, fds)
            if words[0] == "hold":
                self._remember(tree.descendants(self._engine_pid))

    def _remember(self, processes: Iterable[tree.Process]) -> None:
        for pid, fd in list(self._known.items()):
            if _has_ended(fd):
                os.close(self._known.pop(pid))
        for process in processes:
            if process.pid not in self._known and process.state != "Z":
                try:
                    self._known[process.pid] = os.pidfd_open(process.pid)
                except ProcessLookupError:
                    continue

    def _end_tree(self) -> None:
        """SIGKILL for all that are known, and all below them, until none is left."""
        while True:
            for pid in list(self._known):
                self._remember(tree.descendants(pid))
            self._remember(())
            left = [fd for fd in self._known.values() if _kill(fd)]
            if not left:
                return
            select.select(left, [], [], 0.01)


def keep_or_release(held: dict[str, int], words: list[str], fds: list[int]) -> None:
    """Do what `hold KEY` and `release KEY` say; nothing for other messages."""
    if words[0] not in ("hold", "release"):
        return
    if words[1] in held:
        os.close(held.pop(words[1]))
    if words[0] == "hold":
        held[words[1]] = fds[0]


def let_go_of_everything() -> None:
    """Nobody may wait for us, or find a file system busy because of us."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    os.chdir("/")


def log(line: str) -> None:
    """To the system's log: there is no standard error any more."""
    import syslog

    syslog.openlog("userswap", syslog.LOG_PID)
    syslog.syslog(syslog.LOG_ERR, line)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _kill(pidfd: int) -> bool:
    """Whether the process may be waited for: another user's cannot be killed, and has no swapped memory."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
