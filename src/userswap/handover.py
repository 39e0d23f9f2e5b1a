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
from collections.abc import Mapping, Sequence
from contextlib import suppress

from userswap import launch, tree
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
FORMAT = 2

TRY = "try"


def command() -> list[str]:
    """What a keeper has to become, to be of this version. It wants one argument more: the descriptor of the
    state, or TRY."""
    return launch.python(__name__)


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
    return _fields(area, process=None if area.process is None else _describe_store(area.process))


def _describe_store(store: StoreProcess) -> "State":
    data = None if store.data is None else store.data.fileno()
    return _fields(store, data=data, channel=describe_channel(store.channel))


def describe_options(options: Options) -> "State":
    return _fields(options)


def _fields(thing: Area | StoreProcess | Options, **instead: object) -> "State":
    """All that it consists of, but for what JSON cannot say."""
    kept = {name: getattr(thing, name) for name in thing.__slots__ if name not in instead}
    return {**kept, **instead}


# ---- the version that comes


def channel_of(state: "Mapping[str, Any] | None") -> Channel | None:
    if state is None:
        return None
    return Channel(socket.socket(fileno=state["fd"]), [(words, fds) for words, fds in state["waiting"]])


def area_of(state: "Mapping[str, Any]") -> Area:
    area = Area("", "", -1, ())
    process = None if state["process"] is None else _store_of(state["process"])
    _set_fields(area, state, process=process, identity=tuple(state["identity"]))
    return area


def _store_of(state: "Mapping[str, Any]") -> StoreProcess:
    store = StoreProcess("", "", "", 0)
    data = None if state["data"] is None else socket.socket(fileno=state["data"])
    _set_fields(store, state, data=data, channel=channel_of(state["channel"]))
    return store


def options_of(state: "Mapping[str, Any]") -> Options:
    options = Options(0, None, False, 0, False)
    _set_fields(options, state, attach=tuple(state["attach"]), leave_out=tuple(state["leave_out"]))
    return options


def _set_fields(thing: object, state: "Mapping[str, Any]", **instead: object) -> None:
    for name, value in {**state, **instead}.items():
        setattr(thing, name, value)


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
