# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose swap a program runs under, and what that costs beside time."""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import kernel

# "userswap" has packed pages in memory and a file; "userswap-file" packs nothing.
SIDES = ("none", "swapfile", "zram", "zswap", "userswap", "userswap-file", "userswap-encrypted")
USUAL = SIDES[:-1]
PAGE = 4096
UNFAIR = 0.03  # of the memory that all sides have


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program runs: how its command becomes one under this side's swap, with what in the environment;
    and how to ask, once it has ended, for the bytes moved to swap and back, and for those of memory that were
    taken at most beside what is limited."""

    command: Callable[[list[str]], list[str]] = lambda command: command
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    moved: Callable[[], tuple[int, int]] = lambda: (0, 0)
    beside: Callable[[], int] = lambda: 0


def _swapped() -> tuple[int, int]:
    """Bytes that the kernel has swapped out and in since it started."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counts["pswpout"]) * PAGE, int(counts["pswpin"]) * PAGE


@contextlib.contextmanager
def _kernel(name: str, limit: int, swap: int, directory: Path, swappiness: int) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(kernel.global_swappiness(swappiness))
        group = stack.enter_context(kernel.memory_cgroup(limit, swappiness))
        if name == "zram":
            device = stack.enter_context(kernel.zram(swap))
            place = Place(beside=lambda: kernel.zram_memory(device))
        else:
            stack.enter_context(kernel.swap_file(directory, swap))
            if name == "zswap":
                stack.enter_context(kernel.zswap())
            place = Place()
        before = _swapped()

        def moved() -> tuple[int, int]:
            now = _swapped()
            return now[0] - before[0], now[1] - before[1]

        yield dataclasses.replace(place, command=lambda command: kernel.enter(group, command), moved=moved)


@contextlib.contextmanager
def _userswap(name: str, limit: int, swap: int, directory: Path) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix=kernel.PREFIX, dir=directory) as folder:
        statistics = Path(folder, "stats.json")
        run = [sys.executable, "-m", "userswap", "run", "--quiet", "--ram", str(limit)]
        run += ["--swap", f"{folder}:{swap}", "--stats", str(statistics)]
        run += ["--encrypt"] if name == "userswap-encrypted" else []
        environment = {"USERSWAP_PACK": "0"} if name == "userswap-file" else {}

        def moved() -> tuple[int, int]:
            counts = json.loads(statistics.read_text())
            return counts["store_bytes_written"], counts["store_bytes_read"]

        yield Place(lambda command: [*run, "--", *command], environment, moved)


@contextlib.contextmanager
def side(name: str, limit: int, swap: int, directory: Path, swappiness: int = 60) -> Iterator[Place]:
    """A side of SIDES with `limit` bytes of memory in all and `swap` bytes of swap below `directory`; all
    of it is gone after the block. Raises kernel.Unavailable where it cannot be had."""
    if name == "none":
        yield Place()
    elif name.startswith("userswap"):
        with _userswap(name, limit, swap, directory) as place:
            yield place
    else:
        with _kernel(name, limit, swap, directory, swappiness) as place:
            yield place


def is_fair(memory: int, taken: int) -> bool:
    """Whether so much may be taken where `memory` is what all sides have."""
    return abs(memory - taken) <= UNFAIR * memory


def fair_grant(memory: int, need: int, granted: int, beside: int) -> int:
    """The limit of a program such that with what its swap takes beside it, it has `memory` bytes in all: by
    what was taken when it had `granted` of the `need` bytes that it wants. Not above 0 where there is none,
    as what is swapped needs about as much memory as it frees."""
    ratio = beside / max(need - granted, 1)
    if ratio >= 0.99:
        return 0
    return int((memory - need * ratio) / (1 - ratio))


def busy_seconds() -> float:
    """CPU time of everything on the machine since it started: programs, the kernel, our engine."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, hard, soft, *_ = map(int, fields)
    return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")
