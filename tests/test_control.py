# SPDX-License-Identifier: GPL-2.0-or-later
"""swapon, swapoff and status on a running engine whose program checks all its memory; and the socket."""

import json
import math
import random
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support import MIB, Live, Programs, Runner, Verbs, send, wait_until

RAM = 96 * MIB
CHECKED = {"USERSWAP_CHECK": "1"}


@contextmanager
def rereading(
    userswap: Runner, programs: Programs, verbs: Verbs, areas: list[str], mib: int = 256, reads: int = 60_000
) -> Iterator[Live]:
    """A program that reads and writes its memory at random, all of it swapped that has no room."""
    command = [programs("reread"), str(mib), str(reads)]
    with userswap.start(command, RAM, swap=areas, env={**verbs.env, **CHECKED}) as live:
        wait_until(
            lambda: bool(verbs.sockets()) and verbs.engine()["pages_in"] > 200, 30, "it reads swapped memory"
        )
        yield live


def made(tmp_path: Path, *names: str) -> list[Path]:
    for name in names:
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


def finish(live: Live) -> None:
    run = live.finish(120)
    assert run.returncode == 0, run.describe()
    assert run.stdout.endswith(b"ok\n"), run.describe()


def test_swapoff_moves_all_while_the_program_works(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    first, second = made(tmp_path, "first", "second")
    with rereading(userswap, programs, verbs, [f"{first}:400M"]) as live:
        verbs("swapon", f"{second}:400M")
        before = verbs.areas()
        assert before["first:400M"]["used_bytes"] > 100 * MIB
        said = verbs("swapoff", str(first))
        assert "0 page table entries visited" in said
        after = verbs.areas()
        assert list(after) == ["second:400M"]
        assert after["second:400M"]["used_bytes"] > 100 * MIB
        assert verbs.engine()["entries"] > 0
        finish(live)


def test_what_a_program_gives_back_leaves_the_swap_file(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    """Without a fault: blocks become empty, and are given back to the file system but for a few."""
    file = tmp_path / "swap"
    command = [programs("give_back"), "320"]
    swap = [f"{file}:500M"]
    with userswap.start(command, RAM, swap=swap, env=verbs.env, stdin=subprocess.PIPE) as live:
        live.wait_for_line("given back", 60)
        faults = verbs.engine()["faults"]
        wait_until(lambda: file.stat().st_blocks * 512 < 80 * MIB, 30, "the file is mostly holes")
        assert verbs.engine()["faults"] == faults
        assert verbs.engine()["store_bytes_discarded"] > 100 * MIB
        send(live.process)
        finish(live)


@pytest.mark.parametrize("policy", ["keep", "free"])
def test_slots_are_freed_as_pages_come_in_where_the_area_wants_it(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path, policy: str
) -> None:
    """Of all pages that come in, whoever faulted on them; blocks become empty, and are given back."""
    command = [programs("read_back"), "40"]
    file = tmp_path / "swap"
    swap = [f"{file}:500M:{policy}"]
    with userswap.start(command, RAM, swap=swap, env=verbs.env, stdin=subprocess.PIPE) as live:
        live.wait_for_line("given back", 60)
        wait_until(lambda: verbs.engine()["swap_bytes"] < 80 * MIB, 30, "what was given back has left")
        before = verbs.engine()
        assert [area["policy"] for area in before["areas"]] == [policy]
        send(live.process)
        live.wait_for_line("all in", 60)
        freed = before["swap_bytes"] - verbs.engine()["swap_bytes"]
        if policy == "free":
            assert freed > 32 * MIB
            wait_until(lambda: file.stat().st_blocks * 512 < 48 * MIB, 30, "the rest is a hole")
        else:
            assert freed == 0
        send(live.process)
        run = live.finish(60)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 9_000, run.describe()
    assert run.number("touched") < 1_000, "nobody faulted on the others"


def test_the_only_area_is_emptied_into_memory_where_there_is_room(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    command = [programs("read_back"), "32"]
    swap = [f"{tmp_path}:500M"]
    with userswap.start(command, RAM, swap=swap, env={**verbs.env, **CHECKED}, stdin=subprocess.PIPE) as live:
        live.wait_for_line("given back", 60)
        wait_until(lambda: verbs.engine()["swap_bytes"] < 40 * MIB, 30, "what was given back has left")
        assert verbs.engine()["swap_bytes"] > 28 * MIB
        assert "0 page table entries visited" in verbs("swapoff", str(tmp_path))
        engine = verbs.engine()
        assert (engine["areas"], engine["swap_bytes"]) == ([], 0)
        send(live.process)
        live.wait_for_line("all in", 60)
        assert verbs.engine()["faults_from_memory"] > engine["faults_from_memory"]
        send(live.process)
        finish(live)


def test_another_limit(userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path) -> None:
    """More memory is used, less is kept to, and the area is emptied into what there is then."""
    command, swap = [programs("reread"), "256", "150000"], [f"{tmp_path}:400M"]
    environment = {**verbs.env, **CHECKED}
    with userswap.start(command, RAM, swap=swap, env=environment, tolerance=math.inf) as live:
        wait_until(lambda: bool(verbs.sockets()) and verbs.engine()["pages_in"] > 200, 30, "it swaps")
        verbs("limit", "160M")
        wait_until(lambda: verbs.engine()["resident_bytes"] > 130 * MIB, 30, "it uses more")
        assert verbs.engine()["ram_limit_bytes"] == 160 * MIB
        verbs("limit", "72M")
        wait_until(lambda: verbs.engine()["resident_bytes"] < 72 * MIB, 30, "it has given it back")
        evicted = verbs.engine()["pages_evicted"]
        wait_until(lambda: verbs.engine()["pages_evicted"] > evicted + 1000, 30, "it goes on")
        assert verbs.engine()["resident_bytes"] < 72 * MIB
        verbs("limit", "2G")
        assert verbs.engine()["swap_bytes"] > 100 * MIB
        assert "0 page table entries visited" in verbs("swapoff", str(tmp_path))
        assert verbs.engine()["swap_bytes"] == 0
        finish(live)


def test_back_and_forth(userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path) -> None:
    """The same blocks, moved again and again under a program that reads and writes them."""
    here, there = made(tmp_path, "here", "there")
    with rereading(userswap, programs, verbs, [f"{here}:400M"], reads=60_000) as live:
        for old, new in ((here, there), (there, here)):
            verbs("swapon", f"{new}:400M")
            verbs("swapoff", str(old))
        finish(live)


def test_swapoff_is_refused_where_the_rest_cannot_hold_it(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    first, second = made(tmp_path, "first", "second")
    with rereading(userswap, programs, verbs, [f"{first}:400M", f"{second}:16M"]) as live:
        assert "cannot hold" in verbs("swapoff", str(first), status=125)
        area = verbs.areas()["first:400M"]
        assert area["used_bytes"] > 0
        assert not area["emptying"]
        finish(live)


def test_swapoff_can_be_interrupted_and_resumed(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    first, second = made(tmp_path, "first", "second")
    with rereading(userswap, programs, verbs, [f"{first}:600M"], mib=512) as live:
        verbs("swapon", f"{second}:600M")
        before = verbs.areas()["first:600M"]["used_bytes"]
        process = verbs.start("swapoff", str(first))

        def moving() -> bool:
            areas = verbs.areas()
            return process.poll() is not None or areas["second:600M"]["used_bytes"] > 16 * MIB

        wait_until(moving, 20, "blocks move")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        areas = verbs.areas()
        if process.returncode != 0:  # else it was faster than the signal
            assert process.returncode == 128 + signal.SIGINT, err
            assert "stopped" in err
            assert not areas["first:600M"]["emptying"]
            assert areas["first:600M"]["used_bytes"] < before
            verbs("swapoff", str(first))
        assert list(verbs.areas()) == ["second:600M"]
        finish(live)


def test_priority_says_which_area_is_used(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    slow, fast = made(tmp_path, "slow", "fast")
    with rereading(userswap, programs, verbs, [f"{slow}:400M"]) as live:
        verbs("swapon", f"{fast}:400M", "--priority", "10")
        wait_until(lambda: verbs.areas()["fast:400M"]["used_bytes"] > 0, 30, "the faster area is written to")
        finish(live)


def test_what_cannot_be_done_is_refused_and_harms_nothing(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    (first,) = made(tmp_path, "first")
    with rereading(userswap, programs, verbs, [f"{first}:400M"]) as live:
        for words, says in (
            (("swapon", "/nowhere/at/all"), "No such file or directory"),
            (("swapon", f"{first}:400M", "--priority", "99999"), "priority"),
            (("swapoff", "/nowhere"), "no such swap area"),
            (("limit", "1M"), "the least is 64M"),
            (("limit", "much"), "much"),
            (("swapoff", f"{first}", "--engine", "1"), "no engine of yours has the pid 1"),
        ):
            err = verbs(*words, status=125)
            assert says in err
            assert err.count("\n") == 1, err
        finish(live)


def test_without_an_engine(verbs: Verbs) -> None:
    assert json.loads(verbs("status", "--json")) == {"engines": []}
    assert "no engine of yours runs" in verbs("status")
    assert "no engine of yours runs" in verbs("swapoff", "/somewhere", status=125)


def test_the_socket_is_private_and_goes_with_the_engine(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    (first,) = made(tmp_path, "first")
    with rereading(userswap, programs, verbs, [f"{first}:400M"], reads=15_000) as live:
        (path,) = verbs.sockets()
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert int(path.stem) == verbs.engine()["pid"]
        finish(live)
    assert not list(verbs.runtime.iterdir())


def test_nonsense_on_the_socket_is_answered_or_cut_off(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    (first,) = made(tmp_path, "first")
    rng = random.Random(5)
    with rereading(userswap, programs, verbs, [f"{first}:400M"]) as live:
        (path,) = verbs.sockets()
        fixed = [b"{}", b"[]", b"null", b'{"version": 1}', b'{"version": 2, "verb": "status"}', b"[" * 9000]
        fixed += [b'{"version": 1, "verb": "swapon", "area": 3}', b'{"version": 1, "verb": "swapoff-state"}']
        fixed += [
            b'{"version": 1, "verb": "limit", "ram_limit_bytes": %s}' % b for b in (b"-1", b"1e99", b"true")
        ]
        for line in [*fixed, *(rng.randbytes(rng.randrange(300)).replace(b"\n", b"") for _ in range(300))]:
            answer = asked(path, line)
            assert answer["ok"] is False, line
            assert isinstance(answer["error"], str)
        flood(path)
        assert verbs.engine()["pid"] == int(path.stem)
        finish(live)


def asked(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(10)
        one.connect(str(path))
        one.sendall(line + b"\n")
        with one.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
    return answer


def flood(path: Path) -> None:
    """More than any request is long, and more clients than are served; none of it reads."""
    clients: list[socket.socket] = []
    try:
        for _ in range(40):
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(10)
            clients.append(one)
            with suppress(BlockingIOError):  # the queue of those that wait is full
                one.connect(str(path))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            clients[0].sendall(b"x" * (100 << 16))
    finally:
        for one in clients:
            one.close()
