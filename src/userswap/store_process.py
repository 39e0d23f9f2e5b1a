# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that runs a store of Python: both ends of what the engine process and it say to each other.

The class must not run in the engine process: threads of the data plane would wait for the GIL. So it has a
process of its own, in a session of its own, which ends with the keeper. Two ways lead there.

The channel is the keeper's: words (channel.py).
    to it    `serve` + socket, memory       after `ready`
                                            once more: another engine has taken over
             `let-go`                       keep no terminal, pipe or folder busy
             `end`                          nobody asks any more
    from it  `ready SIZE`                   the object is made
             `refused TEXT`                 it cannot be made
             `said TEXT`                    something went wrong: for the user

The socket is the data plane's (stores.pyx): a Question, an answer, one at a time. The bytes go through the
memory, one block, mapped by both. It is sealed, so that nobody can make it smaller under the engine."""

import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
from contextlib import suppress

from userswap import background, launch, libc
from userswap.channel import Channel, channel_pair
from userswap.errors import UserswapError, reason
from userswap.sizes import MIB, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from userswap.plugins import Store

GROUP = "userswap.stores"
NAME = "userswap-store"
BLOCK_BYTES = 2 * MIB
MOST_BLOCKS = (1 << 31) - 1  # a slot's number
START_SECONDS = 30.0  # for the class to be loaded and the object to be made
END_SECONDS = 2.0  # for the process to end by itself, once nobody asks any more

# As in stores.pxd.
_QUESTION = struct.Struct("=IIII")
_ANSWER = struct.Struct("=i")
_WRITE, _READ, _DISCARD = range(3)
_VERBS = ("write", "read", "discard")
_MOST_TOLD = 16
_LONGEST_TEXT = 400  # bytes, of a message of the channel


class StoreProcess:
    """The engine process' end. Whoever starts it waits for its end, too."""

    __slots__ = ("channel", "data", "ending", "memory", "name", "over", "pid", "size_bytes", "text", "what")

    def __init__(self, what: str, name: str, text: str, size_bytes: int) -> None:
        self.what = what  # as the user calls it
        self.name = name
        self.text = text
        self.size_bytes = size_bytes  # 0 as long as only the store knows
        self.pid = 0  # while it runs
        self.ending = False  # we want it to end
        self.over = False  # it says nothing more
        self.data: socket.socket | None = None  # once it is ready
        self.memory = -1
        self.channel: Channel | None = None  # the keeper's end

    def start(self) -> None:
        """Raises UserswapError."""
        self.channel, theirs = channel_pair()
        try:
            self.pid = _spawn(theirs, [self.name, self.text, str(self.size_bytes)])
        except OSError as error:
            raise UserswapError(f"{self.what}: its process cannot be started: {reason(error)}") from error
        finally:
            theirs.close()

    def fileno(self) -> int:
        """Readable when ready() or said() has something new."""
        assert self.channel is not None
        return self.channel.fileno()

    def files(self) -> list[int]:
        """What is open of it here."""
        channel = [self.channel.fileno()] if self.channel is not None else []
        return channel if self.data is None else [*channel, self.data.fileno(), self.memory]

    @property
    def connected(self) -> bool:
        return self.channel is not None

    @property
    def starting(self) -> bool:
        """ready() is still to be asked."""
        return self.data is None and not self.ending

    def ready(self) -> bool:
        """Whether the store can be used: then data, memory and size_bytes are set. Raises UserswapError if it
        never will be. Does not wait."""
        assert self.channel is not None
        message = self.channel.receive() if self.data is None else None
        if message is None:
            return self.data is not None
        words, _ = message
        if words and words[0] == "ready":
            self.size_bytes = int(words[1])
            with suppress(OSError):
                self._serve(self.channel)
                return True
        elif words:
            raise UserswapError(f"{self.what}: {' '.join(words[1:])}")
        raise UserswapError(f"{self.what}: its process ended before it was ready")

    def await_ready(self) -> None:
        """As ready(), but waits."""
        poller = select.poll()
        poller.register(self, select.POLLIN)
        while not self.ready():
            if not poller.poll(START_SECONDS * 1000):
                raise UserswapError(f"{self.what}: not ready after {START_SECONDS:.0f} s")

    def _serve(self, channel: Channel) -> None:
        self.data, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory = os.memfd_create("userswap-store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(self.memory, 0o600)
        os.ftruncate(self.memory, BLOCK_BYTES)
        fcntl.fcntl(self.memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        with theirs:
            channel.send("serve", [theirs.fileno(), self.memory])

    def serve_again(self) -> None:
        """Another engine asks from now on. An answer that the one before still waits for is nobody's."""
        if self.data is None or self.channel is None:
            return
        self.data.close()
        os.close(self.memory)
        with suppress(OSError):  # it has ended: that is told elsewhere
            self._serve(self.channel)

    def said(self) -> list[str]:
        """Lines for the user that came since it was ready, or last asked."""
        lines: list[str] = []
        while self.channel is not None and not self.over:
            message = self.channel.receive()
            if message is None:
                break
            self.over = not message[0]
            if message[0]:
                lines.append(f"{self.what}: {' '.join(message[0][1:])}")
        return lines

    def let_go(self) -> None:
        if self.channel is not None:
            with suppress(OSError):  # it has ended
                self.channel.send("let-go")

    def close(self) -> None:
        """Has it end: by itself, once it is not amid a call. The engine does not use it any more."""
        self.ending = True
        if self.channel is not None:
            with suppress(OSError):  # it has ended
                self.channel.send("end")
        if self.data is not None:
            self.data.close()
            os.close(self.memory)
            self.data, self.memory = None, -1
        elif self.pid != 0:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def disconnect(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def _spawn(channel: Channel, words: list[str]) -> int:
    """A new interpreter, with nothing of ours but the channel and standard error."""
    os.set_inheritable(channel.fileno(), True)
    command = [*launch.python(__name__), str(channel.fileno()), str(os.getpid()), *words]
    nothing = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
    return os.posix_spawn(
        command[0], command, os.environ, file_actions=nothing,
        setsid=True, setsigmask=(), setsigdef=launch.FORWARDED | {signal.SIGCHLD},
    )  # fmt: skip


# ---- in the process


def main(words: list[str]) -> None:
    """FD of the channel, PID of the engine process, NAME, TEXT, SIZE."""
    fd, engine, name, text, size = int(words[0]), int(words[1]), words[2], words[3], int(words[4])
    _close_all_but(fd)
    libc.set_name(NAME)
    libc.die_with_parent()
    if os.getppid() != engine:
        return
    channel = Channel(socket.socket(fileno=fd))
    try:
        store = _make(name, text)
        channel.send(f"ready {_size_of(store, size)}")
    except UserswapError as error:
        _send_text(channel, "refused", str(error))
        return
    words, fds = _next_message(channel)
    while words == ["let-go"]:
        background.let_go_of_everything()
        words, fds = _next_message(channel)
    if words == ["serve"]:
        _Server(store, channel, socket.socket(fileno=fds[0]), fds[1]).serve()


def _next_message(channel: Channel) -> tuple[list[str], list[int]]:
    """Waits for it. No words at the end."""
    select.select([channel], [], [])
    return channel.receive() or ([], [])


def _close_all_but(kept: int) -> None:
    """Also what the program is to have, and nobody may wait for us to close."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            with suppress(OSError):  # that of the listing
                os.close(fd)
    os.set_inheritable(kept, False)


def _make(name: str, text: str) -> "Store":
    """Raises UserswapError, whatever the others' code raises."""
    from importlib.metadata import entry_points  # megabytes: not for the engine process

    installed = entry_points(group=GROUP)
    points = {point.value: point for point in installed if point.name == name}
    if not points:
        names = ", ".join(sorted({point.name for point in installed})) or "none is"
        raise UserswapError(f"no store of this name is installed ({names})")
    if len(points) > 1:
        raise UserswapError(f"several stores of this name are installed: {', '.join(sorted(points))}")
    (point,) = points.values()
    kind = _tried("cannot be loaded", point.load)
    store: Store = _tried("cannot be made", lambda: kind(text))
    for verb in _VERBS:
        if not callable(getattr(store, verb, None)):
            raise UserswapError(f"{point.value} has no method {verb}")
    return store


def _tried(what: str, do: "Callable[[], Any]") -> "Any":  # noqa: ANN401
    try:
        return do()
    except BaseException as error:  # SystemExit too: the user is to be told
        raise UserswapError(f"{what}: {_describe(error)}") from error


def _size_of(store: "Store", asked: int) -> int:
    """Bytes that may be used, a multiple of the block. Raises UserswapError."""
    own = getattr(store, "size", 0)
    if not isinstance(own, int) or own < 0:
        raise UserswapError(f"its size is not a number of bytes: {own!r}")
    if not asked and not own:
        raise UserswapError("it says no size: give one, as in NAME://TEXT:1G")
    if own and asked > own:
        raise UserswapError(f"{format_size(asked)} asked, it has {format_size(own)}")
    blocks = (asked or own) // BLOCK_BYTES
    if not 0 < blocks <= MOST_BLOCKS:
        raise UserswapError(
            f"{format_size(asked or own)} is not between {format_size(BLOCK_BYTES)} "
            f"and {format_size(MOST_BLOCKS * BLOCK_BYTES)}"
        )
    return blocks * BLOCK_BYTES


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _send_text(channel: Channel, word: str, text: str) -> None:
    short = text.encode(errors="replace")[:_LONGEST_TEXT].decode(errors="ignore")
    with suppress(OSError):
        channel.send(f"{word} {short}")


class _Server:
    """Serves until either end closes. Errors are told once each; the engine gets their numbers."""

    def __init__(self, store: "Store", channel: Channel, data: socket.socket, memory: int) -> None:
        self._store = store
        self._channel = channel
        self._told: set[str] = set()
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)
        self._data = data
        self._turn_to(data, memory)

    def _turn_to(self, data: socket.socket, memory: int) -> None:
        """From now on this engine asks."""
        if data is not self._data:
            with suppress(KeyError):  # its end was seen already
                self._poller.unregister(self._data)
            self._data.close()
        self._data = data
        self._poller.register(data, select.POLLIN)
        self._to_engine = mmap.mmap(memory, BLOCK_BYTES)
        self._from_engine = mmap.mmap(memory, BLOCK_BYTES, prot=mmap.PROT_READ)
        os.close(memory)

    def serve(self) -> None:
        goes_on = True
        while goes_on:
            ready = [fd for fd, _ in self._poller.poll()]
            if self._channel.fileno() in ready:
                goes_on = self._listen()
            elif ready:
                self._ask()

    def _listen(self) -> bool:
        message = self._channel.receive()
        if message is not None and message[0] == ["let-go"]:
            background.let_go_of_everything()
        elif message is not None and message[0] == ["serve"]:
            self._turn_to(socket.socket(fileno=message[1][0]), message[1][1])
        return message is None or message[0] not in ([], ["end"])

    def _ask(self) -> None:
        with suppress(OSError):  # the engine has gone
            question = self._data.recv(_QUESTION.size)
            if question:
                self._data.send(_ANSWER.pack(self._answer(*_QUESTION.unpack(question))))
                return
        self._poller.unregister(self._data)  # another one may come, as long as the keeper is there

    def _answer(self, what: int, block: int, at: int, length: int) -> int:
        try:
            if what == _WRITE:
                self._write(block)
            elif what == _READ:
                self._read(block, at, length)
            else:
                self._store.discard(block)
        except Exception as error:
            self._tell(f"{_VERBS[what]}: {_describe(error)}")
            return -_errno_of(error)
        return 0

    def _write(self, block: int) -> None:
        # Released at the end: a class that keeps it gets an error, and not the bytes of another block.
        with memoryview(self._from_engine) as data:
            self._store.write(block, data)

    def _read(self, block: int, at: int, length: int) -> None:
        found = memoryview(self._store.read(block, at, length)).cast("B")
        if found.nbytes != length:
            raise ValueError(f"{found.nbytes} bytes came, {length} were asked for")
        self._to_engine[:length] = found

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            _send_text(self._channel, "said", text)


def _errno_of(error: Exception) -> int:
    number = error.errno if isinstance(error, OSError) else None
    return number if isinstance(number, int) and 0 < number < 4096 else errno.EIO
