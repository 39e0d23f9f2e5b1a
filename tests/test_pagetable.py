# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables, against a dict from page to value, over all of a user's address space."""

import errno
import os
import random
import time

import pytest

from userswap import tests_door as door

LEAF = 512
MIDDLE = 8192 * LEAF  # pages below one entry of the top level: 16 GiB
END = 1 << (47 - 12)


@pytest.fixture
def table() -> door.PageTable:
    return door.PageTable()


def test_a_page_that_nothing_is_known_of_is_0_and_costs_nothing(table: door.PageTable) -> None:
    for page in (0, 1, LEAF, MIDDLE, END - 1, END, 1 << 60):
        assert table.get(page) == 0
    table.set(12345, 0)
    table.set(END + 5, 0)
    assert table.leaf_count == 0
    table.check()


def test_the_edges_of_leaves_and_levels(table: door.PageTable) -> None:
    edges = [edge + near for edge in (LEAF, MIDDLE, END // 2, END - 1) for near in (-1, 0)]
    pages = {0: 1} | {page: number + 2 for number, page in enumerate(edges)}
    for page, value in pages.items():
        table.set(page, value)
    assert {page: table.get(page) for page in pages} == pages
    assert table.leaf_count == len({page // LEAF for page in pages})
    table.check()


def test_there_is_nothing_above_47_bits(table: door.PageTable) -> None:
    table.set(END - 1, 7)
    for page in (END, END + 1, 1 << 36, 1 << 52):
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            table.set(page, 1)
        assert table.get(page) == 0
    assert [page for page, _ in table.visit(END - LEAF, 10 * LEAF)] == [END - LEAF]
    assert table.visit(END, LEAF) == []
    table.check()


def test_values_are_32_bits_wide(table: door.PageTable) -> None:
    for page, value in enumerate((1, 1 << 28, 1 << 30, 1 << 31, (1 << 32) - 1)):
        table.set(page, value)
        assert table.get(page) == value


def test_a_visit_goes_over_the_parts_of_leaves_that_there_are(table: door.PageTable) -> None:
    table.set(LEAF - 1, 11)
    table.set(3 * LEAF, 33)
    assert table.visit(LEAF - 2, 2 * LEAF + 4) == [
        (LEAF - 2, [0, 11]),
        (3 * LEAF, [33, 0]),
    ]
    assert table.visit(LEAF, 2 * LEAF) == []
    assert table.visit(LEAF - 1, 0) == []


def test_a_visit_may_change_values(table: door.PageTable) -> None:
    for page in (5, 6, LEAF + 5):
        table.set(page, page)
    table.visit(6, LEAF, add=1000)
    assert [table.get(page) for page in (5, 6, LEAF + 5)] == [5, 1006, LEAF + 1005]


def test_a_visit_skips_what_is_not_there(table: door.PageTable) -> None:
    """A visit of all 2**35 pages is quick, as the fork of a process needs it to be."""
    pages = [3, MIDDLE - 1, MIDDLE, 100 * MIDDLE + 7, END - 1]
    for page in pages:
        table.set(page, 9)
    runs = table.visit(0, END)
    assert [page // LEAF for page, _ in runs] == [page // LEAF for page in pages]
    assert all(len(values) == LEAF for _, values in runs)


@pytest.mark.parametrize(
    ("stamp", "now", "age"),
    [(0, 5000, 0), (1001, 1001, 0), (1001, 1000, 0), (1001, 3001, 2000), ((1 << 32) - 999, 1001, 2000)],
)
def test_how_long_ago_pages_were_given_back(table: door.PageTable, stamp: int, now: int, age: int) -> None:
    """One of the future is not one of long ago: a thread amid MADV_DONTNEED would see its old pages again."""
    assert table.removed_for(LEAF, stamp, now) == age


def test_what_has_not_happened_yet_is_not_long_ago() -> None:
    """Another thread may note a time after we looked at the clock: the limit once took that for 20 s."""
    now = time.monotonic_ns() // 1000
    assert door.since_us(now + 60_000_000) == 0
    assert 1_000_000 <= door.since_us(now - 1_000_000) < 60_000_000


class Model:
    """A table and a dict that the same things are done to."""

    def __init__(self, rng: random.Random) -> None:
        self.table = door.PageTable()
        self.values: dict[int, int] = {}
        self.rng = rng
        # Mappings as programs have them: a few areas far apart, some of them next to an edge.
        self.areas = [0, MIDDLE - 700, END // 2 - 3 * LEAF, END - 1500]
        self.areas += [rng.randrange(END - 2000) for _ in range(4)]

    def page(self) -> int:
        if self.rng.random() < 0.05:
            return self.rng.randrange(END)
        return self.rng.choice(self.areas) + self.rng.randrange(1500)

    def set(self) -> None:
        page, value = self.page(), self.rng.choice([0, self.rng.getrandbits(32)])
        self.table.set(page, value)
        self.values[page] = value

    def get(self) -> None:
        page = self.page()
        assert self.table.get(page) == self.values.get(page, 0)

    def visit(self) -> None:
        start, count = self.page(), self.rng.choice([1, 10, 600, 1500])
        seen: dict[int, int] = {}
        last = start
        for page, values in self.table.visit(start, count, add=1):
            assert last <= page < page + len(values) <= start + count
            assert page // LEAF == (page + len(values) - 1) // LEAF
            last = page + len(values)
            seen |= dict(zip(range(page, last), values, strict=True))
        held = {page: value for page, value in self.values.items() if start <= page < start + count}
        assert {page: value for page, value in seen.items() if value} == {
            page: value for page, value in held.items() if value
        }
        for page, value in held.items():
            self.values[page] = (value + 1) % (1 << 32) if value else 0

    def check(self) -> None:
        self.table.check()
        for page, value in self.values.items():
            assert self.table.get(page) == value
        seen = {page + at for page, values in self.table.visit(0, END) for at, v in enumerate(values) if v}
        assert seen == {page for page, value in self.values.items() if value}


@pytest.mark.parametrize("seed", range(5))
def test_a_table_is_what_the_model_says(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(rng)
    for _ in range(6000):
        rng.choices([model.set, model.get, model.visit], [20, 10, 1])[0]()
    model.check()
