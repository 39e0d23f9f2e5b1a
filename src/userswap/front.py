# SPDX-License-Identifier: GPL-2.0-or-later
"""The front process: what the shell started, and takes for the program.

It has the program's process group, stops when the program stops, ends with the program's exit status and
hands on the signals sent to it alone. When the keeper, its only child, dies, it ends the whole tree.

Signals. Those of the terminal (SI_KERNEL) reach the whole process group, so the program has them
already. Those sent by kill(2) may have been sent to the group too; that cannot be told, so they are handed on
(and the program may get such a signal twice) unless a process of the tree itself sent them.
"""

import os
import select
import signal
import struct
from contextlib import suppress

from userswap import libc, tree
from userswap.channel import Channel
from userswap.errors import EXIT_OWN_ERROR
from userswap.launch import FORWARDED

_SI_KERNEL = 0x80
_OF_THE_TERMINAL = frozenset(
    {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP}
    | {signal.SIGCONT, signal.SIGWINCH}
)
_GRACE_MS = 100  # for the keeper to say that the program was continued, or stopped once more
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})


class Front:
    """Serves until the program has ended. All signals of FORWARDED and SIGCHLD are blocked."""

    def __init__(self, keeper_pid: int, channel: Channel) -> None:
        self._keeper_pid = keeper_pid
        self._channel = channel
        self._program_pid = 0
        self._program: int | None = None  # pidfd
        self._early: list[int] = []  # signals that came before the program was there
        self._exit: int | None = None
        self._stop_due = 0  # the signal by which the program stopped, while we have not
        self._stopped_by = 0  # the last one by which we did
        self._continue_due = False  # we got SIGCONT: perhaps the program did not
        self._signals = libc.signalfd(set(FORWARDED) | {signal.SIGCHLD})

    def serve(self) -> int:
        """Returns the exit status."""
        poller = select.poll()
        poller.register(self._signals, select.POLLIN)
        poller.register(self._channel, select.POLLIN)
        while self._exit is None:
            if not poller.poll(_GRACE_MS if self._continue_due else None) and self._continue_due:
                self._continue_program()
            # Signals first: what came before the program stopped or ended belongs before that.
            self._take_signals()
            self._take_messages()
            self._stop_if_due()
        return self._exit

    def _take_signals(self) -> None:
        while True:
            try:
                record = os.read(self._signals, libc.SIGNALFD_RECORD_BYTES)
            except BlockingIOError:
                return
            number, _, code, sender = struct.unpack_from("IiiI", record)
            if number != signal.SIGCHLD and self._is_for_program(number, code, sender):
                self._hand_on(number)

    def _is_for_program(self, number: int, code: int, sender: int) -> bool:
        if code == _SI_KERNEL:
            session_leader = os.getsid(0) == os.getpid()
            return number not in _OF_THE_TERMINAL or (number == signal.SIGHUP and session_leader)
        if sender == self._keeper_pid and number == signal.SIGCONT:
            # The program was continued. If it has stopped since, this came too late, and undid our own stop.
            self._stop_due = self._stopped_by
            return False
        if sender and tree.is_below(sender, self._keeper_pid):
            return False
        if number == signal.SIGCONT:
            self._continue_due = True
            return False
        return True

    def _hand_on(self, number: int) -> None:
        if self._program is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._program, number)

    def _take_messages(self) -> None:
        while self._exit is None:
            message = self._channel.receive()
            if message is None:
                return
            words, fds = message
            if not words:
                self._exit = self._keeper_died()
            elif words[0] == "program":
                self._program_pid, self._program = int(words[1]), fds[0]
                for number in self._early:
                    self._hand_on(number)
            elif words[0] == "stopped":
                self._stop_due = int(words[1])
                self._continue_due = False
            elif words[0] == "continued":
                self._stop_due = 0
                self._continue_due = False
            elif words[0] == "exit":
                self._exit = int(words[1])
                if words[2] == "over":  # nothing of the run is left behind us
                    os.waitpid(self._keeper_pid, 0)

    def _stop_if_due(self) -> None:
        """As the program did. Returns when we are continued."""
        number, self._stop_due = self._stop_due, 0
        if not number or self._exit is not None or not self._program_is_stopped():
            return
        self._stopped_by = number
        if number in _STOPS:
            # Still blocked: the terminal's own, should it come only now, and this one are one stop.
            os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        else:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _continue_program(self) -> None:
        """`fg` continues the whole group, and the keeper says so; `kill -CONT` continued us alone."""
        self._continue_due = False
        if self._program_is_stopped():
            self._hand_on(signal.SIGCONT)

    def _program_is_stopped(self) -> bool:
        program = tree.look_at(self._program_pid)
        return program is not None and program.state == "T"

    def _keeper_died(self) -> int:
        try:
            how = describe(os.waitpid(self._keeper_pid, 0)[1])
        except ChildProcessError:
            how = "unknown"
        tree.kill_descendants()
        complain(f"its keeper died ({how}): the program was stopped, since nobody sees to its memory")
        return EXIT_OWN_ERROR


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def complain(line: str) -> None:
    """One line on standard error, in one write, whatever has become of it."""
    with suppress(OSError):
        os.write(2, f"userswap: {line}\n".encode(errors="surrogateescape"))
