# SPDX-License-Identifier: GPL-2.0-or-later
"""Law 1: a program never reads a byte that it did not write. One behaviour a test.

Each program of tests/programs checks itself to the last byte, and says how many of the pages it is about to
use are out of memory, so that no test passes without having tested anything.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import (
    ENGINE,
    EXIT_OWN_ERROR,
    MIB,
    Programs,
    Runner,
    engine_of,
    keeper_of,
    name_of,
    tree_of,
    wait_until,
)

RAM = 64 * MIB
COMPACT = Path("/proc/sys/vm/compact_memory")
BALLAST_MIB = "128"

BEHAVIOURS = [
    "fork_evicted",
    "fork_race",
    "wipe_on_fork",
    "exec_evicted",
    "vfork_evicted",
    "spawn_evicted",
    "threads_evicted",
    "mremap_move",
    "mremap_back",
    "mremap_grow",
    "mremap_grow_clean",
    "mremap_shrink",
    "mremap_dontunmap",
    "munmap_whole",
    "munmap_partial",
    "madvise_dontneed",
    "madvise_free",
    "mprotect_evicted",
    "syscalls_evicted",
    "uring_registered",
    "odirect",
    "futex_evicted",
    "guard_evicted",
]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour(userswap: Runner, programs: Programs, behaviour: str) -> None:
    run = userswap([programs(behaviour), BALLAST_MIB], RAM, timeout=60)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour_without_userswap(native: Runner, programs: Programs, behaviour: str) -> None:
    """The programs themselves are right: what they check holds under the kernel alone."""
    run = native.native([programs(behaviour), BALLAST_MIB])
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") == 0, run.describe()


def test_the_first_fork_makes_one_address_space(userswap: Runner, programs: Programs) -> None:
    """A child that was entered before its fork had been understood was two, and told of each fork twice.
    Pages of the one were out of the other's reach: not to be evicted, or there where none should be."""
    run = userswap([programs("fork_first"), BALLAST_MIB], RAM, timeout=100)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()
    assert run.stats["forks"] == run.number("forks"), run.describe()
    # What is shared is counted once from the beginning, and what is counted is what is seen from outside.
    assert run.stats["peak_resident_bytes"] == pytest.approx(run.sampled.peak_bytes, rel=0.12), run.describe()


@contextmanager
def compaction() -> Iterator[None]:
    """Meanwhile the kernel moves all memory of the machine that can be moved to one end, again and again."""
    over = threading.Event()

    def compact() -> None:
        while not over.is_set():
            COMPACT.write_text("1")

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pages_migrated() -> int:
    found = re.search(r"^pgmigrate_success (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.root
def test_memory_is_compacted_meanwhile(userswap: Runner, programs: Programs) -> None:
    """The kernel moves pages that are being evicted from one place of memory to another."""
    before = pages_migrated()
    with compaction():
        run = userswap([programs("reread"), "160", "40000"], RAM, timeout=120)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["pages_evicted"] > 40_000, run.describe()
    assert pages_migrated() - before > 1000


def test_swap_exhausted_stops_the_program(userswap: Runner, programs: Programs, tmp_path: Path) -> None:
    command = [programs("fill_fast"), "512", "1"]
    run = userswap(command, RAM, timeout=60, status=EXIT_OWN_ERROR, swap=[f"{tmp_path}:64M"])
    assert b"WRONG" not in run.stderr, run.describe()
    assert b"ok" not in run.stdout, run.describe()
    assert re.search(rb"^userswap: .*swap", run.stderr, re.MULTILINE), run.describe()


def has_written(engine: int) -> bool:
    """Whether there is anything in its swap file, which has no name."""
    for fd in Path(f"/proc/{engine}/fd").iterdir():
        with suppress(FileNotFoundError):  # it opens and closes others meanwhile
            if re.search(r"/#\d+ \(deleted\)$", str(fd.readlink())) and fd.stat().st_blocks > 0:
                return True
    return False


def test_keeper_killed_while_the_program_fills(userswap: Runner, programs: Programs) -> None:
    """Nobody would take over if the engine died. (What happens if that dies: test_takeover.py.)"""
    with userswap.start([programs("futex_evicted"), "4096"], RAM) as live:
        wait_until(lambda: ENGINE in map(name_of, tree_of(live.pid)), 30, "there is an engine")
        engine = engine_of(live.pid)
        wait_until(lambda: has_written(engine), 30, "something is swapped")
        keeper = keeper_of(live.pid)
        os.kill(keeper, signal.SIGKILL)
        run = live.finish(30)
    assert run.returncode == EXIT_OWN_ERROR, run.describe()
    assert b"WRONG" not in run.stderr, run.describe()


@pytest.mark.parametrize("ram", ["1M", "4M"])
def test_ram_too_small_says_the_least(userswap: Runner, ram: str) -> None:
    run = userswap(["true"], ram, timeout=30, status=EXIT_OWN_ERROR)
    assert run.stdout == b""
    assert run.stderr.count(b"\n") == 1, run.describe()
    assert re.search(rb"least\D*\d+(\.\d+)? ?[KMG]", run.stderr), run.describe()
