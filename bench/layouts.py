# SPDX-License-Identifier: GPL-2.0-or-later
"""The two layouts of an entry of the swapper space, side by side.

`python -m bench.layouts` fills a space of 32 GiB of pages in quarters, by the engine's own space and log on
an area that keeps nothing, and asks the kernel what memory that took: each time in a process of its own, so
that nothing is taken for free that another one has left. Then what a count costs that is continued outside of
the entry, and a program under userswap, in an order that alternates from round to round.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.workloads import MICRO_SOURCE, compiled
from userswap import tests_door as door

LAYOUTS = (64, 32)
QUARTER = (8 << 30) // 4096  # pages
SLOTS = 1 << 15
PACKED = 1365  # bytes of a page that is packed to a third
ROUNDS = 100_000
Filling = tuple[Callable[[int], None], Callable[[int], None]]  # adds so many pages; takes all of them away


# ---- memory


def anonymous() -> int:
    """Bytes of memory that this process has for itself."""
    found = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def filled(bits: int) -> Filling:
    space = door.Space(bits)

    def remove(pages: int) -> None:
        for offset in range(1, pages + 1):
            space.free(offset)

    return space.fill, remove


def stored(bits: int, length: int) -> Filling:
    log = door.Log(8, bits)
    log.add_area_of_nothing(SLOTS)

    def remove(pages: int) -> None:
        for offset in range(1, pages + 1):
            log.put(offset)

    return lambda pages: log.fill(pages, length), remove


def page_table(bits: int) -> Filling:
    """The same for both."""
    table = door.PageTable()
    done = 0

    def add(pages: int) -> None:
        nonlocal done
        for page in range(done, done + pages):
            table.set(page, 1)
        done += pages

    return add, lambda pages: None


PAGE_TABLE = "a page of a program, in its page table"
KINDS: dict[str, Callable[[int], Filling]] = {
    "a filled page": filled,
    "a stored page": lambda bits: stored(bits, 4096),
    "a stored page, packed": lambda bits: stored(bits, PACKED),
    PAGE_TABLE: page_table,
}


def memory(kind: str, bits: int) -> list[int]:
    """Bytes with nothing in it, with one to four quarters, and when all has gone again."""
    before = anonymous()
    add, remove = KINDS[kind](bits)
    found = [anonymous() - before]
    for _ in range(4):
        add(QUARTER)
        found.append(anonymous() - before)
    remove(4 * QUARTER)
    return [*found, anonymous() - before]


def alone() -> ProcessPoolExecutor:
    """Each call in a process of its own."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)


def print_memory() -> None:
    print("| bytes for | entry | 0 %, in all | 25 % | 50 % | 75 % | 100 % | all gone again, in all |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with alone() as pool:
        for kind in KINDS:
            for bits in LAYOUTS if kind != PAGE_TABLE else LAYOUTS[:1]:
                empty, *quarters, left = pool.submit(memory, kind, bits).result()
                each = [f"{taken / (QUARTER * (at + 1)):.2f}" for at, taken in enumerate(quarters)]
                layout = f"{bits} bits" if kind != PAGE_TABLE else ""
                print(f"| {kind} | {layout} | {empty:,} | {' | '.join(each)} | {left:,} |", flush=True)


# ---- counts


def nanoseconds(bits: int, first: int, gets: int) -> float:
    """Of counting up or down once, between `first` and that plus `gets`; the best of five."""
    space = door.Space(bits)
    offset = space.allocate("stored", first, 1)
    return min(space.turn(offset, gets, ROUNDS) for _ in range(5))


def print_counts() -> None:
    print("| | " + " | ".join(f"{bits} bits" for bits in LAYOUTS) + " |\n| --- | ---: | ---: |")
    spaces = {bits: door.Space(bits) for bits in LAYOUTS}
    more = {bits: spaces[bits].count_more for bits in LAYOUTS}
    rows: dict[str, Callable[[int], str]] = {
        "largest swap space": lambda bits: f"{spaces[bits].largest_swap >> 30:,} GiB",
        "greatest count in the entry": lambda bits: f"{more[bits]:,}",
        "... and in all": lambda bits: f"{more[bits] + 65535:,}",
        "counting once, in the entry, ns": lambda bits: f"{nanoseconds(bits, 1, 5):.1f}",
        "... in the continuation": lambda bits: f"{nanoseconds(bits, more[bits] + 1, 5):.1f}",
        "... where that is made and freed each time": lambda bits: f"{nanoseconds(bits, more[bits], 1):.1f}",
        "bytes more for an entry, where all are continued": lambda bits: f"{alone_continued(bits):.2f}",
    }
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row(bits) for bits in LAYOUTS)} |", flush=True)


def alone_continued(bits: int) -> float:
    with alone() as pool:
        return pool.submit(continued, bits).result()


def continued(bits: int) -> float:
    space = door.Space(bits)
    offsets = [space.allocate("stored", space.count_more, 1) for _ in range(1 << 15)]
    before = anonymous()
    for offset in offsets:
        space.get(offset)
    return (anonymous() - before) / len(offsets)


# ---- a program


def run_once(binary: Path, bits: int, options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="userswap-bench-", dir="/var/tmp") as folder:
        command = [sys.executable, "-m", "userswap", "run", "--quiet", "--ram", f"{options.ram}M"]
        command += ["--swap", f"{folder}:{options.size + options.ram}M", "--stats", f"{folder}/stats.json"]
        command += [
            "--entry-bits",
            str(bits),
            "--",
            str(binary),
            str(options.size),
            str(options.ops),
            "1",
            "1",
        ]
        os.sync()
        begun = time.monotonic()
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout
        seconds = time.monotonic() - begun
        stats = json.loads(Path(folder, "stats.json").read_text())
    assert stats["entry_bits"] == bits
    phases = {f"{phase}, s": timing["seconds"] for phase, timing in json.loads(out).items()}
    counts = {name: stats[name] for name in ("faults", "pages_refaulted", "pages_in", "pages_evicted")}
    return {**phases, "whole run, s": seconds, **counts}


def print_program(options: argparse.Namespace) -> None:
    found: dict[int, list[dict[str, float]]] = {bits: [] for bits in LAYOUTS}
    with tempfile.TemporaryDirectory(prefix="userswap-bench-") as folder:
        binary = compiled(MICRO_SOURCE, Path(folder))
        for number in range(options.rounds):
            for bits in LAYOUTS if number % 2 == 0 else LAYOUTS[::-1]:
                print(f"round {number + 1} of {options.rounds}: {bits} bits", file=sys.stderr)
                found[bits].append(run_once(binary, bits, options))
    print("| | 64 bits | 32 bits | 32 / 64 |\n| --- | ---: | ---: | ---: |")
    for name in found[64][0]:
        wide, narrow = (statistics.median(run[name] for run in found[bits]) for bits in LAYOUTS)
        digits = 3 if name.endswith(", s") else 0
        print(f"| {name} | {wide:,.{digits}f} | {narrow:,.{digits}f} | {narrow / max(wide, 1e-9):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.layouts")
    parser.add_argument("--rounds", type=int, default=5, help="of the program (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="its memory (%(default)s)")
    parser.add_argument("--ram", type=int, default=128, metavar="MIB", help="what it is given (%(default)s)")
    parser.add_argument("--ops", type=int, default=16384, help="random reads, and writes (%(default)s)")
    parser.add_argument("--without-memory", action="store_true", help="the program alone")
    options = parser.parse_args()
    if not options.without_memory:
        print_memory()
        print()
        print_counts()
        print()
    if options.rounds:
        print_program(options)


if __name__ == "__main__":
    main()
