# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket of an engine: `userswap status`, `limit`, `swapon`, `swapoff` and others talk to it.

A Unix socket in a directory that only its user can enter, named by the keeper's pid: that stays when another
engine takes over. Requests and answers are JSON objects, one a line, at most LONGEST_REQUEST bytes; a request
holds "version" and "verb". An answer holds "ok" and, where that is false, "error", one line. The server is in
the engine's main loop and never blocks: whoever sends too much, or does not read, is cut off. What lasts is
asked after (swapoff, which has a thread), or answered later (swapon, for which the keeper opens the area).
"""

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from userswap.areas import FREE, KEEP, Area
from userswap.errors import UserswapError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

    from userswap.engine import Engine

VERSION = 1
LONGEST_REQUEST = 1 << 16
LONGEST_ANSWER = 1 << 20
MOST_CLIENTS = 16
REFUSED_WITHIN = 0.1  # seconds in which a swapoff that cannot be done has said so
SUFFIX = ".sock"
SUFFIX_BEFORE = ".new"  # of one that does not listen yet

LONGEST_COMMAND = 8192  # in all, of what the keeper is to become
DETACH_MARGIN_BYTES = 8 << 20
Answer = dict[str, object]


def directory() -> str:
    """Where this user's sockets are: in $XDG_RUNTIME_DIR, else in /run for root, else in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.geteuid():
        return os.path.join(runtime, "userswap")
    if os.geteuid() == 0 and os.path.isdir("/run"):
        return "/run/userswap"
    return f"/tmp/userswap-{os.geteuid()}"


def is_private(path: str) -> bool:
    """Whether a folder is this user's and nobody else's."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0


def is_of_control(fd: int, keeper_pid: int) -> bool:
    """Whether it is an engine's of this keeper, to be talked to: one that listens, or a connection to it."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as one:
            name = one.getsockname()
    except OSError:
        return False
    return isinstance(name, str) and os.path.basename(name) == _name(keeper_pid, SUFFIX_BEFORE)


def _name(keeper_pid: int, suffix: str) -> str:
    return f"{keeper_pid}{suffix}"


class _Client:
    __slots__ = ("incoming", "outgoing", "socket", "waits")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.socket = connected
        self.incoming = b""
        self.outgoing = b""
        self.waits = False  # for the answer to its last request


class _Swapon:
    """An area on its way in."""

    __slots__ = ("client", "priority")

    def __init__(self, client: _Client | None, priority: int) -> None:
        self.client = client  # None once it has gone
        self.priority = priority


class _Swapoff:
    """One area on its way out, in a thread of its own."""

    def __init__(self, engine: "Engine", number: int, area: Area) -> None:
        self.number = number
        self.area = area
        self.error: OSError | None = None
        self.released = False  # nothing of it is open any more
        self.seconds = 0.0  # that it took, at the end
        import threading  # as json

        self._engine = engine
        self.thread = threading.Thread(target=self._run, name="swapoff")
        self.thread.start()

    def _run(self) -> None:
        start = time.monotonic()
        try:
            self._engine.swapoff(self.number)
        except OSError as error:
            self.error = error
        self.seconds = time.monotonic() - start

    @property
    def over(self) -> bool:
        return not self.thread.is_alive()


class _Detach:
    """A process on its way out, in a thread of its own."""

    def __init__(self, engine: "Engine", pids: Sequence[int], with_children: bool) -> None:
        self.pids = list(pids)  # more as they are found
        self.error: OSError | None = None
        self.note = ""  # what could not be done quite as it should
        self.told = False  # the keeper knows
        self._engine = engine
        self._with_children = with_children
        import threading

        self.thread = threading.Thread(target=self._run, name="detach")
        self.thread.start()

    def _run(self) -> None:
        for pid in self.pids:
            try:
                self._engine.detach(pid)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    self.note = "a zombie of ours is left in it: no thread of it could be stopped"
                elif error.errno != errno.ESRCH:
                    self.error = error
                    return
            if self._with_children:  # those too that it has started meanwhile
                self.pids += [one for one in _family(self._engine, pid) if one not in self.pids]

    @property
    def over(self) -> bool:
        return not self.thread.is_alive()


