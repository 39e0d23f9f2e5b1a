# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting the program as the shell would have: its signals, environment and files are those we inherited.

Python itself changes three things at its start, which are undone here: it ignores SIGPIPE and SIGXFSZ,
it handles SIGINT, and in the C locale it sets LC_CTYPE. Whether SIGPIPE and SIGXFSZ had been ignored by
our parent cannot be found out any more: the program gets them as default.
"""

import errno
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from userswap import libc
from userswap.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_OWN_ERROR

_LONGEST_REPORT = 64
_READY = b"ready"
_GO = b"go"
NO_PROCESS = "no more processes or threads can be made here (ulimit -u, a pids control group)"

# What a process can be sent and can survive: all but the unstoppable, the C library's own, its own mistakes.
FORWARDED = frozenset(
    set(range(1, 65))
    - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 32, 33}
    - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
)


class Inherited:
    """What the front process got from its parent, taken before anything is opened. Blocks all FORWARDED."""

    def __init__(self) -> None:
        self.fds = [fd for fd in _open_fds() if fd > 2 and os.get_inheritable(fd)]
        _occupy_standard_fds()
        with open("/proc/self/environ", "rb") as file:
            entries = [entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry]
        self.environment = {entry[0]: entry[1] for entry in entries}
        self.child_ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})

    def close_fds(self) -> None:
        """In a process other than the program: no reader of a pipe may wait for us. Standard error stays."""
        for fd in self.fds:
            os.close(fd)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)

    def detach(self) -> None:
        """In a process other than the program: also allow it a file for every process of the tree."""
        self.close_fds()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def python(module: str) -> list[str]:
    """A command that calls main() of a module of ours with the arguments that follow: by the same
    interpreter, and with the same modules and entry points as ours, wherever we found them."""
    boot = (
        f"import sys; sys.path[:] = sys.argv.pop(1).split(':'); from {module} import main; main(sys.argv[1:])"
    )
    return [sys.executable or "/proc/self/exe", "-P", "-c", boot, ":".join(sys.path)]


class Failure(Exception):
    """The program did not start: a line for the user, and the exit status."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class Program:
    """One that is about to start. Raises BlockingIOError where no process can be made."""

    def __init__(self, command: list[str], inherited: Inherited, catches: bool) -> None:
        """Forks. With `catches` its forks wait until they are caught."""
        self._name = command[0]
        self._report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._report.close()
                _become(command, inherited, theirs, catches)
            finally:
                os._exit(EXIT_OWN_ERROR)
        theirs.close()

    def await_ready(self) -> int:
        """Wait until it could run. Returns where it is told of forks that are to be caught, or -1. Raises
        Failure if it could not."""
        message, fds, _, _ = socket.recv_fds(self._report, _LONGEST_REPORT, 1, socket.MSG_CMSG_CLOEXEC)
        if message != _READY:
            raise self._failure(message.decode().split())
        return fds[0] if fds else -1

    def go(self) -> None:
        """Let it run, and wait until it does. Raises Failure if it does not."""
        words: list[str] = []
        with self._report, suppress(BrokenPipeError, ConnectionResetError):  # killed: as if it had run
            self._report.send(_GO)
            words = self._report.recv(_LONGEST_REPORT).decode().split()
        if words:
            raise self._failure(words)

    def _failure(self, words: list[str]) -> Failure:
        """What it says it is, or that it has died."""
        if not words:
            return Failure(f"{self._name}: it was ended before it ran", EXIT_OWN_ERROR)
        if words[0] == "unwatched":
            why = f"its forks cannot be watched: {os.strerror(int(words[1]))} (see userswap doctor)"
            return Failure(f"{self._name}: {why}", EXIT_OWN_ERROR)
        if words[0] == "traced":
            why = f"already traced by process {words[1]}: it cannot be entered"
            return Failure(f"{self._name}: {why}", EXIT_OWN_ERROR)
        number = int(words[1])
        status = EXIT_NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE
        not_found = number == errno.ENOENT and "/" not in self._name
        return Failure(f"{self._name}: {'command not found' if not_found else os.strerror(number)}", status)


def _become(command: list[str], inherited: Inherited, report: socket.socket, catches: bool) -> None:
    """In the child: never returns if all goes well; else reports why and returns."""
    for fd in _open_fds():
        if fd > 2 and fd not in inherited.fds:
            os.set_inheritable(fd, False)
    tracer = tracer_of("self")
    if tracer:
        report.send(f"traced {tracer}".encode())
        return
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if inherited.child_ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = []
    if catches:
        try:
            from userswap.tracer import watch_forks

            listener.append(watch_forks())
        except OSError as error:
            report.send(f"unwatched {error.errno}".encode())
            return
    libc.set_name("userswap-start")  # so that it is not entered before it is the program (processes.pyx)
    socket.send_fds(report, [_READY], listener)
    for fd in listener:
        os.close(fd)
    if report.recv(_LONGEST_REPORT) != _GO:  # the keeper has ended
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, inherited.mask)
    number = _exec([os.fsencode(word) for word in command], inherited.environment)
    report.send(f"errno {number}".encode())


def _exec(command: list[bytes], environment: dict[bytes, bytes]) -> int:
    """As execvp(3) does. Returns the errno that a shell would tell."""
    if not command[0]:
        return errno.ENOENT
    told = errno.ENOENT
    for path in _candidates(command[0], environment):
        try:
            os.execve(path, command, environment)
        except OSError as error:
            number = error.errno or errno.EINVAL
        if number == errno.ENOEXEC:  # a script without #!
            try:
                os.execve(b"/bin/sh", [b"/bin/sh", path, *command[1:]], environment)
            except OSError:
                return number
        if number not in (errno.ENOENT, errno.ENOTDIR):
            if number != errno.EACCES:
                return number
            told = number
        elif b"/" in command[0]:
            told = number
    return told


def _candidates(name: bytes, environment: dict[bytes, bytes]) -> list[bytes]:
    if b"/" in name:
        return [name]
    search = environment.get(b"PATH", b"/bin:/usr/bin")
    return [os.path.join(directory, name) if directory else name for directory in search.split(b":")]


def tracer_of(pid: int | str) -> int:
    """The pid of the process that traces this one, 0 if none does."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def _open_fds() -> list[int]:
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in fds if libc.is_open(fd)]  # not the one of the listing itself


def _occupy_standard_fds() -> None:
    """If 0, 1 or 2 came closed, nothing of ours may land there; the program finds them closed again."""
    while not all(libc.is_open(fd) for fd in range(3)):
        os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
