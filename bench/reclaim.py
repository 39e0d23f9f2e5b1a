# SPDX-License-Identifier: GPL-2.0-or-later
"""What reclaim brings back, by the simulator: with what streams leave behind going first where that is found
to be right, over without. `python -m bench.reclaim`.

Sequences of pages as algorithms touch them; the memory is 64 MiB."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from userswap.simulator import Memory

PAGES = 16384
SEEDS = 5
ELSEWHERE = 1 << 20

Trace = npt.NDArray[np.uint64]


def up(start: int, count: int) -> Trace:
    return np.arange(start, start + count, dtype=np.uint64)


def in_turn(one: Trace, other: Trace) -> Trace:
    """A page of each, and what is left of the longer."""
    both = min(len(one), len(other))
    return np.concatenate(
        [np.stack([one[:both], other[:both]], axis=1).reshape(-1), one[both:], other[both:]]
    )


def quicksort(low: int, high: int, rng: np.random.Generator) -> Iterator[Trace]:
    """From both ends to where they meet, then either part."""
    if high - low < 64:
        yield up(low, high - low)
        return
    middle = low + int((high - low) * rng.uniform(0.3, 0.7))
    yield in_turn(up(low, middle - low), up(middle, high - middle)[::-1])
    yield from quicksort(low, middle, rng)
    yield from quicksort(middle, high, rng)


def mergesort(count: int) -> Iterator[Trace]:
    """From the array to another one and back."""
    width = 256
    while width < count:
        for start in range(0, count, 2 * width):
            first = up(start, min(width, count - start))
            second = up(start + width, max(0, min(width, count - start - width)))
            merged = in_turn(first, second)
            copy = up(ELSEWHERE + start, len(merged))
            yield np.stack([merged, copy], axis=1).reshape(-1)
            yield copy
        width *= 2


def hot_and_scan(rng: np.random.Generator) -> Trace:
    """Four touches in five of half the memory's worth of pages, the others go over three times the memory."""
    scan = up(ELSEWHERE, 3 * PAGES)
    hot = rng.integers(0, PAGES // 2, size=4 * len(scan), dtype=np.uint64)
    return np.concatenate([hot.reshape(-1, 4), scan[:, None]], axis=1).reshape(-1)


def traces() -> Iterator[tuple[str, Trace]]:
    rng = np.random.default_rng(1)
    for over in (1.1, 2.0, 4.0):
        yield f"12 scans of {over} times the memory", np.concatenate([up(0, int(over * PAGES))] * 12)
    yield "12 scans down of 1.5 times", np.concatenate([up(0, PAGES * 3 // 2)[::-1]] * 12)
    yield "back and forth over twice", np.concatenate([up(0, 2 * PAGES), up(0, 2 * PAGES)[::-1]] * 6)
    parts = [up(part * PAGES, PAGES * 3 // 4) for part in range(4)]
    yield (
        "what is worked on fits, and moves on",
        np.concatenate([part for part in parts for _ in range(10)] * 2),
    )
    pieces = [up(start, PAGES // 2) for start in range(0, 4 * PAGES, PAGES // 2)]
    yield "each half a memory three times", np.concatenate([piece for piece in pieces for _ in range(3)] * 3)
    yield "a hot set beside a scan", np.concatenate([hot_and_scan(rng)] * 4)
    yield "uniformly random", rng.integers(0, 2 * PAGES, size=400_000, dtype=np.uint64)
    yield "mergesort of three times", np.concatenate(list(mergesort(3 * PAGES)))
    for seed in range(SEEDS):
        parts = [up(0, 3 * PAGES), *quicksort(0, 3 * PAGES, np.random.default_rng(seed))]
        yield f"quicksort of three times, {seed}", np.concatenate(parts)


def touched(trace: Trace, *, behind: bool) -> Memory:
    """The memory after all of the trace."""
    memory = Memory(PAGES, behind=behind, window=512)
    memory.touch(np.ascontiguousarray(trace))
    return memory


def main() -> None:
    print("| pages brought back | without | with | ratio |\n| --- | ---: | ---: | ---: |")
    ratios = []
    for name, trace in traces():
        before, after = (touched(trace, behind=behind).brought for behind in (False, True))
        ratios.append(after / before)
        print(f"| {name} | {before} | {after} | {ratios[-1]:.2f} |")
    print(f"\nIn geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, at most {max(ratios):.2f}.")


if __name__ == "__main__":
    main()
