# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens around a run: a disk that others fill up, limits of the system, processes of ours that are
stopped."""

import fcntl
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
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
    Verbs,
    end_by_signal,
    name_of,
    tree_of,
    wait_until,
)
from test_areas import loop_device
from test_areas import run as command
from test_faulty import STOPPED, swaps
from userswap import cgroups

RAM = 64 * MIB
CHECKED = {"USERSWAP_CHECK": "1"}
TOLERANCE = 1.2  # these are about bytes
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2


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


@pytest.mark.root
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


# ---- an area that goes while it is used


@contextmanager
def device(folder: Path, mib: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """A loop device, and what takes its medium away: what was written is gone."""
    image = folder / "image"
    with loop_device(image, mib * MIB) as node:
        yield node, lambda: os.truncate(image, 0)


@contextmanager
def shut_down(folder: Path, mib: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """A folder, and what makes of its file system one whose device was pulled: all fails from then on."""
    with file_system(folder, mib) as place:

        def go() -> None:
            fd = os.open(place, os.O_RDONLY)
            try:
                fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
            finally:
                os.close(fd)

        yield f"{place}:{mib - 100}M", go


@pytest.mark.root
@pytest.mark.parametrize("areas", [1, 2])
@pytest.mark.parametrize("what", [device, shut_down])
def test_an_area_is_taken_away(
    userswap: Runner,
    programs: Programs,
    verbs: Verbs,
    disk: Path,
    what: Callable[[Path, int], AbstractContextManager[tuple[str, Callable[[], None]]]],
    areas: int,
) -> None:
    """What is there is lost: the program is stopped, and told which area it was."""
    torture = [programs("torture"), "60", "256", "2", "2", "5"]
    environment = {**verbs.env, **CHECKED, "USERSWAP_PACK": "0"}
    (disk / "elsewhere").mkdir()
    with what(disk, 600) as (area, take_away):
        swap = [area, f"{disk}/elsewhere:600M"][:areas]
        with userswap.start(torture, RAM, swap=swap, env=environment, tolerance=TOLERANCE) as live:
            wait_until(lambda: swaps(live, verbs), 30, "it swaps")
            take_away()
            run = live.finish(120)
    assert b"WRONG" not in run.stderr, run.describe()
    assert b"ok" not in run.stdout, run.describe()
    assert run.returncode == EXIT_OWN_ERROR, run.describe()
    last = run.stderr.splitlines()[-1]
    assert re.fullmatch(STOPPED, last), run.describe()
    assert area.encode() in last, run.describe()


# ---- time that jumps, time that is missing


@pytest.fixture
def stepped(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file that says by how much the clock is off, and what makes processes believe it."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    offset = tmp_path / "offset"
    return offset, {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def test_the_clock_is_set(
    userswap: Runner, programs: Programs, verbs: Verbs, stepped: tuple[Path, dict[str, str]]
) -> None:
    """By an hour, a day, a year, again and again, there and back; whatever waits for a time uses another."""
    offset, environment = stepped
    offset.write_text("+1y")
    date = subprocess.run(["date", "+%s"], env={**os.environ, **environment}, capture_output=True, check=True)
    assert int(date.stdout) > time.time() + 300 * 86400, "the step is believed"
    torture = [programs("torture"), "6", "160", "2", "2", "6"]
    environment |= {**verbs.env, **CHECKED}
    with userswap.start(torture, RAM, env=environment, tolerance=TOLERANCE) as live:
        for step in itertools.cycle(["+1h", "-1h", "-1d", "+1y", "-1y", "+0"]):
            if live.process.poll() is not None:
                break
            (offset.parent / "next").write_text(step)
            (offset.parent / "next").rename(offset)
            verbs.start("status", "--json").communicate(timeout=20)
        run = live.finish(120)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert 0 < run.stats["wall_seconds"] < run.seconds + 1, run.describe()


class Freezer:
    """A control group that is frozen and thawed: to its processes that is what suspending the machine is."""

    def __init__(self) -> None:
        mounts = cgroups.mounts("freezer", "/proc/self")
        version = "cgroup" if "cgroup" in mounts else "cgroup2"
        self.group = Path(mounts[version][0]) / f"userswap-test-{os.getpid()}"
        # What is written to which file; and what another one says when all are frozen.
        self._file, self._freeze, self._thaw, self._told, self._frozen = {
            "cgroup": ("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN\n"),
            "cgroup2": ("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1\n"),
        }[version]
        self.group.mkdir()

    def _is_frozen(self) -> bool:
        return self._frozen in (self.group / self._told).read_text()

    def freeze(self) -> bool:
        """Whether all were. The engine cannot answer a system call's fault any more, which the kernel does
        not interrupt, so there may be one that waits: then the machine stays awake, for now."""
        (self.group / self._file).write_text(self._freeze)
        deadline = time.monotonic() + 0.5
        while not self._is_frozen() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._is_frozen()

    def thaw(self) -> None:
        (self.group / self._file).write_text(self._thaw)

    def remove(self) -> None:
        self.thaw()
        wait_until(lambda: not (self.group / "cgroup.procs").read_text(), 20, "its processes have ended")
        self.group.rmdir()


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    made = Freezer()
    yield made
    made.remove()


@pytest.mark.root
def test_all_are_suspended_for_a_while(userswap: Runner, programs: Programs, freezer: Freezer) -> None:
    torture = [programs("torture"), "6", "160", "2", "2", "6"]
    enter = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(freezer.group))
    frozen = 0
    with userswap.start(torture, RAM, env=CHECKED, tolerance=TOLERANCE, prefix=enter) as live:
        wait_until(lambda: HELPER in map(name_of, tree_of(live.pid)), 20, "it is entered")
        while frozen < 8 and live.process.poll() is None:
            frozen += freezer.freeze()
            freezer.thaw()
            time.sleep(0.1)  # how long it works between
        run = live.finish(120)
    assert frozen == 8, run.describe()
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] == 0


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


LOOKS = "40"  # it lives for as long as entering it is tried


@pytest.mark.root
@pytest.mark.parametrize("most", [1, 2, 3, 4, 6, 8, 12, 16, 20])
def test_no_more_processes_are_allowed(programs: Programs, most: int) -> None:
    """The run is refused, or the program runs without being entered, which is said."""
    group = Path("/sys/fs/cgroup/pids/userswap-test")
    group.mkdir()
    try:
        (group / "pids.max").write_text(str(most))
        done = limited(f"echo $$ > {group}/cgroup.procs", "64M", [programs("fill_fast"), "96", "1", LOOKS])
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
