# SPDX-License-Identifier: GPL-2.0-or-later
"""Those who are not to be trusted: other users, and whoever talks to the control socket. More messages by
USERSWAP_FUZZ=2000000, and others by USERSWAP_FUZZ_SEED."""

import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import (
    ENGINE,
    HELPER,
    KEEPER,
    MIB,
    Live,
    Programs,
    Runner,
    Verbs,
    engine_of,
    name_of,
    open_to_all,
    tree_of,
    wait_until,
)

RAM = 64 * MIB
MESSAGES = int(os.environ.get("USERSWAP_FUZZ", "3000"))
SEED = int(os.environ.get("USERSWAP_FUZZ_SEED", "11"))
NOBODY = 65534


@pytest.fixture
def live(userswap: Runner, programs: Programs, verbs: Verbs, disk: Path) -> Iterator[Live]:
    """A program that reads and writes its memory at random and checks it, for as long as it is let."""
    command = [programs("loop_verify"), "128"]
    env = {**verbs.env, "USERSWAP_CHECK": "1"}
    with userswap.start(command, RAM, swap=[f"{disk}:400M"], env=env) as live:
        wait_until(lambda: bool(verbs.sockets()) and verbs.engine()["faults"] > 100, 30, "it swaps")
        yield live
        assert b"WRONG" not in live.stderr(), live.stderr()


# ---- the control socket


def anything(rng: random.Random, depth: int = 0) -> object:
    kinds: list[object] = [
        None,
        True,
        rng.randrange(-5, 70000),
        rng.choice([0, -1, 1 << 31, 1 << 63, -(1 << 64), 10**300]),
        rng.choice([0.5, -1e308, float("nan"), float("inf")]),
        "".join(chr(rng.choice([0, 10, 32, 34, 92, 127, 0xD7FF, 0x1F600])) for _ in range(rng.randrange(8))),
        rng.choice(
            ["status", "../../etc", "/nowhere/at/all:1M", "nosuch://x:4M", "0", "a" * rng.randrange(3000)]
        ),
    ]
    if depth < 3:
        kinds.append([anything(rng, depth + 1) for _ in range(rng.randrange(4))])
        kinds.append({str(anything(rng, 3)): anything(rng, depth + 1) for _ in range(rng.randrange(4))})
    return rng.choice(kinds)


VERBS = [
    "status",
    "limit",
    "swapon",
    "swapoff",
    "swapoff-state",
    "swapoff-cancel",
    "detach",
    "detach-state",
    "x",
]
FIELDS = ["area", "priority", "number", "pid", "tree", "ram_limit_bytes", "version", "verb", "key", "fd"]


