# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges, against a set of pages."""

import random
from itertools import pairwise

import pytest

from userswap import tests_door as door

TOP = 1 << (47 - 12)


def made(*items: tuple[int, int]) -> door.Ranges:
    ranges = door.Ranges()
    for start, end in items:
        ranges.add(start, end)
    return ranges


def test_the_empty_set() -> None:
    ranges = made()
    ranges.remove(0, TOP)
    assert ranges.items == []
    assert not ranges.hit(0, TOP)
    assert ranges.end(5) == 6
    assert ranges.copy().items == []


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ((30, 40), [(10, 20), (30, 40), (50, 60)]),
        ((20, 30), [(10, 30), (50, 60)]),
        ((40, 50), [(10, 20), (40, 60)]),
        ((20, 50), [(10, 60)]),
        ((12, 18), [(10, 20), (50, 60)]),
        ((10, 20), [(10, 20), (50, 60)]),
        ((0, 10), [(0, 20), (50, 60)]),
        ((0, 100), [(0, 100)]),
        ((60, 70), [(10, 20), (50, 70)]),
        ((61, 70), [(10, 20), (50, 60), (61, 70)]),
        ((0, 9), [(0, 9), (10, 20), (50, 60)]),
    ],
)
def test_what_touches_becomes_one(added: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    ranges = made((50, 60), (10, 20))
    ranges.add(*added)
    assert ranges.items == expected
    ranges.check()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ((12, 15), [(10, 12), (15, 20), (30, 40)]),
        ((10, 20), [(30, 40)]),
        ((0, 11), [(11, 20), (30, 40)]),
        ((19, 31), [(10, 19), (31, 40)]),
        ((20, 30), [(10, 20), (30, 40)]),
        ((0, 100), []),
        ((39, 100), [(10, 20), (30, 39)]),
    ],
)
def test_what_is_removed_may_split(removed: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    ranges = made((10, 20), (30, 40))
    ranges.remove(*removed)
    assert ranges.items == expected
    ranges.check()


def test_a_copy_is_a_set_of_its_own() -> None:
    one = made((0, 1), (5, TOP))
    other = one.copy()
    one.remove(7, 9)
    assert other.items == [(0, 1), (5, TOP)]
    other.clear()
    assert one.items == [(0, 1), (5, 7), (9, TOP)]
    other.add(1, 2)
    assert other.items == [(1, 2)]


def test_many_ranges_at_the_top_of_the_address_space() -> None:
    ranges = made(*[(TOP - 2 * at - 1, TOP - 2 * at) for at in range(5000)])
    assert len(ranges.items) == 5000
    ranges.check()
    assert ranges.end(TOP - 1) == TOP
    assert ranges.end(TOP - 2) == TOP - 1
    ranges.add(0, TOP)
    assert ranges.items == [(0, TOP)]


def runs_of(pages: set[int]) -> list[tuple[int, int]]:
    """The ranges of a set, the slow way."""
    ordered = sorted(pages)
    starts = [page for page in ordered if page - 1 not in pages]
    ends = [page + 1 for page in ordered if page + 1 not in pages]
    return list(zip(starts, ends, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_ranges_are_what_the_set_says(seed: int) -> None:
    rng = random.Random(seed)
    ranges, pages = made(), set[int]()
    room = rng.choice([40, 400])
    for _ in range(3000):
        start = rng.randrange(room)
        end = min(room, start + rng.choice([1, 1, 2, 5, room // 3 + 1]))
        if rng.random() < 0.5:
            ranges.add(start, end)
            pages |= set(range(start, end))
        else:
            ranges.remove(start, end)
            pages -= set(range(start, end))
        assert ranges.items == runs_of(pages)
        ranges.check()
        page = rng.randrange(room)
        expected = next((e for s, e in ranges.items if s <= page < e), page + 1)
        assert ranges.end(page) == expected
        assert ranges.hit(start, end) == bool(pages & set(range(start, end)))
        assert ranges.hit(page, page + 1) == (page in pages)
    assert all(before[1] < after[0] for before, after in pairwise(ranges.items))
    assert ranges.copy().items == ranges.items
