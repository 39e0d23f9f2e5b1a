# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens around a run: a disk that others fill up, limits of the system, processes of ours that are
stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import (
    ENGINE,
    EXIT_OWN_ERROR,
    HELPER,
    KEEPER,
    MIB,
    UNBOUNDED,
    Live,
    Programs,
    Runner,
    end_by_signal,
    name_of,
    tree_of,
    wait_until,
)
from test_areas import run as command

RAM = 64 * MIB
CHECKED = {"USERSWAP_CHECK": "1"}
TOLERANCE = 1.2  # these are about bytes

needs_root = pytest.mark.root


# ---- a disk that others fill up


@contextmanager
def file_system(folder: Path, mib: int) -> Iterator[Path]:
    """One of its own, of so many MiB."""
    image, place = folder / "image", folder / "place"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    place.mkdir()
    command("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
    command("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        command("umount", place)


def fill_up(place: Path) -> None:
    """All that can be had of it."""
    with (place / "others").open("wb") as file:
        step, at = 64 * MIB, 0
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), at, step)
                at += step
            except OSError:
                step //= 2


@needs_root
@pytest.mark.parametrize("areas", [1, 2])
def test_a_disk_that_fills_up(userswap: Runner, programs: Programs, disk: Path, areas: int) -> None:
    """What is written goes elsewhere, where there is an elsewhere; else the program is stopped, which is
    said."""
    torture = [programs("torture"), "6", "256", "2", "2", "5"]
    environment = {**CHECKED, "USERSWAP_PACK": "0"}
    (disk / "elsewhere").mkdir()
    with file_system(disk, 600) as place:
        swap = [f"{place}:500M", f"{disk}/elsewhere:600M"][:areas]
        with userswap.start(torture, RAM, swap=swap, env=environment, tolerance=TOLERANCE) as live:
            wait_until(lambda: os.statvfs(place).f_bfree * 4096 < 580 * MIB, 30, "it swaps")
            fill_up(place)
            run = live.finish(120)
    assert b"WRONG" not in run.stderr, run.describe()
    if areas == 2:
        assert run.stdout.endswith(b"ok\n"), run.describe()
    else:
        assert run.returncode == EXIT_OWN_ERROR, run.describe()
        assert run.stderr == b"userswap: the swap areas are full\n", run.describe()


# ---- processes of ours that are stopped


def stop_and_continue(live: Live, name: str) -> None:
    """All of this name, again and again."""
    for _ in range(4):
        stopped = [pid for pid in tree_of(live.pid) if name_of(pid) == name]
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.4)  # how long they are stopped
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)  # ... and not


@pytest.mark.parametrize("name", [ENGINE, KEEPER, HELPER])
def test_one_of_ours_is_stopped_for_a_while(userswap: Runner, programs: Programs, name: str) -> None:
    """The program waits, or does not notice. Meanwhile nobody holds back what it maps anew."""
    torture = [programs("torture"), "4", "160", "2", "2", "6"]
    with userswap.start(torture, RAM, env=CHECKED, tolerance=UNBOUNDED) as live:
        wait_until(lambda: HELPER in map(name_of, tree_of(live.pid)), 20, "it is entered")
        stop_and_continue(live, name)
        run = live.finish(120)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] == 0


@pytest.mark.parametrize("name", [ENGINE, KEEPER, HELPER])
def test_the_limit_holds_meanwhile(userswap: Runner, programs: Programs, name: str) -> None:
    """For all that was mapped before."""
    with userswap.start([programs("loop_verify"), "160"], RAM, env=CHECKED) as live:
        live.wait_for_line("ready", 60)
        stop_and_continue(live, name)
        run = end_by_signal(live, "loop_verify-gcc")
    assert run.stats["takeovers"] == 0


# ---- limits of the system


def limited(limits: str, ram: str, program: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    own = [sys.executable, "-m", "userswap", "run", "--ram", ram, "--", *program]
    words = ["sh", "-c", f'{limits}; exec "$@"', "sh", *own]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "limits", ["ulimit -l 0", "ulimit -s unlimited", "ulimit -c unlimited", "ulimit -n 256"]
)
def test_limits_that_do_no_harm(programs: Programs, limits: str) -> None:
    done = limited(limits, "64M", [programs("torture"), "2", "128", "2", "1", "7"])
    assert done.returncode == 0, done
    assert done.stdout.endswith("ok\n"), done


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ("ulimit -n 48", "open files: 48 at most: the engine needs 256"),
        ("ulimit -v 200000", "memory"),
        ("ulimit -f 1000", "File too large"),
    ],
)
def test_limits_that_are_too_narrow(programs: Programs, limits: str, why: str) -> None:
    """Refused, or the program is stopped; one line says why."""
    done = limited(limits, "64M", [programs("torture"), "2", "128", "2", "1", "8"])
    assert done.returncode == EXIT_OWN_ERROR, done
    assert re.fullmatch(rf"userswap: .*{why}.*\n", done.stderr), done
    assert "WRONG" not in done.stderr


@needs_root
@pytest.mark.parametrize("most", [1, 2, 3, 4, 6, 8, 12, 16, 20])
def test_no_more_processes_are_allowed(programs: Programs, most: int) -> None:
    """The run is refused, or the program runs without being entered, which is said."""
    group = Path("/sys/fs/cgroup/pids/userswap-test")
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(most))
        done = limited(f"echo $$ > {group}/cgroup.procs", "64M", [programs("fill_fast"), "96", "1"])
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 10, "all have ended")
        group.rmdir()
    assert "WRONG" not in done.stderr
    assert done.returncode in (0, EXIT_OWN_ERROR), done
    said = [
        line for line in done.stderr.splitlines() if "fill_fast.c" not in line
    ]  # it may be refused a thread
    assert len(said) == 1, done
    assert re.fullmatch("userswap: .*", said[0]), done
    assert "internal error" not in said[0]
    if done.returncode == 0:
        assert "left alone: fill_fast" in said[0], done
