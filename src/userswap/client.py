# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that talk to running engines by their control sockets: `status`, `limit`, `swapon`, `swapoff`,
`detach`, `upgrade`."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from userswap.areas import is_store
from userswap.control import LONGEST_ANSWER, SUFFIX, SUFFIX_BEFORE, VERSION, directory, is_private
from userswap.errors import UserswapError, reason
from userswap.store_process import START_SECONDS

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_SECONDS = 10.0
ASK_EVERY_SECONDS = 0.1
UPGRADE_SECONDS = 60.0  # for what is on its way in, and for the other version to start


class EngineEndedError(UserswapError):
    """While it was asked. Another one may take over."""

    def __init__(self) -> None:
        super().__init__("the engine has ended")


class EngineSilentError(UserswapError):
    def __init__(self) -> None:
        super().__init__("the engine does not answer")


class Connection:
    """To one engine, or to the one that takes over from it. Raises UserswapError where it cannot be reached,
    or refuses."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connect()

    def _connect(self) -> None:
        """The engine of a takeover may not be there yet, but there is a socket."""
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(ANSWER_SECONDS)
            self._rest = b""
            try:
                self._socket.connect(self._path)
                break
            except OSError as error:
                self._socket.close()
                is_between = isinstance(error, ConnectionRefusedError) and _keeper_lives(self._path)
                if not is_between or time.monotonic() > until:
                    raise UserswapError(f"{self._path}: {reason(error)}") from error
            time.sleep(ASK_EVERY_SECONDS)
        peer = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] not in (0, os.geteuid()):
            raise UserswapError(f"{self._path}: is another user's")

    def close(self) -> None:
        self._socket.close()

    def again(self) -> None:
        """To the next engine of the same programs."""
        self._socket.close()
        self._connect()

    def patience(self, seconds: float) -> None:
        """How long an answer may take from now on."""
        self._socket.settimeout(seconds)

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        request = json.dumps({"version": VERSION, "verb": verb, **arguments}).encode() + b"\n"
        try:
            self._socket.sendall(request)
            answer = json.loads(self._line())
        except TimeoutError as error:
            raise EngineSilentError from error
        except (OSError, ValueError) as error:
            raise EngineEndedError from error
        if not isinstance(answer, dict) or not answer.get("ok"):
            raise UserswapError(str(answer.get("error")) if isinstance(answer, dict) else "a strange answer")
        return answer

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            part = self._socket.recv(1 << 16)
            if not part or len(self._rest) > LONGEST_ANSWER:
                raise ConnectionResetError
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _keeper_lives(path: str) -> bool:
    """Whose socket it is, by its name."""
    stem, _ = os.path.splitext(os.path.basename(path))
    return os.path.exists(f"/proc/{stem}")


def engines() -> dict[int, str]:
    """The sockets of this user's engines, by pid. Those of engines that were killed are removed."""
    folder = directory()
    found: dict[int, str] = {}
    if not is_private(folder):
        return found
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix not in (SUFFIX, SUFFIX_BEFORE) or not stem.isdigit():
            continue
        path = os.path.join(folder, name)
        if _keeper_lives(path):
            if suffix == SUFFIX:
                found[int(stem)] = path
        else:
            with suppress(OSError):
                os.unlink(path)
    return found


def connect(pid: int | None) -> Connection:
    """To the engine of this pid, or to the only one."""
    found = engines()
    if pid is not None:
        if pid not in found:
            raise UserswapError(f"no engine of yours has the pid {pid} (see userswap status)")
        return Connection(found[pid])
    if not found:
        raise UserswapError("no engine of yours runs")
    if len(found) > 1:
        raise UserswapError(f"several engines run: choose one by --engine {'|'.join(map(str, found))}")
    return Connection(next(iter(found.values())))


def _statuses() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in engines().values():
        with suppress(UserswapError):  # it has just ended
            found.append(_status(path))
    return found


def _status(path: str) -> dict[str, Any]:
    """Of the engine that takes over, if need be. Raises UserswapError where none does."""
    connection = Connection(path)
    while True:
        try:
            answer: dict[str, Any] = connection.ask("status")["engine"]
            connection.close()
            return answer
        except EngineEndedError:
            connection.again()


def status(as_json: bool) -> int:
    found = _statuses()
    if as_json:
        print(json.dumps({"engines": found}, indent=2))
        return 0
    if not found:
        print("no engine of yours runs")
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    from userswap.sizes import format_size

    path = Column("swap area", overflow="fold")
    table = Table("engine", "program", "memory", "limit", path, "size", "used", "priority", box=None)
    for engine in found:
        first = [
            str(engine["pid"]),
            ", ".join(sorted({program["name"] for program in engine["programs"]})),
            format_size(engine["resident_bytes"]),
            format_size(engine["ram_limit_bytes"]),
        ]
        for area in engine["areas"] or [None]:
            table.add_row(*first, *(_area_columns(area) if area else []))
            first = [""] * len(first)
    Console(soft_wrap=True).print(table)
    return 0