def request(rng: random.Random, forbidden: set[str]) -> bytes:
    """Something like a request, or nothing like one. None that would be carried out, but for `status`."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200)).replace(b"\n", b" ")
    verb = rng.choice(VERBS)
    fields: dict[str, object] = {"version": 1, "verb": verb}
    for field in rng.sample(FIELDS, rng.randrange(5)):
        fields[field] = anything(rng)
    if verb == "limit":
        fields["ram_limit_bytes"] = anything(rng) if rng.random() < 0.1 else -1
    if isinstance(fields.get("ram_limit_bytes"), int):
        fields["ram_limit_bytes"] = -1
    if isinstance(fields.get("area"), str):
        fields["area"] = f"/nowhere/{fields['area']}"
    if verb == "swapoff" or str(fields.get("pid")) in forbidden:  # the area is 0
        fields.update(area="none", pid=0)
    line = json.dumps(fields).encode()
    if rng.random() < 0.2:  # with something wrong in it
        at = rng.randrange(len(line))
        line = line[:at] + rng.randbytes(rng.randrange(3)).replace(b"\n", b"") + line[at + rng.randrange(3) :]
    return line


def exchange(path: Path, rng: random.Random, forbidden: set[str], lines: int) -> int:
    """Sends them, in pieces, over one connection, and reads what comes. How many answers did, each an object
    that says whether it is ok."""
    data = b"".join(request(rng, forbidden) + b"\n" for _ in range(lines))
    received = b""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        one.setblocking(False)
        done = False
        while not done:
            readable, writable, _ = select.select([one], [one] if data else [], [], 30)
            assert readable or writable, "neither answers nor cuts off"
            try:
                if writable:
                    data = data[one.send(data[: rng.choice([1, 7, 100, 4096])]) :]
                    if not data:
                        one.shutdown(socket.SHUT_WR)
                if readable:
                    part = one.recv(1 << 16)
                    done = not part
                    received += part
            except (BrokenPipeError, ConnectionResetError):
                done = True
    answers: list[Any] = [json.loads(line) for line in received.split(b"\n")[:-1]]
    assert all(isinstance(answer["ok"], bool) for answer in answers)
    assert all(answer["ok"] or isinstance(answer["error"], str) for answer in answers)
    return len(answers)


def test_whatever_is_said_the_engine_goes_on(live: Live, verbs: Verbs) -> None:
    (path,) = verbs.sockets()
    forbidden = {str(pid) for pid in tree_of(live.pid)}
    before = verbs.engine()
    rng = random.Random(SEED)
    sent = answered = 0
    while sent < MESSAGES:
        lines = rng.randrange(1, 400)
        try:
            answered += exchange(path, rng, forbidden, lines)
        except OSError:
            raise AssertionError(live.stderr()) from None
        sent += lines
    after = verbs.engine()
    assert answered > sent // 4
    assert (after["pid"], after["takeovers"]) == (before["pid"], 0)
    assert [area["path"] for area in after["areas"]] == [area["path"] for area in before["areas"]]
    assert after["faults"] > before["faults"]


@contextmanager
def clients(path: Path, count: int, say: bytes) -> Iterator[None]:
    """They say this again and again, connect anew when they are cut off, and never read."""
    over = threading.Event()

    def talk() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(0.2)
                try:
                    one.connect(str(path))
                    while not over.is_set():
                        one.sendall(say)
                except OSError:
                    continue

    threads = [threading.Thread(target=talk) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "say", [b'{"version": 1, "verb": "status"}\n', b"x" * 1000, b'{"version": 1, "verb": "swapon"'],
    ids=["asks", "garbage", "half"],
)  # fmt: skip
def test_who_floods_the_socket_does_not_stop_faults(live: Live, verbs: Verbs, say: bytes) -> None:
    """Faults are answered meanwhile, as before."""
    (path,) = verbs.sockets()
    before = verbs.engine()["faults"]
    with clients(path, 6, say):
        # By the engine's threads alone: what its socket says has to wait for its turn.
        reads = Path(f"/proc/{engine_of(live.pid)}/io")
        done = read_bytes(reads)
        wait_until(lambda: read_bytes(reads) > done + 32 * MIB, 60, "swapped memory is read")
    assert verbs.engine()["faults"] > before


def read_bytes(io: Path) -> int:
    return int(io.read_text().split("read_bytes:")[1].split()[0])


# ---- another user

AS_NOBODY = """
import ctypes, os, socket, sys
os.setgroups([]); os.setresgid({nobody}, {nobody}, {nobody}); os.setresuid({nobody}, {nobody}, {nobody})
libc = ctypes.CDLL(None, use_errno=True)
def tries(what, call):
    try:
        call()
    except OSError as error:
        print(what, "refused", error.errno)
    else:
        print(what, "DONE")
def ptrace(pid):
    if libc.ptrace(0x4206, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def getfd(pid):
    pidfd = os.pidfd_open(pid)
    for fd in range(64):
        if libc.syscall(438, pidfd, fd, 0) >= 0:
            return
    raise OSError(1, "none")
tries("socket", lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))
tries("folder", lambda: os.listdir(os.path.dirname(sys.argv[1])))
for pid in map(int, sys.argv[2:]):
    tries(f"files of {{pid}}", lambda: os.listdir(f"/proc/{{pid}}/fd"))
    tries(f"maps of {{pid}}", lambda: os.listdir(f"/proc/{{pid}}/map_files"))
    tries(f"memory of {{pid}}", lambda: open(f"/proc/{{pid}}/mem", "rb").close())
    tries(f"trace {{pid}}", lambda: ptrace(pid))
    tries(f"kill {{pid}}", lambda: os.kill(pid, 9))
    tries(f"descriptors of {{pid}}", lambda: getfd(pid))
"""


@pytest.mark.root
def test_another_user_reaches_nothing_of_ours(live: Live, verbs: Verbs, disk: Path) -> None:
    (path,) = verbs.sockets()
    ours = [pid for pid in tree_of(live.pid) if name_of(pid) in (ENGINE, KEEPER, HELPER)]
    assert len(ours) == 3
    open_to_all(verbs.runtime)  # the way there is not what keeps others out
    assert path.parent.stat().st_mode & 0o777 == 0o700
    script = AS_NOBODY.format(nobody=NOBODY)
    tried = subprocess.run(
        [sys.executable, "-c", script, str(path), *map(str, ours)], capture_output=True, text=True, cwd="/"
    )
    lines = tried.stdout.splitlines()
    assert len(lines) == 2 + 6 * len(ours), tried
    assert all("refused" in line for line in lines), lines
    # What it swaps to has no name, and is nobody else's.
    assert not list(disk.iterdir())
    descriptors = f"/proc/{engine_of(live.pid)}/fd"
    held = [os.stat(f"{descriptors}/{fd}") for fd in os.listdir(descriptors)]
    files = [one for one in held if one.st_size >= 2 * MIB]
    assert files
    assert all(one.st_mode & 0o077 == 0 and one.st_uid == os.geteuid() for one in files)
