# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap counts of whole programs, in both layouts of an entry: forks of forks, and nothing left at the end."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import Programs, Runner, Verbs, kill_all, send, wait_until
from test_control import CHECKED
from test_law1 import BALLAST_MIB, BEHAVIOURS, RAM

BRANCHES, LEAVES, ROUNDS = 32, 31, 3
CROWD = 1 + BRANCHES * (1 + LEAVES)


@pytest.mark.parametrize("behaviour", [name for name in BEHAVIOURS if "fork" in name])
def test_behaviour_with_small_entries(userswap: Runner, programs: Programs, behaviour: str) -> None:
    options = ["--quiet", "--entry-bits", "32"]
    run = userswap([programs(behaviour), BALLAST_MIB], RAM, timeout=100, options=options, env=CHECKED)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()
    assert run.stats["entry_bits"] == 32


class Crowd:
    """fork_crowd, natively or under userswap. Its memory is not sampled: that of so many takes too long."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path) -> None:
        self.process = process
        self._out = out
        self._seen = 0

    def await_line(self, line: str) -> None:
        """The next line of these; what came before is of no interest."""

        def seen() -> bool:
            assert self.process.poll() is None, self._out.read_text()
            lines = self._out.read_text().splitlines()
            return line in lines[self._seen :]

        wait_until(seen, 100, f"fork_crowd prints {line}")
        self._seen = len(self._out.read_text().splitlines())

    def evicted(self) -> list[int]:
        return [int(number) for number in re.findall(r"^evicted=(\d+)$", self._out.read_text(), re.MULTILINE)]

    def finish(self) -> None:
        assert self.process.wait(60) == 0, self._out.read_text()
        assert self._out.read_text().endswith("ok\n")


@contextmanager
def crowd(folder: Path, command: list[str], env: dict[str, str]) -> Iterator[Crowd]:
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, **env},
            start_new_session=True,
        )
    try:
        yield Crowd(process, folder / "out")
    finally:
        kill_all(process.pid)
        process.communicate()


def test_a_crowd_without_userswap(programs: Programs, tmp_path: Path) -> None:
    """The program itself is right."""
    with crowd(tmp_path, [programs("fork_crowd"), "16", str(BRANCHES), str(LEAVES)], {}) as live:
        for _ in range(ROUNDS):
            for line in ("crowd", "gone"):
                live.await_line(line)
                send(live.process)
        live.finish()
        assert live.evicted() == [0] * ROUNDS


@pytest.mark.parametrize("bits", [64, 32])
def test_thousands_share_and_nothing_is_left(
    capable: Callable[[], None], programs: Programs, verbs: Verbs, tmp_path: Path, bits: int
) -> None:
    """All share entries by count. They go in any order, and with the last of them all entries do."""
    capable()
    command = [sys.executable, "-m", "userswap", "run", "--quiet", "--ram", "512M", "--entry-bits", str(bits)]
    command += ["--", programs("fork_crowd"), "640", str(BRANCHES), str(LEAVES)]
    forks = 0
    with crowd(tmp_path, command, {**verbs.env, **CHECKED}) as live:
        for _ in range(ROUNDS):
            live.await_line("crowd")
            engine = verbs.engine()
            assert engine["entry_bits"] == bits
            assert engine["entries"] > 500
            assert engine["blocks"] > 0
            assert len(engine["programs"]) == CROWD + 1
            assert engine["forks"] == forks + CROWD - 1  # all that has to be counted: each of them shares
            forks = engine["forks"]
            send(live.process)
            live.await_line("gone")
            wait_until(lambda: verbs.engine()["entries"] == 0, 30, "no entry is in use")
            wait_until(lambda: verbs.engine()["blocks"] == 0, 30, "no block is in use")
            assert len(verbs.engine()["programs"]) == 1
            send(live.process)
        live.finish()
        assert min(live.evicted()) > 500
