# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of runs to medians, ratios and a markdown table."""

import dataclasses
import statistics
from typing import Any

ORDER = ("none", "kernel", "userswap", "userswap-encrypted")


@dataclasses.dataclass(frozen=True)
class Timing:
    """One phase of one run; units are pages, or operations for the random phases."""

    seconds: float
    units: int


@dataclasses.dataclass(frozen=True)
class Result:
    """One run of the workload on one side, in the order in which the runs were made."""

    side: str
    phases: dict[str, Timing]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def medians(results: list[Result]) -> dict[str, dict[str, Timing]]:
    """Phase to side to the median over the rounds, both in the order in which they first came."""
    sides = sorted({result.side for result in results}, key=ORDER.index)
    table: dict[str, dict[str, Timing]] = {}
    for phase in results[0].phases:
        table[phase] = {}
        for side in sides:
            timings = [result.phases[phase] for result in results if result.side == side]
            middle = statistics.median(timing.seconds for timing in timings)
            table[phase][side] = Timing(middle, timings[0].units)
    return table


def _cells(timings: dict[str, Timing]) -> list[str]:
    cells: list[str] = []
    for timing in timings.values():
        cells += [f"{timing.seconds:.3f}", f"{timing.seconds / timing.units * 1e6:.2f}"]
    if {"kernel", "userswap"} <= timings.keys():
        cells.append(f"{timings['kernel'].seconds / timings['userswap'].seconds:.2f}")
    return cells


def markdown(results: list[Result]) -> str:
    """Seconds and microseconds a unit of each side; above 1, the ratio says that userswap is faster."""
    table = medians(results)
    sides = list(next(iter(table.values())))
    head = ["phase"]
    for side in sides:
        head += [f"{'no limit' if side == 'none' else side}, s", "us a unit"]
    if {"kernel", "userswap"} <= set(sides):
        head.append("kernel / userswap")
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[phase, *_cells(timings)] for phase, timings in table.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
