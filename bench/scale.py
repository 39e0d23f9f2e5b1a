# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fault, an eviction, a byte of swapoff and a page's metadata cost as everything grows.

`python -m bench.scale` runs `workloads/scale.c` under userswap with a fixed memory: with more and more
swapped, with more threads, with more processes. Large amounts are pages of one repeated word, which take no
disk; their entries and page tables are as any other's. Swapoff moves random bits from one file to another.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

from bench import kernel
from bench.__main__ import interrupted
from bench.figures import row
from bench.workloads import compiled

matplotlib.use("Agg")
import matplotlib.pyplot

HERE = Path(__file__).parent
ENGINE = "userswap-engine"
FIXED_GIB = 4  # swapped where threads or processes grow
PATIENCE = 600.0
OPS = 1 << 15  # random reads, in all


@dataclasses.dataclass(frozen=True)
class Case:
    """Of an axis ("swapped GiB", "threads", "processes") the point at which it is run."""

    axis: str
    at: int
    gib: int = FIXED_GIB
    processes: int = 1
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class Cost:
    """us of filling a page, which evicts one, and of a random read; bytes of the engine's own memory then,
    but for packed pages; pages that were swapped."""

    evict_us: float
    fault_us: float
    own_bytes: int
    pages: int


class Live:
    """A program under userswap that has filled its memory."""

    def __init__(self, case: Case, kind: str, ram: str, swap: list[str], binary: Path, folder: Path) -> None:
        (folder / "runtime").mkdir(mode=0o700, exist_ok=True)
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder / "runtime")}
        words = [str(case.gib << 10), str(case.processes), str(case.threads), str(OPS), kind]
        command = [sys.executable, "-m", "userswap", "run", "--quiet", "--ram", ram]
        command += [word for area in swap for word in ("--swap", area)]
        self._process = subprocess.Popen(
            [*command, "--", str(binary), *words],
            env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "filled\n":
            sys.exit(f"bench: {case}: it did not come to be filled")

    def userswap(self, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "userswap", *words],
            env=self._environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def status(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.userswap("status", "--json"))["engines"][0]
        return found

    def own_bytes(self, status: dict[str, int]) -> int:
        """Of memory that the engine has for itself, without what it keeps for the program."""
        keeper = status["pid"]
        below = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        (engine,) = [pid for pid in below if Path(f"/proc/{pid}/comm").read_text().strip() == ENGINE]
        rollup = Path(f"/proc/{engine}/smaps_rollup").read_text()
        kib = sum(int(size) for size in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB", rollup, re.MULTILINE))
        return (kib << 10) - status["packed_resident_bytes"]

    def settle(self) -> None:
        """Until nothing is evicted any more."""
        until = time.monotonic() + PATIENCE
        before = -1
        while (now := self.status()["pages_evicted"]) != before and time.monotonic() < until:
            before = now
            time.sleep(0.5)

    def finish(self) -> dict[str, dict[str, float]]:
        out, _ = self._process.communicate("\n", timeout=PATIENCE)
        if self._process.returncode != 0:
            sys.exit(f"bench: it ended with {self._process.returncode}")
        printed: dict[str, dict[str, float]] = json.loads(out)
        return printed

    def end(self) -> None:
        """However the case ended."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()


@contextlib.contextmanager
def live(case: Case, kind: str, ram: str, swap: list[str], binary: Path, folder: Path) -> Iterator[Live]:
    one = Live(case, kind, ram, swap, binary, folder)
    try:
        yield one
    finally:
        one.end()


def measure(case: Case, options: argparse.Namespace, binary: Path, folder: Path) -> Cost:
    with live(case, "word", options.ram, [f"{folder}:1G"], binary, folder) as one:
        one.settle()
        status = one.status()
        own = one.own_bytes(status)
        phases = one.finish()
    us = {name: phase["seconds"] / phase["units"] * 1e6 for name, phase in phases.items()}
    return Cost(us["fill"], us["random reads"], own, status["entries"])


def swapoff(gib: int, options: argparse.Namespace, binary: Path, folder: Path) -> float:
    """ns a byte."""
    first, second = folder / "first", folder / "second"
    for path in (first, second):
        path.mkdir(exist_ok=True)
    case = Case("swapped GiB", gib, gib)
    with live(case, "bits", options.ram, [f"{first}:{gib + 1}G"], binary, folder) as one:
        one.settle()
        one.userswap("swapon", f"{second}:{gib + 1}G")
        said = one.userswap("swapoff", str(first))
        one.finish()
    found = re.match(r"(\d+) MiB moved in ([\d.]+) s", said)
    assert found, said
    return float(found[2]) * 1e9 / (int(found[1]) << 20)


def table(costs: dict[Case, Cost]) -> str:
    head = ["", "us an eviction", "us a random fault", "engine's own, MiB", "pages swapped"]
    lines = [row(head), row(["---", *["---:"] * 4])]
    for case, cost in costs.items():
        cells = [f"{cost.evict_us:.2f}", f"{cost.fault_us:.1f}", f"{cost.own_bytes / 2**20:.1f}"]
        lines.append(row([f"{case.at} {case.axis}", *cells, str(cost.pages)]))
    return "\n".join(lines)


def bytes_a_page(costs: dict[Case, Cost]) -> float | None:
    """Of metadata: by how much the engine is larger with the most swapped than with the least."""
    found = [cost for case, cost in costs.items() if case.axis == "swapped GiB"]
    if len(found) < 2:
        return None
    return (found[-1].own_bytes - found[0].own_bytes) / (found[-1].pages - found[0].pages)


def plot(costs: dict[Case, Cost], moved: dict[int, float], file: Path) -> None:
    axes_of = list(dict.fromkeys(case.axis for case in costs))
    figure, all_axes = matplotlib.pyplot.subplots(
        1, len(axes_of) + 1, figsize=(3.4 * (len(axes_of) + 1), 3.2), layout="constrained", squeeze=False
    )
    for axes, name in zip(all_axes[0], axes_of, strict=False):
        points = [(case.at, cost) for case, cost in costs.items() if case.axis == name]
        at = [one for one, _ in points]
        axes.plot(at, [cost.fault_us for _, cost in points], marker="o", label="random fault")
        axes.plot(at, [cost.evict_us for _, cost in points], marker="o", label="eviction")
        axes.set(xlabel=name, ylabel="us", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.legend()
    axes = all_axes[0][-1]
    axes.plot(list(moved), list(moved.values()), marker="o", label="swapoff")
    axes.set(xlabel="swapped GiB", ylabel="ns a byte", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.legend()
    figure.savefig(file)
    matplotlib.pyplot.close(figure)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gib", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="swapped")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--swapoff", nargs="*", type=int, default=[1, 2, 4, 8, 16], help="GiB of swapoff")
    parser.add_argument("--ram", default="768M", help="what userswap gets (768M)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the swap lies")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it")
    return parser.parse_args(argv)


def cases(options: argparse.Namespace) -> list[Case]:
    found = [Case("swapped GiB", gib, gib) for gib in options.gib]
    found += [Case("threads", count, threads=count) for count in options.threads]
    return found + [Case("processes", count, processes=count) for count in options.processes]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, interrupted)
    with tempfile.TemporaryDirectory(prefix=kernel.PREFIX, dir=options.directory) as name:
        folder = Path(name)
        binary = compiled(HERE / "workloads/scale.c", folder)
        costs: dict[Case, Cost] = {}
        for case in cases(options):
            costs[case] = measure(case, options, binary, folder)
            print(f"{case.at} {case.axis}: {costs[case]}", file=sys.stderr)
        moved = {gib: swapoff(gib, options, binary, folder) for gib in options.swapoff}
    print(table(costs))
    size = bytes_a_page(costs)
    if size is not None:
        print(f"\nMetadata: {size:.1f} bytes a page.")
    for gib, ns in moved.items():
        print(f"\nSwapoff of {gib} GiB: {ns:.2f} ns a byte.")
    if options.plot:
        plot(costs, moved, options.plot)


if __name__ == "__main__":
    main()
