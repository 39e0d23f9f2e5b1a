# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job on real input: about 1 GiB of numpy arrays, sorted, summed up and multiplied, in 256 MiB.

Runs the three jobs once with all the memory there is and once under `userswap run`, compares the results to
the last bit, and prints both times and the statistics. Ends with status 1 if a result differs.
"""

import argparse
import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20
WIDTH = 24
ROWS = 4096  # of a matrix, multiplied at a time
REFRESH_SECONDS = 0.5


class Progress:
    """One line on the terminal that says how far it is; elsewhere one line a job."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._name = ""

    def show(self, side: str, job: str, part: float, seconds: float) -> None:
        done = round(part * WIDTH)
        line = f"{side:>14} {job:<9} [{'#' * done}{'.' * (WIDTH - done)}] {part:4.0%} {seconds:6.1f} s"
        if self._live:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        elif part >= 1:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print(file=sys.stderr, flush=True)


# ---- the jobs: what runs in the child process, with numpy and nothing of userswap

Report = Callable[[float], None]


def digest(data: memoryview, report: Report, start: float) -> str:
    """sha256 of all bytes, reporting from `start` to 1."""
    checksum = hashlib.sha256()
    flat = data.cast("B")
    for at in range(0, len(flat), 32 * MIB):
        checksum.update(flat[at : at + 32 * MIB])
        report(start + (1 - start) * at / len(flat))
    return checksum.hexdigest()


def sort(size: int, report: Report) -> str:
    """Random 64-bit numbers, sorted in place."""
    import numpy as np

    array = np.empty(size // 8, np.int64)
    random = np.random.default_rng(1)
    for i in range(0, len(array), MIB):
        array[i : i + MIB] = random.integers(0, 2**63 - 1, len(array[i : i + MIB]))
        report(0.3 * i / len(array))
    array.sort()
    report(0.8)
    return digest(array.data, report, 0.8)


def running_sum(size: int, report: Report) -> str:
    """The running sum of a random walk, in a second array of the same size."""
    import numpy as np

    half = size // 16
    random = np.random.default_rng(2)
    walk, total = np.empty(half), np.empty(half)
    for i in range(0, half, MIB):
        walk[i : i + MIB] = random.standard_normal(len(walk[i : i + MIB]))
        report(0.4 * i / half)
    np.cumsum(walk, out=total)
    report(0.7)
    return digest(total.data, report, 0.7)


def multiply(size: int, report: Report) -> str:
    """A tall matrix by a square one: each row of blocks is read once, the square one stays."""
    import numpy as np

    columns = 1024
    rows = size // 2 // 8 // columns
    random = np.random.default_rng(3)
    left, right = np.empty((rows, columns)), random.standard_normal((columns, columns))
    product = np.empty((rows, columns))
    for i in range(0, rows, ROWS):
        left[i : i + ROWS] = random.standard_normal((len(left[i : i + ROWS]), columns))
        report(0.3 * i / rows)
    for i in range(0, rows, ROWS):
        np.matmul(left[i : i + ROWS], right, out=product[i : i + ROWS])
        report(0.3 + 0.4 * i / rows)
    return digest(product.data, report, 0.7)


JOBS = {"sort": sort, "sum": running_sum, "multiply": multiply}


def work(job: str, size: int) -> None:
    """The child: progress as fractions, one a line, then the result."""
    result = JOBS[job](size, lambda part: print(f"{part:.3f}", flush=True))
    print(result, flush=True)


# ---- the two sides

LONGEST_FRACTION = 8


def lines_or_pauses(fd: int) -> Iterator[str]:
    """The lines that come; an empty one each time that nothing has come for a while."""
    text = b""
    while True:
        if not select.select([fd], [], [], REFRESH_SECONDS)[0]:
            yield ""
            continue
        got = os.read(fd, 4096)
        if not got:
            return
        *lines, text = (text + got).split(b"\n")
        yield from (line.decode() for line in lines)


class Side:
    """Runs each job in a process of its own, behind `prefix`."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self._progress = progress

    def run(self, prefix: list[str], job: str, size: int) -> tuple[str, float]:
        """The result and the seconds that it took."""
        start = time.monotonic()
        command = [*prefix, sys.executable, __file__, "--work", job, "--size", str(size)]
        last, part = "", 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for line in lines_or_pauses(child.stdout.fileno()):
                last = line or last
                part = float(last) if last and len(last) < LONGEST_FRACTION else part
                self._progress.show(self.name, job, min(part, 0.999), time.monotonic() - start)
        seconds = time.monotonic() - start
        if child.returncode:
            self._progress.end()
            sys.exit(f"demo: {job} {self.name}: exit status {child.returncode}")
        self._progress.show(self.name, job, 1, seconds)
        self._progress.end()
        return last, seconds


def under_userswap(ram: str, statistics: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "userswap",
        "run",
        "--ram",
        ram,
        "--quiet",
        "--stats",
        str(statistics),
        "--",
    ]


def say(job: str, native: float, swapped: float, stats: dict[str, Any]) -> None:
    print(
        f"{job:<9} {native:6.1f} s without a limit, {swapped:6.1f} s under userswap "
        f"({swapped / native:.1f} x), equal to the last bit"
    )
    print(
        f"{'':9} peak {stats['peak_resident_bytes'] / MIB:.0f} of {stats['ram_limit_bytes'] / MIB:.0f} MiB, "
        f"{stats['pages_evicted']} pages out, {stats['pages_in']} in by {stats['faults']} faults, "
        f"{stats['store_bytes_written'] / MIB:.0f} MiB written in {stats['store_writes']} writes, "
        f"{stats['store_bytes_read'] / MIB:.0f} MiB read"
    )


def demo(ram: str, size: int) -> int:
    progress = Progress()
    print(f"{size / MIB:.0f} MiB of arrays a job, in {ram} of memory", flush=True)
    different = 0
    totals = [0.0, 0.0]
    with tempfile.TemporaryDirectory(prefix="userswap-demo-") as folder:
        for job in JOBS:
            expected, native = Side("without limit", progress).run([], job, size)
            path = Path(folder) / f"{job}.json"
            got, swapped = Side("userswap", progress).run(under_userswap(ram, path), job, size)
            stats = json.loads(path.read_text())
            totals = [totals[0] + native, totals[1] + swapped]
            if got != expected:
                different += 1
                print(f"{job}: DIFFERENT: {expected} without a limit, {got} under userswap")
            else:
                say(job, native, swapped, stats)
    print(f"all three: {totals[0]:.1f} s without a limit, {totals[1]:.1f} s under userswap in {ram}")
    return 1 if different else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ram", default="256M", help="what the jobs get under userswap (256M)")
    parser.add_argument("--size", type=int, default=1024 * MIB, help="bytes of arrays of each job (1 GiB)")
    parser.add_argument("--work", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.size)
        return 0
    return demo(options.ram, options.size)


if __name__ == "__main__":
    sys.exit(main())
