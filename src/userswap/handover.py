# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap upgrade`: another version of userswap goes on with what runs.

The keeper becomes that version, by exec: it stays the parent of the program, and what it and the engine have
open stays open. What it knows goes with it as JSON, in a file in memory. Then it starts an engine of its own
version, which takes over as from one that has died. So from before the exec until then there is no engine,
and programs that fault wait.

Whether that can be done is found out before anything is touched: the command is tried first, and both
versions have to have the same FORMAT and the same layout of the engine's state (layout.py)."""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from userswap import tree
from userswap.areas import Area
from userswap.channel import Channel
from userswap.engine_process import Options
from userswap.errors import EXIT_OWN_ERROR
from userswap.store_process import StoreProcess

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    State = dict[str, Any]

# Of the state below, and of what keeper, front process and stores say to each other.
FORMAT = 1

# The same modules as ours, wherever we found them.
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop(1).split(':'); "
    "from userswap.handover import main; main(sys.argv[1:])"
)
TRY = "try"


def command() -> list[str]:
    """What a keeper has to become, to be of this version. It wants one argument more: the descriptor of the
    state, or TRY."""
    return [sys.executable, "-P", "-c", _BOOT, ":".join(sys.path)]


def identity() -> dict[str, object]:
    """What has to be the same in both versions."""
    from userswap.engine import layout

    return {"format": FORMAT, "layout": layout()}


# ---- the version that goes


def hand_over(command: Sequence[str], state: "State", left: Sequence[int]) -> None:
    """Becomes `command`, with all that is open but what is `left` behind. Raises OSError, with all as it
    was."""
    file = os.memfd_create("userswap-handover", 0)
    try:
        os.fchmod(file, 0o600)
        with os.fdopen(os.dup(file), "w", encoding="utf-8") as text:
            json.dump(state, text)
        closed = [
            fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in left and _is_closed_by_exec(fd)
        ]
        for fd in closed:
            os.set_inheritable(fd, True)
        try:
            os.execve(command[0], [*command, str(file)], os.environ)
        finally:
            for fd in closed:
                os.set_inheritable(fd, False)
    finally:
        os.close(file)


def _is_closed_by_exec(fd: int) -> bool:
    with suppress(OSError):  # that of the listing
        return not os.get_inheritable(fd)
    return False


def describe_channel(channel: Channel | None) -> "State | None":
    return None if channel is None else {"fd": channel.fileno(), "waiting": channel.unsent()}


def describe_area(area: Area) -> "State":
    kept = (
        "created_path",
        "fd",
        "frees",
        "identity",
        "kind",
        "memory",
        "name",
        "named",
        "path",
        "size_bytes",
    )
    state = {name: getattr(area, name) for name in kept}
    return {**state, "process": None if area.process is None else _describe_store(area.process)}


def _describe_store(store: StoreProcess) -> "State":
    kept = ("what", "name", "text", "size_bytes", "pid", "ending", "over", "memory")
    state = {name: getattr(store, name) for name in kept}
    data = None if store.data is None else store.data.fileno()
    return {**state, "data": data, "channel": describe_channel(store.channel)}


def describe_options(options: Options) -> "State":
    return {name: getattr(options, name) for name in Options.__slots__}


# ---- the version that comes


def channel_of(state: "Mapping[str, Any] | None") -> Channel | None:
    if state is None:
        return None
    return Channel(socket.socket(fileno=state["fd"]), [(words, fds) for words, fds in state["waiting"]])


def area_of(state: "Mapping[str, Any]") -> Area:
    area = Area(state["name"], state["kind"], state["fd"], tuple(state["identity"]))
    for name in ("created_path", "frees", "memory", "named", "path", "size_bytes"):
        setattr(area, name, state[name])
    area.process = None if state["process"] is None else _store_of(state["process"])
    return area


def _store_of(state: "Mapping[str, Any]") -> StoreProcess:
    store = StoreProcess(state["what"], state["name"], state["text"], state["size_bytes"])
    for name in ("pid", "ending", "over", "memory"):
        setattr(store, name, state[name])
    store.data = None if state["data"] is None else socket.socket(fileno=state["data"])
    store.channel = channel_of(state["channel"])
    return store


def options_of(state: "Mapping[str, Any]") -> Options:
    words = ("ram_limit_bytes", "stats_path", "quiet", "entry_bits", "encrypt")
    options = Options(**{name: state[name] for name in words})
    options.attaches = state["attaches"]
    options.attach, options.leave_out = tuple(state["attach"]), tuple(state["leave_out"])
    return options


def main(words: list[str]) -> None:
    """In the process that was the keeper: DESCRIPTOR of the state. Or TRY: says what has to be the same."""
    from userswap.keeper import Keeper

    if words == [TRY]:
        print(json.dumps(identity()))
        return
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            with suppress(OSError):  # that of the listing
                os.set_inheritable(fd, False)
    with os.fdopen(int(words[0]), encoding="utf-8") as text:
        text.seek(0)
        state: State = json.load(text)
    try:
        keeper = Keeper.restored(state)
    except BaseException:
        _end_all(state)
        raise
    try:
        keeper.go_on()
    finally:
        os._exit(EXIT_OWN_ERROR)


def _end_all(state: "State") -> None:
    """Nobody can serve them any more."""
    for fd in state["entered"].values():
        with suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    tree.kill_descendants()
