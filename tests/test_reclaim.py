# SPDX-License-Identifier: GPL-2.0-or-later
"""Reclaim: which run is taken, and how often a program has to wait for what was.

The second part runs traces through a memory of N pages, where the functions of reclaim.pyx, driven as the
engine drives them, choose what to evict, or first in, first out does. It counts faults on what was evicted.
"""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pytest

from userswap import tests_door as door

Values = npt.NDArray[np.uint32]
NONE = 0
SWAPPED = 77
BUSY = 1 << 30 | 77


def values_of(*ages: int | str | None) -> Values:
    """An age is a present page; None, "swapped" and "busy" are what they say."""
    other = {None: NONE, "swapped": SWAPPED, "busy": BUSY}
    return np.array(
        [door.present(age) if isinstance(age, int) else other[age] for age in ages], dtype=np.uint32
    )


def ages_of(values: Values) -> list[int | None]:
    return [door.age(int(value)) for value in values]


# ---- runs


def test_nothing_to_evict() -> None:
    values = values_of(None, "swapped", "busy")
    assert door.reclaim_run(values, 100)[1] == 0
    assert list(values) == [NONE, SWAPPED, BUSY]


def test_a_run_is_of_neighbours_of_age_0() -> None:
    values = values_of(None, 0, 0, 0, None, 0)
    assert door.reclaim_run(values, 100) == (1, 3)
    assert door.reclaim_run(values, 100, first=4) == (5, 1)


@pytest.mark.parametrize("end", [None, "swapped", "busy", 1, 7])
def test_what_ends_a_run(end: int | str | None) -> None:
    values = values_of(0, 0, end, 0)
    assert door.reclaim_run(values, 100) == (0, 2)
    assert ages_of(values)[2] == (end if isinstance(end, int) else None)  # not passed over yet


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
def test_a_run_is_no_longer_than_asked_for(most: int) -> None:
    values = values_of(None, 0, 0, 0)
    assert door.reclaim_run(values, most) == (1, min(3, most))


def test_the_pages_passed_over_age_by_one() -> None:
    values = values_of(3, 1, "swapped", 7, None, 0, 5)
    assert door.reclaim_run(values, 100) == (5, 1)
    assert ages_of(values) == [2, 0, None, 6, None, 0, 5]
    assert int(values[2]) == SWAPPED


def test_the_offset_of_a_clean_page_is_kept() -> None:
    values = np.array([door.present(2, 12345), door.present(0, (1 << 28) - 1)], dtype=np.uint32)
    assert door.reclaim_run(values, 100) == (1, 1)
    assert list(values) == [door.present(1, 12345), door.present(0, (1 << 28) - 1)]


@pytest.mark.parametrize("age", range(8))
def test_a_page_survives_as_many_passes_as_its_age(age: int) -> None:
    values = values_of(age)
    passes = 0
    while door.reclaim_run(values, 1)[1] == 0:
        passes += 1
    assert passes == age


@pytest.mark.parametrize("seed", range(4))
def test_runs_are_what_a_simple_clock_takes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        ages: list[int | str | None] = [
            rng.choice([0, 0, 0, 1, 3, 7, None, "swapped", "busy"]) for _ in range(rng.randrange(1, 40))
        ]
        values = values_of(*ages)
        most = rng.choice([1, 3, 256])
        start, length = door.reclaim_run(values, most)
        first = next((at for at, age in enumerate(ages) if age == 0), len(ages))
        expected = 0
        while first + expected < len(ages) and ages[first + expected] == 0 and expected < most:
            expected += 1
        assert length == expected
        if length:
            assert start == first
        aged = [age - 1 if isinstance(age, int) and at < first else age for at, age in enumerate(ages)]
        assert list(values) == list(values_of(*aged))


# ---- ages


@pytest.mark.parametrize(
    ("now", "stamp", "resident", "age"),
    [
        (100, 100, 1, door.REFAULT),
        (100, 91, 10, door.REFAULT),
        (100, 90, 10, door.FRESH),
        (100, 100, 0, door.FRESH),
        (4096 + 5, 4090, 12, door.REFAULT),  # the stamp has 12 bits: 11 evictions
        (4096 + 5, 4090, 11, door.FRESH),
        (10 * 4096 + 5, 4, 2, door.REFAULT),  # as good as one: eight times the memory ago
    ],
)
def test_a_refault_after_fewer_evictions_than_are_resident(
    now: int, stamp: int, resident: int, age: int
) -> None:
    assert door.reclaim_age(now, stamp, resident) == age
    assert door.REFAULT > door.FRESH


