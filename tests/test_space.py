# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space, against a model: a dict from offset to (state, count, payload)."""

import random
import struct
from collections.abc import Iterator

import pytest

from userswap import tests_door as door

LEAF = 512
PAYLOAD = (1 << 48) - 1


@pytest.fixture
def space() -> Iterator[door.Space]:
    space = door.Space()
    yield space
    space.check()


def test_offset_0_is_never_handed_out(space: door.Space) -> None:
    offsets = [space.allocate() for _ in range(3 * LEAF)]
    assert 0 not in offsets
    assert len(set(offsets)) == len(offsets)
    assert sorted(offsets) == list(range(1, 3 * LEAF + 1))
    for offset in offsets:
        space.free(offset)
    assert space.allocate() != 0


def test_pages_evicted_together_have_neighbouring_entries(space: door.Space) -> None:
    offsets = [space.allocate() for _ in range(2 * LEAF)]
    assert offsets == list(range(1, 2 * LEAF + 1))


@pytest.mark.parametrize("state", ["filled", "cached", "stored"])
def test_an_entry_keeps_what_it_was_given(space: door.Space, state: str) -> None:
    for payload in (0, 1, 0x5A5A5A5A5A5A, PAYLOAD):
        for count in (0, 1, 2, door.COUNT_STICKY):
            assert space.entry(space.allocate(state, count, payload)) == (state, count, payload)


def test_an_unused_offset_costs_nothing(space: door.Space) -> None:
    assert space.leaf_pages == 0
    offsets = [space.allocate() for _ in range(10 * LEAF)]
    assert space.leaf_pages == 11
    for offset in offsets:
        space.free(offset)
    assert space.entries == 0
    assert space.leaf_pages == 1  # the leaf of offset 0, which is taken for ever


