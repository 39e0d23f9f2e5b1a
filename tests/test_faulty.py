# SPDX-License-Identifier: GPL-2.0-or-later
"""Media that fail: faults (faulty.pyx) by moments by programs. Never a wrong byte: a program either runs to
its end, or is stopped with the place and the reason. All programs at each moment, not one of them, by
USERSWAP_ALL=1."""

import itertools
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from support import (
    ENGINE,
    EXIT_OWN_ERROR,
    MIB,
    PROGRAMS,
    Live,
    Programs,
    Runner,
    Verbs,
    name_of,
    tree_of,
)

RAM = 64 * MIB
AMPLE = 300  # MiB of an area that has more room than is needed
# A read that fails is made again, and then does not fail: these are survived.
PASSING = ["read:eio:5", "read:short:5", "read:torn:5", "read:flip:5", "read:delay:50:2", "write:delay:5:2"]
# What is written wrong cannot be had back; an area that takes nothing ends up full.
LASTING = ["read:eio:1", "read:flip:1", "write:torn:3", "write:flip:1", "write:eio:1", "write:enospc:1"]
OTHERS = ["write:eio:4", "write:short:3", "write:enospc:5", "discard:eio:1"]
MOMENTS = ["use", "clean", "swapoff", "demotion", "takeover"]
STOPPED = (
    rb"userswap: (swapped memory (came back damaged|could not be read back: error \(-\d+\)), in swap area "
    rb"\S+ at byte \d+|swapped memory came back damaged from a swap area that is gone"
    rb"|the swap areas (are full|cannot be written: error \(-\d+\), in swap area \S+ at byte \d+))"
)


def command(programs: Programs, name: str) -> list[str]:
    if name == "dict":
        return [sys.executable, str(PROGRAMS / "walk_dict.py"), "60000"]
    if name == "torture":
        return [programs("torture"), "2", "128", "3", "2", "1"]
    return [programs("reread"), "128", "10000"]


def cases() -> list[tuple[str, str, str]]:
    if os.environ.get("USERSWAP_ALL"):
        faults = [*PASSING, *LASTING, *OTHERS]
        return list(itertools.product(faults, MOMENTS, ["reread", "torture", "dict"]))
    # Another program for each. What is packed, and so stays in memory until it is demoted, is the dict.
    few = [
        *itertools.product(LASTING, MOMENTS),
        *itertools.product(PASSING, ["use", "clean"]),
        *itertools.product(OTHERS, ["clean"]),
    ]
    return [
        (fault, moment, "dict" if moment == "demotion" else ("reread", "torture")[at % 2])
        for at, (fault, moment) in enumerate(few)
    ]


def act(live: Live, verbs: Verbs, moment: str, folder: Path) -> None:
    """What is to be done once it swaps, at some moments."""
    if moment == "swapoff":
        verbs.start("swapon", f"{folder}:{AMPLE}M", "--priority", "-1").communicate(timeout=60)
        verbs.start("swapoff", "0").communicate(timeout=60)
    elif moment == "takeover":
        for pid in tree_of(live.pid):
            if name_of(pid) == ENGINE:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def swaps(live: Live, verbs: Verbs) -> bool:
    """Whether it has swapped something; or has ended."""
    out, _ = verbs.start("status", "--json").communicate(timeout=60)
    written = re.search(r'"store_bytes_written": (\d+)', out)
    return live.process.poll() is not None or (written is not None and int(written[1]) > 8 * MIB)


@pytest.mark.parametrize(("fault", "moment", "name"), cases())
def test_a_fault(
    userswap: Runner, programs: Programs, verbs: Verbs, disk: Path, fault: str, moment: str, name: str
) -> None:
    size = 140 if moment == "clean" else AMPLE
    environment = {**verbs.env, "USERSWAP_FAULTY": fault, "USERSWAP_CHECK": "1"}
    line = command(programs, name)
    swap = [f"{disk}:{size}M"]
    with userswap.start(line, RAM, swap=swap, env=environment, tolerance=math.inf) as live:
        if moment in ("swapoff", "takeover"):
            while not swaps(live, verbs):
                pass
            act(live, verbs, moment, disk)
        run = live.finish(100)
    assert b"WRONG" not in run.stderr, run.describe()
    if run.returncode == 0:
        expected = subprocess.run(line, stdout=subprocess.PIPE, check=True) if name == "dict" else None
        assert expected is None or run.stdout == expected.stdout, run.describe()
        assert run.stats["store_bytes_written"] > 0 or fault in LASTING, run.describe()
    else:
        assert run.returncode == EXIT_OWN_ERROR, run.describe()
        assert re.fullmatch(STOPPED, run.stderr.splitlines()[-1]), run.describe()
        assert fault not in PASSING, run.describe()
        assert b"ok" not in run.stdout, run.describe()


def test_a_read_that_fails_is_made_again(userswap: Runner, programs: Programs, disk: Path) -> None:
    for fault in ("eio", "short", "torn", "flip"):
        environment = {"USERSWAP_FAULTY": f"read:{fault}:20"}
        run = userswap([programs("reread"), "160", "5000"], RAM, swap=[f"{disk}:{AMPLE}M"], env=environment)
        assert run.stats["reads_repeated"] > 10, run.describe()


def test_damage_is_told_with_its_place(userswap: Runner, programs: Programs, disk: Path) -> None:
    """By the area's name, as it was given."""
    environment = {"USERSWAP_FAULTY": "write:torn:1"}
    with userswap.start(
        [programs("reread"), "160", "5000"], RAM, swap=[f"{disk}:{AMPLE}M"], env=environment
    ) as live:
        run = live.finish(60)
    assert run.returncode == EXIT_OWN_ERROR
    said = f"userswap: swapped memory came back damaged, in swap area {disk}:{AMPLE}M at byte "
    last = run.stderr.splitlines()[-1].decode()
    assert last.startswith(said), run.describe()
    # Of a torn block the second half is lost.
    assert int(last.removeprefix(said)) % (2 * MIB) >= MIB - 32 * 4096, last
