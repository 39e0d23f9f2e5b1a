# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between our processes: words, and file descriptors with them."""

import array
import os
import socket
from collections import deque
from collections.abc import Sequence

_LONGEST_MESSAGE = 16384
_MOST_FDS = 8


class Channel:
    """One end of a SEQPACKET pair. Neither sending nor receiving ever blocks.

    What the other end is too slow for (it may be stopped by Ctrl-Z) waits in order here. A file
    descriptor that was sent lives on in the socket, whoever closes it.
    """

    def __init__(self, end: socket.socket, unsent: Sequence[tuple[str, list[int]]] = ()) -> None:
        end.setblocking(False)
        self._socket = end
        self._waiting: deque[tuple[bytes, list[int]]] = deque((words.encode(), fds) for words, fds in unsent)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        for _, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()
        self._socket.close()

    def send(self, words: str, fds: Sequence[int] = ()) -> None:
        """Raises OSError (EPIPE, ECONNRESET) if the other end is gone."""
        if self._waiting or not self._try_send(words.encode(), fds):
            self._waiting.append((words.encode(), [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self._waiting and self._try_send(*self._waiting[0]):
            _close_all(self._waiting.popleft()[1])

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def unsent(self) -> list[tuple[str, list[int]]]:
        """What waits: the words, and descriptors that are the channel's."""
        return [(words.decode(), fds) for words, fds in self._waiting]

    def receive(self) -> tuple[list[str], list[int]] | None:
        """The next message and its fds; no words at all at the end; None if there is no message now."""
        room = array.array("i", [0] * _MOST_FDS)
        try:
            words, ancillary, _, _ = self._socket.recvmsg(
                _LONGEST_MESSAGE, socket.CMSG_SPACE(room.itemsize * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return [], []
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return words.decode().split(), list(fds)

    def _try_send(self, words: bytes, fds: Sequence[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([words], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        return True


def channel_pair() -> tuple[Channel, Channel]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
