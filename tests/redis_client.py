# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of a redis client as the tests need: pipelined commands over a unix socket."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

Reply = bytes | int | None
BATCH = 256


def server_options(folder: Path) -> list[str]:
    """Of a server of our own: its socket and its files in `folder`, no port, no saving unless told to."""
    options = ["--port", "0", "--unixsocket", str(folder / "socket"), "--dir", str(folder)]
    return [*options, "--save", "", "--daemonize", "no", "--logfile", str(folder / "log")]


class RedisError(Exception):
    """An error reply."""


class Redis:
    """A connection; replies come in the order of the commands."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Redis":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, *words: str | bytes) -> None:
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        parts = [b"*%d\r\n" % len(encoded)] + [b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded]
        self._socket.sendall(b"".join(parts))

    def receive(self) -> Reply:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        raise RedisError(line.decode(errors="replace") or "connection closed")

    def command(self, *words: str | bytes) -> Reply:
        self.send(*words)
        return self.receive()

    def pipeline(self, commands: Iterable[tuple[str | bytes, ...]]) -> Iterator[Reply]:
        """The replies of many commands, sent in batches."""
        waiting = 0
        for words in commands:
            self.send(*words)
            waiting += 1
            if waiting == BATCH:
                yield from (self.receive() for _ in range(waiting))
                waiting = 0
        yield from (self.receive() for _ in range(waiting))

    def info(self, section: str, field: str) -> str:
        reply = self.command("INFO", section)
        assert isinstance(reply, bytes)
        return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)[field]