@pytest.mark.parametrize(
    ("lived", "stored", "hot"),
    [(0, 1, True), (499, 1000, True), (500, 1000, False), (0, 0, False), (1 << 40, 1 << 42, True)],
)
def test_hot_is_what_lived_for_less_than_half_of_what_is_stored(lived: int, stored: int, hot: bool) -> None:
    assert door.reclaim_is_hot(lived, stored) == hot


# ---- traces

PAGES = 4000  # that a trace touches at most
CAPACITY = 1000
BATCH = 16


def stamp_shift(limit: int) -> int:
    """The unit of the clock, as the engine has it: 12 bits span eight times the memory."""
    shift = 0
    while (limit * 8) >> shift > 4096:
        shift += 1
    return shift


def clock_misses(trace: Iterable[int], capacity: int) -> int:
    """Faults on pages that reclaim.pyx had evicted, in batches of neighbours, by a hand in address order."""
    values = np.zeros(PAGES, dtype=np.uint32)
    stamps: dict[int, int] = {}
    shift = stamp_shift(capacity)
    resident = evicted = hand = misses = 0
    present = bytearray(PAGES)
    for page in trace:
        if present[page]:
            continue
        age = door.FRESH
        if page in stamps:
            misses += 1
            age = door.reclaim_age(evicted >> shift, stamps[page], resident >> shift)
        values[page], present[page] = door.present(age), 1
        resident += 1
        while resident > capacity:
            start, length = door.reclaim_run(values, BATCH, hand)
            for gone in range(start, start + length):
                present[gone], values[gone] = 0, NONE
                stamps[gone] = (evicted >> shift) & 0xFFF
            evicted += length
            resident -= length
            hand = start + length if length else PAGES
            hand %= PAGES
    return misses


def fifo_misses(trace: Iterable[int], capacity: int) -> int:
    """The same with first in, first out, in the same batches."""
    present: set[int] = set()
    order: deque[int] = deque()
    gone: set[int] = set()
    misses = 0
    for page in trace:
        if page in present:
            continue
        misses += page in gone
        present.add(page)
        order.append(page)
        if len(present) > capacity:
            for _ in range(BATCH):
                out = order.popleft()
                present.remove(out)
                gone.add(out)
    return misses


def ratio(trace: list[int]) -> float:
    return clock_misses(trace, CAPACITY) / fifo_misses(trace, CAPACITY)


def hot_and_scan(rng: random.Random, hot: int, length: int) -> list[int]:
    """Four touches in five of a hot set, the rest a scan over all other pages, again and again."""
    pages = list(range(PAGES))
    rng.shuffle(pages)
    scan = 0
    trace = []
    for _ in range(length):
        if rng.random() < 0.8:
            trace.append(pages[rng.randrange(hot)])
        else:
            trace.append(pages[hot + scan])
            scan = (scan + 1) % (PAGES - hot)
    return trace


def zipf(rng: random.Random, exponent: float, length: int) -> list[int]:
    pages = list(range(PAGES))
    rng.shuffle(pages)
    sums = list(accumulate(1 / (rank + 1) ** exponent for rank in range(PAGES)))
    return [pages[bisect_left(sums, rng.random() * sums[-1])] for _ in range(length)]


@pytest.mark.parametrize("seed", range(3))
def test_a_hot_set_beside_a_scan_is_kept(seed: int) -> None:
    measured = ratio(hot_and_scan(random.Random(seed), 500, 100_000))
    assert measured < 0.8


@pytest.mark.parametrize("seed", range(3))
def test_zipf_misses_less_than_fifo(seed: int) -> None:
    measured = ratio(zipf(random.Random(seed), 0.99, 100_000))
    assert measured < 0.93


@pytest.mark.parametrize("seed", range(3))
def test_uniform_random_misses_as_fifo_does(seed: int) -> None:
    rng = random.Random(seed)
    measured = ratio([rng.randrange(PAGES) for _ in range(60_000)])
    assert measured <= 1.05


@pytest.mark.parametrize("pages", [CAPACITY + 50, CAPACITY * 3 // 2, CAPACITY * 3])
def test_a_cyclic_scan_misses_no_more_than_fifo(pages: int) -> None:
    measured = ratio([at % pages for at in range(60_000)])
    assert measured <= 1.05