def _area_columns(area: Mapping[str, Any]) -> list[str]:
    from userswap.sizes import format_size

    used = format_size(area["used_bytes"]) + (", being emptied" if area["emptying"] else "")
    return [area["path"], format_size(area["size_bytes"]), used, str(area["priority"])]


def _absolute(spec: str) -> str:
    """The engine has another working directory."""
    return spec if os.path.isabs(spec) or is_store(spec) else os.path.join(os.getcwd(), spec)


def limit(size: str, pid: int | None) -> int:
    from userswap.ram import parse_ram

    connection = connect(pid)
    connection.ask("limit", ram_limit_bytes=parse_ram(size))
    connection.close()
    return 0


def swapon(area: str, priority: int, pid: int | None) -> int:
    connection = connect(pid)
    connection.patience(START_SECONDS + ANSWER_SECONDS)
    connection.ask("swapon", area=_absolute(area), priority=priority)
    connection.close()
    return 0


def served_processes() -> dict[int, int]:
    """The processes that engines of this user serve, and each one's engine."""
    return {program["pid"]: engine["pid"] for engine in _statuses() for program in engine["programs"]}


def detach(pid: int, with_children: bool) -> int:
    """Waits until all is back."""
    served = served_processes()
    if pid not in served:
        raise UserswapError(f"process {pid} is not served by an engine of yours (see userswap status)")
    connection = connect(served[pid])
    state = connection.ask("detach", pid=pid, tree=with_children)
    _follow_detach(connection, state)
    connection.close()
    return 0


def upgrade(pid: int | None) -> int:
    """Waits until an engine of this version serves what the engine of another served."""
    from userswap import handover

    command = handover.command()
    identity = _try_out([*command, handover.TRY])
    connection = connect(pid)
    key = os.urandom(8).hex()
    try:
        connection.ask("upgrade", key=key, command=command, identity=identity)
    except UserswapError as error:
        raise UserswapError(f"refused, and nothing was touched: {error}") from error
    until = time.monotonic() + UPGRADE_SECONDS
    while not _is_upgraded(connection, key):
        if time.monotonic() > until:
            raise UserswapError(f"not done after {UPGRADE_SECONDS:.0f} s")
        time.sleep(ASK_EVERY_SECONDS)
    connection.close()
    return 0


def _try_out(command: list[str]) -> object:
    """What the other one's keeper is to become says of itself, if it starts. Raises UserswapError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserswapError(f"this version does not start: {done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout)


def _is_upgraded(connection: Connection, key: str) -> bool:
    """Raises UserswapError where it cannot be done, or the program has ended."""
    try:
        return bool(connection.ask("upgrade-state", key=key)["over"])
    except (EngineEndedError, EngineSilentError):
        connection.again()
    return False


def _follow_detach(connection: Connection, state: dict[str, Any]) -> None:
    total = state["bytes_left"]
    with _progress_line() as progress:
        task = progress.add_task("detach", total=total)
        while not state["over"]:
            progress.update(task, completed=max(0, total - state["bytes_left"]))
            time.sleep(ASK_EVERY_SECONDS)
            try:
                state = connection.ask("detach-state")
            except EngineEndedError:  # when nothing is left to serve
                return
    if state["note"]:
        print(f"userswap: {state['note']}", file=sys.stderr)


def _progress_line() -> "Progress":
    """Bytes, rate and time left, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def swapoff(area: str, pid: int | None) -> int:
    """Waits for the end; a signal stops it, and what is still in the area stays there."""
    connection = connect(pid)
    try:
        state = connection.ask("swapoff", area=area)
    except UserswapError as error:
        if os.path.isabs(area) or "no such swap area" not in str(error):
            raise
        state = connection.ask("swapoff", area=_absolute(area))
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        _follow(connection, state, stopped)
    except UserswapError:
        if not stopped:
            raise
        print("userswap: stopped: what was moved stays moved, the rest is where it was", file=sys.stderr)
        return 128 + stopped[0]
    finally:
        connection.close()
    return 0


def _follow(connection: Connection, state: dict[str, Any], stopped: list[int]) -> None:
    with _progress_line() as progress:
        task = progress.add_task("swapoff", total=state["bytes_total"])
        while not state["over"]:
            progress.update(task, completed=state["bytes_moved"])
            if stopped:
                connection.ask("swapoff-cancel", number=state["number"])
            time.sleep(ASK_EVERY_SECONDS)
            state = connection.ask("swapoff-state", number=state["number"])
    seconds = state["seconds"]
    print(
        f"{state['bytes_moved'] >> 20} MiB moved in {seconds:.2f} s, "
        f"{state['page_table_entries_visited']} page table entries visited"
    )
