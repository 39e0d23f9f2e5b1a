# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of runs to medians, ratios with an interval, and tables."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy
import scipy.stats

# What each side is measured against.
RIVALS = ("swapfile", "zram", "zswap")
OURS = "userswap"


@dataclasses.dataclass(frozen=True)
class Timing:
    """One phase of one run; units are pages, operations, or 1 for a program as a whole."""

    seconds: float
    units: int


@dataclasses.dataclass(frozen=True)
class Result:
    """One run of a workload on one side, with `share` percent of the memory that it needs.

    `error` says why there are no phases. The rest is of the whole run: seconds of CPU of everything on the
    machine, page faults of the programs that the kernel counts, bytes moved to swap and back."""

    workload: str
    side: str
    share: int
    round: int
    phases: dict[str, Timing]
    error: str = ""
    ram_bytes: int = 0
    cpu_seconds: float = 0
    minor_faults: int = 0
    major_faults: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    killed: int = 0  # runs before it, or up to it, that the kernel ended for lack of memory

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Times of one side over those of another, in pairs of a round: the median and its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.middle:.2f}"
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of two sides' seconds, of the same rounds in the same order; the interval by bootstrap over the pairs
    (percentile method: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    pairs = numpy.array(ours) / numpy.array(theirs)
    if len(pairs) < 3:
        return Ratio(float(numpy.median(pairs)), float(pairs.min()), float(pairs.max()))
    interval = scipy.stats.bootstrap(
        (pairs,), numpy.median, method="percentile", rng=numpy.random.default_rng(1)
    ).confidence_interval
    return Ratio(float(numpy.median(pairs)), float(interval.low), float(interval.high))


class Figures:
    """The results of one bench, by workload, phase, share and side."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(result.workload for result in self._results))

    def phases(self, workload: str) -> list[str]:
        found = (result.phases for result in self._results if result.workload == workload)
        return list(dict.fromkeys(phase for phases in found for phase in phases))

    def sides(self) -> list[str]:
        return list(dict.fromkeys(result.side for result in self._results))

    def shares(self) -> list[int]:
        return sorted({result.share for result in self._results if result.side != "none"}, reverse=True)

    def of(self, workload: str, side: str, share: int) -> list[Result]:
        """Those that came to an end, by round. Without a limit there is no share."""
        return sorted(
            (
                result
                for result in self._results
                if result.workload == workload
                and result.side == side
                and (side == "none" or result.share == share)
                and not result.error
            ),
            key=lambda result: result.round,
        )

    def killed(self, workload: str, side: str, share: int) -> int:
        """Runs that the kernel ended."""
        return sum(
            result.killed
            for result in self._results
            if (result.workload, result.side, result.share) == (workload, side, share)
        )

    def seconds(self, workload: str, phase: str, side: str, share: int) -> dict[int, float]:
        """Of each round."""
        return {
            result.round: result.phases[phase].seconds
            for result in self.of(workload, side, share)
            if phase in result.phases
        }

    def ratio(self, workload: str, phase: str, side: str, other: str, share: int) -> Ratio | None:
        """Time of a side over that of another; None if there is no round in which both came to an end."""
        first, second = (self.seconds(workload, phase, one, share) for one in (side, other))
        rounds = sorted(first.keys() & second.keys())
        if not rounds:
            return None
        return ratio([first[at] for at in rounds], [second[at] for at in rounds])

    def mean(self, workloads: Sequence[str], side: str, other: str, share: int) -> float | None:
        """Geometric mean of the ratios of these workloads' first phases, of those that have one."""
        found = [self.ratio(name, self.phases(name)[0], side, other, share) for name in workloads]
        logs = [math.log(one.middle) for one in found if one is not None]
        return math.exp(statistics.fmean(logs)) if logs else None


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(seconds: dict[int, float]) -> str:
    """The median and how far the others are from it."""
    if not seconds:
        return "-"
    values = list(seconds.values())
    middle = statistics.median(values)
    shown = f"{middle:.3f}" if middle >= 0.01 else f"{middle:.6f}"
    return f"{shown} ±{100 * max(abs(value - middle) for value in values) / middle:.0f} %"


def table(figures: Figures, share: int) -> str:
    """Markdown: for each phase of each workload every side's median, and ours over each rival's."""
    sides = figures.sides()
    rivals = [name for name in RIVALS if name in sides]
    ours = [name for name in sides if name.startswith(OURS)]
    compared = [(one, rival) for one in ours for rival in rivals]
    head = ["workload", *(f"{side}, s" for side in sides), *(f"{one} / {rival}" for one, rival in compared)]
    lines = [row(head), row(["---", *["---:"] * (len(head) - 1)])]
    for workload in figures.workloads():
        for phase in figures.phases(workload):
            cells = [workload if phase == workload else f"{workload}: {phase}"]
            cells += [_spread(figures.seconds(workload, phase, side, share)) for side in sides]
            for one, rival in compared:
                found = figures.ratio(workload, phase, one, rival, share)
                cells.append("-" if found is None else str(found))
            lines.append(row(cells))
    return "\n".join(lines)


def costs(figures: Figures, share: int) -> str:
    """Markdown: what each whole run cost beside time, medians over the rounds."""
    head = ["workload", "side", "CPU, s", "minor faults", "major faults", "MiB out", "MiB in", "killed"]
    lines = [row(head), row(["---", "---", *["---:"] * 6])]
    for workload in figures.workloads():
        for side in figures.sides():
            found = figures.of(workload, side, share)
            killed = str(figures.killed(workload, side, share))
            if not found:
                lines.append(row([workload, side, *["-"] * 5, killed]))
                continue

            def middle(name: str, found: list[Result] = found) -> float:
                return float(statistics.median(getattr(result, name) for result in found))

            cells = [f"{middle('cpu_seconds'):.1f}"]
            cells += [f"{middle(name):.0f}" for name in ("minor_faults", "major_faults")]
            cells += [f"{middle(name) / 2**20:.0f}" for name in ("bytes_out", "bytes_in")]
            lines.append(row([workload, side, *cells, killed]))
    return "\n".join(lines)