class Control:
    """Serves the socket, from listen() on. `areas` are those in use, by their number in the engine: kept up
    to date here. `tell` sends words to the keeper."""

    def __init__(
        self,
        engine: "Engine",
        areas: dict[int, Area],
        poller: "select.poll",
        describe: Callable[[], Mapping[str, object]],
        tell: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._areas = areas
        self._poller = poller
        self._describe = describe
        self._tell = tell
        self._swapons: dict[str, _Swapon] = {}
        self._clients: dict[int, _Client] = {}
        self._swapoffs: dict[int, _Swapoff] = {}
        self._detach: _Detach | None = None
        self._wanted: str | None = None  # an upgrade that the keeper is still to be told of
        self._upgraded = ("", "")  # the key of the last upgrade, and why it could not be done
        self._path: str | None = None
        self._listener: socket.socket | None = None

    def has_stores(self) -> bool:
        """Whether any area is kept by a process."""
        return any(area.kind == "store" for area in self._areas.values())

    def name_areas(self, text: str) -> str:
        """With the names of areas in place of their numbers."""

        def name(found: "re.Match[str]") -> str:
            area = self._areas.get(int(found[1]))
            return found[0] if area is None else f"swap area {area.name}"

        import re

        return re.sub(r"swap area (\d+)", name, text)

    def listen(self) -> None:
        """Without a place for the socket the engine works as well, and cannot be talked to."""
        with suppress(OSError):
            self._listen()

    def _listen(self) -> None:
        folder = directory()
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        if not is_private(folder):
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        path, new = (os.path.join(folder, _name(os.getppid(), suffix)) for suffix in (SUFFIX, SUFFIX_BEFORE))
        with suppress(FileNotFoundError):
            os.unlink(new)  # of an engine that was killed right here
        listener.bind(new)
        listener.listen(MOST_CLIENTS)
        os.rename(new, path)  # in the place of the engine's before: whoever waits for us always finds one
        self._path, self._listener = path, listener
        self._poller.register(listener, select.POLLIN)

    def close(self) -> None:
        """Waits for a swapoff to stop. No thread of ours is at the engine then, and nothing is left."""
        for swapoff in self._swapoffs.values():
            self._engine.cancel_swapoff(swapoff.number)
            swapoff.thread.join()
        if self._detach is not None:
            self._detach.thread.join()
            self._tell_detached()
        self._close_emptied()
        for client in list(self._clients.values()):
            self._drop(client)
        if self._listener is not None:
            self._poller.unregister(self._listener)
            self._listener.close()
            self._listener = None
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)
            with suppress(OSError):  # others may have theirs in it
                os.rmdir(os.path.dirname(self._path))
            self._path = None

    def serve(self) -> None:
        """All that can be done without waiting."""
        self._close_emptied()
        self._tell_detached()
        self._accept()
        for client in list(self._clients.values()):
            self._serve_client(client)
        if self._wanted is not None:  # whoever asked has the answer: it is our end
            self._tell(f"upgrade {self._wanted}")
            self._wanted = None

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            if len(self._clients) >= MOST_CLIENTS:
                connected.close()
                continue
            self._clients[connected.fileno()] = _Client(connected)
            self._poller.register(connected, select.POLLIN)

    def _drop(self, client: _Client) -> None:
        for key, swapon in self._swapons.items():
            if swapon.client is client:
                swapon.client = None
                self._tell(f"unwanted {key}")
        del self._clients[client.socket.fileno()]
        self._poller.unregister(client.socket)
        client.socket.close()

    def _serve_client(self, client: _Client) -> None:
        try:
            ended = self._receive(client)
            while b"\n" in client.incoming and not client.waits:
                line, _, client.incoming = client.incoming.partition(b"\n")
                client.outgoing += self._answer_line(line, client)
            if client.outgoing:
                with suppress(BlockingIOError):
                    client.outgoing = client.outgoing[client.socket.send(client.outgoing) :]
        except OSError:
            ended = True
        if ended or len(client.incoming) > LONGEST_REQUEST or len(client.outgoing) > LONGEST_ANSWER:
            self._drop(client)
        else:
            self._poller.register(client.socket, select.POLLIN | (select.POLLOUT if client.outgoing else 0))

    def _receive(self, client: _Client) -> bool:
        """True at the end. A client that sends without end gets its turn again later."""
        with suppress(BlockingIOError):
            part = client.socket.recv(LONGEST_REQUEST)
            client.incoming += part
            return not part
        return False

    def _answer_line(self, line: bytes, client: _Client) -> bytes:
        """Nothing when the answer comes later."""
        import json  # costs memory, and few engines are ever talked to

        try:
            answer = self._answer(json.loads(line), client)
        except (ValueError, RecursionError):
            answer = {"ok": False, "error": "the request is not JSON"}
        return b"" if client.waits else json.dumps(answer).encode() + b"\n"

    def _answer(self, request: object, client: _Client) -> Answer:
        try:
            if not isinstance(request, dict):
                raise UserswapError("not an object")
            if request.get("version") != VERSION:
                raise UserswapError(f"this engine speaks version {VERSION} of the control protocol")
            return {"ok": True, **self._carry_out(request, client)}
        except UserswapError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # whatever is asked for, the program goes on
            return {"ok": False, "error": f"internal error: {type(error).__name__}: {error}"}

    def _carry_out(self, request: Mapping[str, object], client: _Client) -> Answer:
        verb = request.get("verb")
        if verb == "status":
            return {"engine": {**self._describe(), "areas": self._describe_areas()}}
        if verb == "limit":
            return self._limit(request)
        if verb == "swapon":
            return self._swapon(request, client)
        if verb == "swapoff":
            return self._swapoff(self._find(request))
        if verb == "swapoff-state":
            return self._swapoff_state(self._find_swapoff(request))
        if verb == "swapoff-cancel":
            self._engine.cancel_swapoff(self._find_swapoff(request).number)
            return {}
        if verb == "detach":
            return self._begin_detach(request)
        if verb == "detach-state":
            return self._detach_state()
        if verb == "upgrade":
            return self._upgrade(request)
        if verb == "upgrade-state":
            return self._upgrade_state(request)
        raise UserswapError(f"no such verb: {verb}")

    def _limit(self, request: Mapping[str, object]) -> Answer:
        wanted = request.get("ram_limit_bytes")
        if not isinstance(wanted, int) or not 0 < wanted < 1 << 62:
            raise UserswapError("limit wants a number of bytes")
        try:
            self._engine.change_limit(wanted)
        except Exception as error:  # EngineError: control.py is loaded without the engine, too
            raise UserswapError(str(error)) from error
        return {"ram_limit_bytes": wanted}

    # ---- another version

    def _upgrade(self, request: Mapping[str, object]) -> Answer:
        """Refused here is what is not to be touched."""
        from userswap import handover

        key, command = request.get("key"), request.get("command")
        if not isinstance(key, str) or not key.isalnum() or len(key) > 64:
            raise UserswapError("upgrade wants a key of letters and digits")
        if not isinstance(command, list) or not all(
            isinstance(word, str) and "\0" not in word for word in command
        ):
            raise UserswapError("upgrade wants a command, a list of words")
        if not command or len(as_word(command)) > LONGEST_COMMAND:
            raise UserswapError(f"the command is empty, or longer than {LONGEST_COMMAND} bytes")
        if request.get("identity") != handover.identity():
            raise UserswapError(
                "that version keeps its state in another way, and cannot go on with this one's"
            )
        if any(not swapoff.over for swapoff in self._swapoffs.values()):
            raise UserswapError("a swap area is being emptied: wait for that, or interrupt it")
        if self._detach is not None and not self._detach.over:
            raise UserswapError("a process is being detached: wait for that")
        self._wanted = as_word({"key": key, "command": command})
        return {}

    def upgraded(self, key: str, why_not: str) -> None:
        """The keeper has done it, or could not."""
        self._upgraded = (key, why_not)

    def _upgrade_state(self, request: Mapping[str, object]) -> Answer:
        key, why_not = self._upgraded
        if request.get("key") != key:
            return {"over": False}
        if why_not:
            raise UserswapError(f"it goes on as it was: {why_not}")
        return {"over": True}

    # ---- processes

    def _begin_detach(self, request: Mapping[str, object]) -> Answer:
        pid, with_children = request.get("pid"), request.get("tree", False)
        if not isinstance(pid, int) or not isinstance(with_children, bool):
            raise UserswapError("detach wants a pid, and whether its tree is meant")
        if self._detach is not None and not self._detach.over:
            raise UserswapError("another process is being detached")
        if pid not in self._engine.processes():
            raise UserswapError(f"process {pid} is not served by this engine")
        pids = _family(self._engine, pid) if with_children else [pid]
        self._refuse_where_no_room_is(pids)
        self._detach = _Detach(self._engine, pids, with_children)
        self._detach.thread.join(REFUSED_WITHIN)
        return self._detach_state()

    def _refuse_where_no_room_is(self, pids: Sequence[int]) -> None:
        """In their cgroup. What the machine has the engine looks at."""
        from userswap import ram

        needed = sum(self._engine.swapped_pages(pid) for pid in pids) * 4096 + DETACH_MARGIN_BYTES
        rooms = [room for pid in pids if (room := ram.cgroup_room(f"/proc/{pid}")) is not None]
        if rooms and needed > min(rooms):
            lacking = (needed - min(rooms) >> 20) + 1
            raise UserswapError(f"the cgroup's limit leaves no room: {lacking} MiB more would be needed")

    def _detach_state(self) -> Answer:
        if self._detach is None:
            raise UserswapError("no detach was asked for")
        left = sum(self._engine.swapped_pages(pid) for pid in self._detach.pids)
        if self._detach.over and self._detach.error is not None:
            raise UserswapError(reason(self._detach.error))
        return {"over": self._detach.over, "bytes_left": left * 4096, "note": self._detach.note}

    def _tell_detached(self) -> None:
        """Or the next engine, if this one dies, would attach to them again."""
        done = self._detach
        if done is not None and done.over and not done.told:
            done.told = True
            for pid in done.pids if done.error is None else []:
                self._tell(f"detached {pid}")

    # ---- areas

    def _describe_areas(self) -> list[Answer]:
        return [
            {
                "number": number,
                "path": self._areas[number].name,
                "kind": self._areas[number].kind,
                "priority": priority,
                "size_bytes": size,
                "used_bytes": used,
                "emptying": emptying,
                "policy": FREE if self._areas[number].frees else KEEP,
            }
            for number, priority, size, used, emptying in self._engine.areas()
            if number in self._areas
        ]

    def _find(self, request: Mapping[str, object]) -> int:
        """The number of the area that "area" names: by number, or as it was given to --swap or swapon,
        with or without its size and policy."""
        wanted = str(request.get("area"))
        for number, area in self._areas.items():
            if wanted in (str(number), area.name, area.path):
                return number
        raise UserswapError(f"{wanted}: no such swap area")

    def _swapon(self, request: Mapping[str, object], client: _Client) -> Answer:
        spec, priority = request.get("area"), request.get("priority", 0)
        if not isinstance(spec, str) or not isinstance(priority, int) or abs(priority) >= 1 << 15:
            raise UserswapError("swapon wants a path and a priority from -32767 to 32767")
        key = os.urandom(8).hex()
        self._swapons[key] = _Swapon(client, priority)
        client.waits = True
        self._tell(f"open {as_word({'key': key, 'spec': spec})}")
        return {}

    def opened(self, done: bool, text: str) -> None:
        """The keeper has opened an area, or refuses to: what it says of it."""
        import json

        told = json.loads(text)
        swapon = self._swapons.pop(told.pop("key"), None)
        if swapon is None or swapon.client is None:  # nobody asks any more, or the engine that asked has died
            if done:
                self._tell(f"emptied {told['fd']}")
            return
        try:
            if not done:
                raise UserswapError(told["why"])
            area = Area.described(told)
            answer: Answer = {"ok": True, **self._add(area, swapon.priority)}
        except UserswapError as error:
            answer = {"ok": False, "error": str(error)}
        swapon.client.waits = False
        swapon.client.outgoing += json.dumps(answer).encode() + b"\n"

    def _add(self, area: Area, priority: int) -> Answer:
        try:
            number = self._engine.swapon(area.fd, area.size_bytes, priority, area.frees, area.memory)
        except Exception as error:
            self._tell(f"emptied {area.fd}")
            raise UserswapError(str(error)) from error
        self._areas[number] = area
        return {"number": number, "size_bytes": area.size_bytes}

    def _swapoff(self, number: int) -> Answer:
        earlier = self._swapoffs.get(number)
        if earlier is not None and not earlier.over:
            raise UserswapError(f"{earlier.area.name} is being emptied already")
        swapoff = self._swapoffs[number] = _Swapoff(self._engine, number, self._areas[number])
        swapoff.thread.join(REFUSED_WITHIN)
        return self._swapoff_state(swapoff)

    def _find_swapoff(self, request: Mapping[str, object]) -> _Swapoff:
        number = request.get("number")
        swapoff = self._swapoffs.get(number) if isinstance(number, int) else None
        if swapoff is None:
            raise UserswapError("no swapoff of this number was asked for")
        return swapoff

    def _swapoff_state(self, swapoff: _Swapoff) -> Answer:
        moved, total, visited = self._engine.swapoff_progress(swapoff.number)
        if swapoff.over and swapoff.error is not None:
            raise UserswapError(f"{swapoff.area.name}: {_why(swapoff.error)}")
        return {
            "number": swapoff.number,
            "over": swapoff.over and swapoff.released,
            "bytes_moved": moved,
            "bytes_total": total,
            "page_table_entries_visited": visited,
            "seconds": swapoff.seconds,
        }

    def _close_emptied(self) -> None:
        for number, swapoff in self._swapoffs.items():
            if swapoff.over and swapoff.error is None and self._areas.get(number) is swapoff.area:
                self._tell(f"emptied {self._areas.pop(number).fd}")

    def released(self, fd: int) -> None:
        """The keeper has closed what was in the way of nobody any more."""
        for swapoff in self._swapoffs.values():
            swapoff.released = swapoff.released or swapoff.area.fd == fd


def _family(engine: "Engine", pid: int) -> list[int]:
    """A process of the tree and all below it, parents first."""
    parents = engine.parents()
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one and child not in found]
    return found


def as_word(value: object) -> str:
    """As JSON without a blank: one word of a message between keeper and engine process."""
    import json

    return json.dumps(value, separators=(",", ":")).replace(" ", "\\u0020")


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the other swap areas and the memory cannot hold what it holds"
    if error.errno == errno.ECANCELED:
        return "stopped: what was moved stays moved, the rest is where it was"
    return reason(error)