def test_a_leaf_is_freed_with_its_last_entry_and_made_again(space: door.Space) -> None:
    offsets = [space.allocate() for _ in range(4 * LEAF - 1)]
    middle = [offset for offset in offsets if offset // LEAF == 2]
    for offset in middle[:-1]:
        space.free(offset)
    assert space.leaf_pages == 4
    space.free(middle[-1])
    assert space.leaf_pages == 3
    assert space.entry(middle[0]) == ("free", 0, 0)
    again = [space.allocate() for _ in middle]
    assert sorted(again) == middle
    assert space.leaf_pages == 4


def test_a_full_space_gives_no_offset(space: door.Space) -> None:
    space.limit(leaves=2)
    offsets = [space.allocate() for _ in range(2 * LEAF - 1)]
    assert 0 not in offsets
    assert space.allocate() == 0
    space.free(700)
    assert space.allocate() == 700
    assert space.allocate() == 0


def test_the_last_put_frees(space: door.Space) -> None:
    for state in ("filled", "stored"):
        offset = space.allocate(state, 1, 99)
        space.get(offset)
        space.get(offset)
        assert space.entry(offset) == (state, 3, 99)
        assert [space.put(offset) for _ in range(3)] == [False, False, True]
        assert space.entry(offset) == ("free", 0, 0)


def test_a_cached_entry_at_count_0_stays_for_its_evictor(space: door.Space) -> None:
    offset = space.allocate("cached")
    assert not space.put(offset)
    assert space.entry(offset) == ("cached", 0, 0)
    assert space.entries == 1
    assert space.allocate() != offset
    space.free(offset)
    assert space.entry(offset) == ("free", 0, 0)


def test_a_count_that_overflows_sticks(space: door.Space) -> None:
    offset = space.allocate("stored", door.COUNT_STICKY - 1, 5)
    assert not space.put(offset)
    space.get(offset)
    space.get(offset)
    for _ in range(3):
        space.get(offset)
        assert space.entry(offset) == ("stored", door.COUNT_STICKY, 5)
    for _ in range(door.COUNT_STICKY + 10):
        assert not space.put(offset)
    assert space.entry(offset) == ("stored", door.COUNT_STICKY, 5)


# ---- repeated words


def double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


SHORT = [
    *[0, 1, 0xFF, 0x1122334455, (1 << 45) - 1],
    *[1 << 63, double(1.0), double(-1.0), double(0.5), double(-0.0), double(float("inf"))],
    *[(1 << 64) - 1, (1 << 64) - 2, (1 << 64) - (1 << 44)],
    *[0xDEADBEEFDEADBEEF, 0x0101010101010101, 0xCCCCCCCCCCCCCCCC, 0x3F8000003F800000],
]
LONG = [double(0.1), double(-1e300), 1 << 45 | 1, 0x0123456789ABCDEF, (1 << 64) - (1 << 44) - 1]


@pytest.mark.parametrize("value", SHORT, ids=hex)
def test_a_short_fill_word_needs_no_table(space: door.Space, value: int) -> None:
    code = space.fill_code(value)
    assert code <= PAYLOAD
    assert space.fill_value(code) == value
    assert space.fill_words == 0


@pytest.mark.parametrize("value", LONG, ids=hex)
def test_a_long_fill_word_is_in_the_table_once(space: door.Space, value: int) -> None:
    code = space.fill_code(value)
    assert code <= PAYLOAD
    assert space.fill_value(code) == value
    assert space.fill_code(value) == code
    assert space.fill_words == 1


def test_the_table_grows_by_words_and_not_by_pages(space: door.Space) -> None:
    rng = random.Random(7)
    values = [rng.getrandbits(63) | 1 << 45 | 1 for _ in range(300)]
    codes = [space.fill_code(value) for value in values]
    for _ in range(3):
        assert [space.fill_code(value) for value in values] == codes
    assert space.fill_words == len(set(values))


def test_any_word_round_trips(space: door.Space) -> None:
    rng = random.Random(20)
    values = [rng.getrandbits(64) for _ in range(5000)]
    values += [rng.getrandbits(rng.randrange(1, 65)) for _ in range(5000)]
    values += [rng.getrandbits(64) >> (s := rng.randrange(64)) << s for _ in range(5000)]
    values += [(1 << 64) - 1 - rng.getrandbits(rng.randrange(1, 65)) for _ in range(5000)]
    values += [rng.getrandbits(32) * 0x100000001 for _ in range(5000)]
    # Around every power of two, where the forms begin and end.
    values += [((1 << bit) + near) % (1 << 64) for bit in range(65) for near in range(-2, 3)]
    codes = [space.fill_code(value) for value in values]
    assert max(codes) <= PAYLOAD
    assert [space.fill_value(code) for code in codes] == values


def test_a_full_table_says_so_and_still_knows_its_words(space: door.Space) -> None:
    space.limit(fill_words=3)
    codes = [space.fill_code(value) for value in LONG]
    assert codes[3:] == [door.NO_CODE, door.NO_CODE]
    assert [space.fill_value(code) for code in codes[:3]] == LONG[:3]
    assert space.fill_code(LONG[1]) == codes[1]
    assert space.fill_value(space.fill_code(double(1.0))) == double(1.0)


# ---- a model


class Model:
    """What the space has to hold, and the operations that change both."""

    def __init__(self, space: door.Space, rng: random.Random) -> None:
        self.space = space
        self.rng = rng
        self.entries: dict[int, tuple[str, int, int]] = {}

    def allocate(self) -> None:
        state = self.rng.choice(["cached", "stored", "filled"])
        count = self.rng.choice([1, 1, 1, 2, door.COUNT_STICKY - 1, door.COUNT_STICKY])
        entry = (state, count, self.rng.getrandbits(48))
        offset = self.space.allocate(*entry)
        assert offset not in self.entries
        assert offset != 0
        self.entries[offset] = entry

    def get(self, offset: int) -> None:
        state, count, payload = self.entries[offset]
        self.space.get(offset)
        self.entries[offset] = (state, min(count + 1, door.COUNT_STICKY), payload)

    def put(self, offset: int) -> None:
        state, count, payload = self.entries[offset]
        if count == 0:
            return self.settle(offset)
        freed = count == 1 and state != "cached"
        assert self.space.put(offset) == freed
        if freed:
            del self.entries[offset]
        elif count != door.COUNT_STICKY:
            self.entries[offset] = (state, count - 1, payload)
        return None

    def settle(self, offset: int) -> None:
        """What the evictor does with a cached entry."""
        state, count, payload = self.entries[offset]
        if count == 0:
            self.space.free(offset)
            del self.entries[offset]
        elif state == "cached":
            self.space.set(offset, "stored", count, payload ^ 1)
            self.entries[offset] = ("stored", count, payload ^ 1)

    def step(self, growth: float) -> None:
        if not self.entries or self.rng.random() < growth:
            return self.allocate()
        # Neighbours mostly, so that whole leaves empty.
        offset = min(self.rng.choices(self.offsets, k=2))
        if offset in self.entries:
            self.rng.choice([self.get, self.put, self.put, self.put, self.settle])(offset)
        return None

    def run(self, steps: int, growth: float) -> None:
        for step in range(steps):
            if step % 200 == 0:
                self.offsets = list(self.entries) or [0]
            self.step(growth)
        assert self.space.check() == sorted(self.entries)
        assert self.space.entries == len(self.entries)
        for offset, entry in self.entries.items():
            assert self.space.entry(offset) == entry


@pytest.mark.parametrize("seed", range(8))
def test_a_space_is_what_the_model_says(space: door.Space, seed: int) -> None:
    model = Model(space, random.Random(seed))
    for growth in (0.8, 0.1, 0.5, 0.05, 0.9):
        model.run(4000, growth)
    for offset in list(model.entries):
        space.free(offset)
    assert space.check() == []
    assert (space.entries, space.leaf_pages) == (0, 1)


def test_a_stamp_changes_nothing_else() -> None:
    space = door.Space()
    stored = 17 | 5 << 12 | 3 << 36  # index, block, stamp
    offset = space.allocate("stored", 7, stored)
    space.stamp(offset, 4096 + 9)
    assert space.entry(offset) == ("stored", 7, 17 | 5 << 12 | 9 << 36)
    filled = space.allocate("filled", 2, stored)
    space.stamp(filled, 1)
    assert space.entry(filled) == ("filled", 2, stored)
