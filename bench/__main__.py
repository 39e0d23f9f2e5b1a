# SPDX-License-Identifier: GPL-2.0-or-later
"""Run programs under the kernel's swap and under userswap, with the same memory, and compare.

Each round runs every side once, in an order that alternates from round to round, so that a machine that
grows slower or faster favours nobody. Each result is checked. The memory is a share of what the program needs
when it has all that it wants, which is measured first.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console

from bench import kernel, plots, sides
from bench.figures import Figures, Result, Timing, costs, table
from bench.workloads import NAMES, command

MIB = 1 << 20
SEED = 1
KILLED = "killed"
NO_ROOM = "what is swapped does not fit in this memory"
TRIES = 6


def interrupted(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that swap files, devices and groups go away."""
    sys.exit(128 + number)


class Bench:
    """The runs of one call."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options = options
        self._console = console
        self._checks: dict[str, object] = {}
        self._peaks: dict[str, list[int]] = {}
        self._granted: dict[tuple[str, str, int], int] = {}  # the limit that was found to be fair
        self.results: list[Result] = []

    def peak(self, name: str) -> int:
        """Bytes that a workload needs: the median of what it took without a limit."""
        return int(statistics.median(self._peaks[name]))

    def run(self, name: str, line: list[str], side: str, share: int, number: int) -> None:
        """Once more; a result that is wrong ends the bench, a program that does not end is noted."""
        need = self._options.size * MIB if side == "none" else self.peak(name)
        limit = need * share // 100
        started = f"{name}, {side}" + ("" if side == "none" else f" at {share} %, {limit // MIB} MiB")
        self._console.print(f"round {number + 1} of {self._options.rounds}: {started}", highlight=False)
        result = self._run_fairly(name, line, side, share, number, need, limit)
        if result.error:
            self._console.print(f"  {result.error}", highlight=False, markup=False)
        self.results.append(result)

    def _run_fairly(
        self, name: str, line: list[str], side: str, share: int, number: int, need: int, limit: int
    ) -> Result:
        """With what a side takes beside the limit counted; and again where the kernel kills it, whose reclaim
        gives up at times."""
        key = (name, side, share)
        granted = self._granted.setdefault(key, limit)
        result = Result(name, side, share, number, {}, NO_ROOM, limit)
        killed = 0
        for _ in range(TRIES):
            if granted <= 0:
                break
            result, beside = self._run(name, line, side, share, number, need, granted)
            if result.error == KILLED:
                killed += 1
            elif result.error or sides.is_fair(limit, granted + beside):
                break
            else:
                said = f"  {beside // MIB} MiB were taken beside {granted // MIB} MiB"
                self._console.print(said, highlight=False)
                granted = self._granted[key] = sides.fair_grant(limit, need, granted, beside)
                result = dataclasses.replace(result, error=NO_ROOM)
        return dataclasses.replace(result, killed=killed)

    def _run(
        self, name: str, line: list[str], side: str, share: int, number: int, need: int, limit: int
    ) -> tuple[Result, int]:
        """Also returns the bytes of memory that were taken beside the limit."""
        options = self._options
        with sides.side(side, limit, 2 * need + limit, options.directory, options.swappiness) as place:
            os.sync()
            busy = sides.busy_seconds()
            ended = self._execute(place.command(line), {"OMP_NUM_THREADS": "2", **place.environment})
            cpu = sides.busy_seconds() - busy
            moved, beside = ((0, 0), 0) if ended.error else (place.moved(), place.beside())
        result = Result(
            name, side, share, number, {}, ended.error, limit + beside, cpu,
            ended.usage.ru_minflt, ended.usage.ru_majflt, *moved,
        )  # fmt: skip
        if ended.error:
            return result, beside
        printed = json.loads(ended.out)
        check = printed.pop("check", None)
        if self._checks.setdefault(name, check) != check:
            sys.exit(f"bench: {name}, {side}: a wrong result: {check}, not {self._checks[name]}")
        if side == "none":
            self._peaks.setdefault(name, []).append(ended.usage.ru_maxrss * 1024)
        phases = {phase: Timing(**timing) for phase, timing in printed.items()}
        return dataclasses.replace(result, phases=phases), beside

    def _execute(self, command: list[str], environment: dict[str, str]) -> "Ended":
        """To its end, or until it has taken too long."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, **environment}, start_new_session=True
            )
            late = threading.Timer(self._options.timeout, os.killpg, (child.pid, signal.SIGTERM))
            late.start()
            try:
                _, status, usage = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
            finally:
                was_late = not late.is_alive()
                late.cancel()
                late.join()
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGTERM)
                    child.wait()
            out.seek(0)
            err.seek(0)
            lines = err.read().decode(errors="replace").strip().splitlines()
            error = f"status {child.returncode}: {lines[-1] if lines else ''}" if child.returncode else ""
            error = KILLED if child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) else error
            return Ended(out.read(), "too slow" if was_late else error, usage)


