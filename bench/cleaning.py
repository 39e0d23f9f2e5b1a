# SPDX-License-Identifier: GPL-2.0-or-later
"""Write amplification of cleaning, beside what models of a log-structured store predict.

`python -m bench.cleaning` overwrites random pages of an area that is so and so full, by the engine's
own log and cleaner, on an area that keeps nothing: only what is written is counted. The area is filled,
overwritten until it is as it will stay, then measured.

Uniform overwrites: of a block that is cleaned oldest first a share u is live, with fill = (1 - u) / -ln(u),
and each page is written 1 / (1 - u) times (Robinson, Analysis of Steady-State Segment Storage Utilizations
in a Log-Structured File System, 1996). Skewed ones, hot and cold pages kept apart: the same for each of the
two, in a part of the area of its own, and these parts as large as is best (Desnoyers, Analytic Modeling of
SSD Write Performance, 2012). The models know of no blocks that are open, or spare for cleaning to work in:
beside each the same for an area smaller by these.
"""

import argparse
import math
from collections.abc import Callable

import numpy

from userswap import tests_door as door

PAGES = 512
FILLS = (0.5, 0.8, 0.9, 0.95)
HOT, HOT_WRITES = 0.1, 0.9
WORKING = 8  # slots: slots_spare, and half of each of the four open blocks (the packer's two are idle here)


def root(of: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 0, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < 0 else (low, middle)
    return (low + high) / 2


def uniform(fill: float) -> float:
    """Write amplification of an area of which `fill` is live, oldest blocks cleaned first."""
    u = root(lambda u: (1 - u) / -math.log(u) - fill, 1e-9, 1 - 1e-9)
    return 1 / (1 - u)


def apart(fill: float, hot: float, hot_writes: float) -> float:
    """The same for hot and cold pages in two parts of the area, of the best sizes."""
    spare = 1 - fill

    def amplification(share: float) -> float:
        live_hot, live_cold = fill * hot, fill * (1 - hot)
        return hot_writes * uniform(live_hot / (live_hot + share * spare)) + (1 - hot_writes) * uniform(
            live_cold / (live_cold + (1 - share) * spare)
        )

    return min(amplification(share / 1000) for share in range(1, 1000))


def measured(slots: int, fill: float, hot: float, hot_writes: float, turns: int) -> float:
    log = door.Log(8, apart=True)
    log.add_area_of_nothing(slots)
    offsets = numpy.zeros(int(slots * PAGES * fill), dtype=numpy.uint32)
    log.overwrite(offsets, len(offsets), hot, hot_writes, 1)
    log.overwrite(offsets, turns * len(offsets), hot, hot_writes, 2)
    writes = turns * len(offsets)
    return log.overwrite(offsets, writes, hot, hot_writes, 3) / (writes * 4096)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cleaning")
    parser.add_argument("--slots", type=int, default=1024, help="blocks of the area (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="overwrites of all, before and while")
    options = parser.parse_args()
    print("| full | uniform: model | with spare | measured | 90/10: model, apart | with spare | measured |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for fill in FILLS:
        even = measured(options.slots, fill, 1.0, 1.0, options.turns)
        skewed = measured(options.slots, fill, HOT, HOT_WRITES, options.turns)
        less = fill * options.slots / (options.slots - WORKING)
        first = f"{uniform(fill):.2f} | {uniform(less):.2f} | {even:.2f}"
        second = f"{apart(fill, HOT, HOT_WRITES):.2f} | {apart(less, HOT, HOT_WRITES):.2f} | {skewed:.2f}"
        print(f"| {fill:.0%} | {first} | {second} |", flush=True)


if __name__ == "__main__":
    main()