class Ended(NamedTuple):
    """A run that is over: its output, why it failed or nothing, and what it and its children used."""

    out: bytes
    error: str
    usage: resource.struct_rusage


REPORT = """\
# Programs in less memory than they need

`python -m bench {command}`:

{setting}.

Seconds are medians over the rounds, ± how far any round is from its median. Ratios are of times, ours over
theirs, of pairs of the same round: below 1 userswap is faster; the median and its 95 % interval. "-": did
not come to an end, in {tries} tries where the kernel killed it. The memory is that of the group in which the
kernel's side runs, which counts page tables, the file cache and zswap's pool; zram's memory is taken beside
it, so the group has less by what that is at its peak (found by trying, to within {unfair:.0%} of the whole).
For userswap it is `--ram`, which counts the engine's own.

{tables}
"""


def report(figures: Figures, setting: str) -> str:
    parts = []
    for share in figures.shares():
        parts += [f"## {share} % of the memory", table(figures, share), "What it cost beside time:"]
        parts += [costs(figures, share)]
    return REPORT.format(
        setting=setting,
        unfair=sides.UNFAIR,
        tries=TRIES,
        command=shlex.join(sys.argv[1:]),
        tables="\n\n".join(parts),
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME",
                        help=f"of {', '.join(NAMES)} (all)")  # fmt: skip
    parser.add_argument("--sides", nargs="+", choices=sides.SIDES, default=list(sides.USUAL), metavar="SIDE",
                        help=f"of {', '.join(sides.SIDES)} (all but the last)")  # fmt: skip
    parser.add_argument("--shares", nargs="+", type=int, default=[50, 25], metavar="PERCENT",
                        help="memory, of what the program needs (50 25)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs (5)")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of a workload, about (512)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the swap lies")
    parser.add_argument("--swappiness", type=int, default=60, help="of the kernel's side (60)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take (600)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the tables, as markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots of slowdown over memory")
    options = parser.parse_args(argv)
    if "none" not in options.sides:
        options.sides.insert(0, "none")  # what the others are given is a share of what it takes
    return options


def rounds(bench: Bench, options: argparse.Namespace, folder: Path) -> None:
    for name in options.workloads:
        line = command(name, options.size, SEED, folder)
        others = [side for side in options.sides if side != "none"]
        for number in range(options.rounds):
            bench.run(name, line, "none", 100, number)
            pairs = [(side, share) for share in options.shares for side in others]
            for side, share in pairs if number % 2 == 0 else reversed(pairs):
                bench.run(name, line, side, share, number)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, interrupted)
    console = Console(stderr=True)
    bench = Bench(options, console)
    with tempfile.TemporaryDirectory(prefix=kernel.PREFIX) as folder:
        rounds(bench, options, Path(folder))
    page_cluster = Path("/proc/sys/vm/page-cluster").read_text().strip()
    setting = (
        f"about {options.size} MiB each, medians of {options.rounds} rounds, Linux {platform.release()}, "
        f"{os.cpu_count()} CPUs, kernel swappiness {options.swappiness}, page-cluster {page_cluster}"
    )
    figures = Figures(bench.results)
    text = report(figures, setting)
    print(text)
    if options.results:
        options.results.write_text(text)
    if options.json:
        rows = [result.as_dict() for result in bench.results]
        options.json.write_text(json.dumps({"setting": setting, "runs": rows}, indent=1) + "\n")
    if options.plots:
        plots.write(figures, options.plots)


if __name__ == "__main__":
    try:
        main()
    except kernel.Unavailable as lack:
        sys.exit(f"bench: {lack}")
