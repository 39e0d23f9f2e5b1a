# SPDX-License-Identifier: GPL-2.0-or-later
"""The swapper space in both layouts, against a model: a dict from offset to (state, count, payload)."""

import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from userswap import tests_door as door

LEAF = 512
STAMP = 36  # bits of a stored page's payload below its stamp
CONTINUED = 65535  # what a continuation can count


@pytest.fixture(params=[64, 32])
def space(request: pytest.FixtureRequest) -> Iterator[door.Space]:
    space = door.Space(request.param)
    yield space
    space.check()


def payloads(space: door.Space) -> int:
    """The greatest payload of this layout, but for the stamp."""
    return (1 << min(space.payload_bits, STAMP)) - 1


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
    for payload in (0, 1, 0x5A5A5A5A5A5A & payloads(space), payloads(space)):
        for count in (0, 1, 2, space.count_more - 1, space.count_more, space.count_more + 1, 40_000):
            assert space.entry(space.allocate(state, count, payload)) == (state, count, payload)
        assert space.entry(space.allocate(state, -1, payload)) == (state, door.EVER, payload)


def test_a_change_leaves_the_count(space: door.Space) -> None:
    for count in (0, 1, space.count_more, 40_000, -1):
        offset = space.allocate("cached", count)
        kept = space.entry(offset)[1]
        space.change(offset, "stored", 77)
        assert space.entry(offset) == ("stored", kept, 77)
        space.change(offset, "filled", payloads(space))
        assert space.entry(offset) == ("filled", kept, payloads(space))


def test_an_unused_offset_costs_nothing(space: door.Space) -> None:
    assert space.leaf_count == 0
    offsets = [space.allocate() for _ in range(10 * LEAF)]
    assert space.leaf_count == 11
    for offset in offsets:
        space.free(offset)
    assert space.entries == 0
    assert space.leaf_count == 1  # the leaf of offset 0, which is taken for ever


def anonymous() -> int:
    """Bytes of memory that this process has for itself."""
    found = re.search(r"^Anonymous: +(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def test_entries_take_what_they_have_to_and_give_it_back(space: door.Space) -> None:
    """As the kernel sees it: 8 or 4 bytes, and a little for the root."""
    pages, size = 1 << 21, 8 if space.payload_bits == 48 else 4
    before = anonymous()
    space.fill(pages)
    assert pages * size <= anonymous() - before < pages * (size + 0.2)
    for offset in range(1, pages + 1):
        space.free(offset)
    assert (space.entries, space.leaf_count) == (0, 1)
    assert anonymous() - before < pages * 0.2


def test_a_leaf_is_freed_with_its_last_entry_and_made_again(space: door.Space) -> None:
    offsets = [space.allocate() for _ in range(4 * LEAF - 1)]
    middle = [offset for offset in offsets if offset // LEAF == 2]
    for offset in middle[:-1]:
        space.free(offset)
    assert space.leaf_count == 4
    space.free(middle[-1])
    assert space.leaf_count == 3
    assert space.entry(middle[0]) == ("free", 0, 0)
    again = [space.allocate() for _ in middle]
    assert sorted(again) == middle
    assert space.leaf_count == 4


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


def test_an_entry_for_ever_stays(space: door.Space) -> None:
    offset = space.allocate("stored", -1, 5)
    for _ in range(20):
        space.get(offset)
    for _ in range(40_000):
        assert not space.put(offset)
    assert space.entry(offset) == ("stored", door.EVER, 5)
    assert space.continuations == 0


# ---- counts that are continued


def test_a_count_goes_over_its_bits_and_comes_back(space: door.Space) -> None:
    """Thousands of counts of one offset, beside neighbours that have few."""
    below, offset, above = (space.allocate("stored", 1, payload) for payload in (3, 5, 7))
    greatest = space.count_more + 3000
    for count in range(2, greatest + 1):
        space.get(offset)
        if count % 97 == 0 or abs(count - space.count_more) < 3:
            assert space.entry(offset) == ("stored", count, 5)
            assert space.continuations == (count > space.count_more)
    assert space.check() == [below, offset, above]
    for count in range(greatest - 1, 0, -1):
        assert not space.put(offset)
        if count % 97 == 0 or abs(count - space.count_more) < 3:
            assert space.entry(offset) == ("stored", count, 5)
            assert space.continuations == (count > space.count_more)
    assert space.put(offset)
    assert space.entry(below) == ("stored", 1, 3)
    assert space.entry(above) == ("stored", 1, 7)
    assert space.entries == 2


def test_counts_are_continued_leaf_by_leaf(space: door.Space) -> None:
    offsets = [space.allocate("stored", space.count_more + 1 + at % 3, at) for at in range(3 * LEAF)]
    assert space.continuations == 4
    for at, offset in enumerate(offsets):
        assert space.entry(offset) == ("stored", space.count_more + 1 + at % 3, at)
    for at, offset in enumerate(offsets):
        for _ in range(1 + at % 3):
            assert not space.put(offset)
        assert space.entry(offset) == ("stored", space.count_more, at)
    assert space.continuations == 0


def test_freeing_an_entry_ends_its_continuation(space: door.Space) -> None:
    offset = space.allocate("cached", space.count_more + 9)
    assert space.continuations == 1
    space.free(offset)
    assert (space.continuations, space.entries) == (0, 0)
    assert space.allocate("stored", 1, 8) == offset
    assert space.entry(offset) == ("stored", 1, 8)


def test_a_count_beyond_the_continuation_stays_for_ever(space: door.Space) -> None:
    most = space.count_more + CONTINUED
    offset = space.allocate("stored", most, 5)
    other = space.allocate("stored", space.count_more + 1, 6)
    assert space.entry(offset) == ("stored", most, 5)
    assert not space.put(offset)
    space.get(offset)
    assert space.entry(offset) == ("stored", most, 5)
    space.get(offset)
    assert space.entry(offset) == ("stored", door.EVER, 5)
    for _ in range(most + 10):
        assert not space.put(offset)
    assert space.entry(offset) == ("stored", door.EVER, 5)
    assert space.entry(other) == ("stored", space.count_more + 1, 6)


def test_without_memory_for_a_continuation_the_entry_stays_for_ever(space: door.Space) -> None:
    space.limit(continuations=1)
    first = space.allocate("stored", space.count_more + 1, 5)
    offsets = [space.allocate("stored", 1, 6) for _ in range(LEAF)]
    neighbour, far = offsets[0], offsets[-1]
    for offset in (neighbour, far):
        for _ in range(space.count_more + 4):
            space.get(offset)
    assert space.entry(neighbour) == ("stored", space.count_more + 5, 6)
    assert space.entry(far) == ("stored", door.EVER, 6)
    for offset in (neighbour, far):
        freed = [space.put(offset) for _ in range(space.count_more + 5)]
        assert sum(freed) == (offset == neighbour)
    assert space.entry(first) == ("stored", space.count_more + 1, 5)


def test_the_layouts_say_how_much_swap_there_can_be() -> None:
    assert door.Space(64).largest_swap == 2 << 40
    assert door.Space(32).largest_swap == 64 << 30


# ---- repeated words


def double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


# Such that 24 bits hold what matters, and such that only 45 do.
SHORT = [
    *[0, 1, 0xFF, 0x112233, (1 << 24) - 1],
    *[1 << 63, double(1.0), double(-1.0), double(0.5), double(-0.0), double(float("inf"))],
    *[(1 << 64) - 1, (1 << 64) - 2, (1 << 64) - (1 << 23)],
    *[0x00ABCDEF00ABCDEF, 0x0000000100000001],
]
LONGER = [
    *[1 << 24, 0x1122334455, (1 << 45) - 1, double(0.1) >> 19 << 19],
    *[(1 << 64) - (1 << 23) - 1, (1 << 64) - (1 << 44) + 1],
    *[0xDEADBEEFDEADBEEF, 0x0101010101010101, 0xCCCCCCCCCCCCCCCC, 0x3F8000003F800000],
]
LONG = [double(0.1), double(-1e300), 1 << 45 | 1, 0x0123456789ABCDEF, (1 << 64) - (1 << 44) - 1]


def coded(space: door.Space, value: int) -> int:
    """What an entry says that was given the word."""
    offset = space.allocate("cached")
    space.change(offset, "filled", space.fill_code(value))
    return space.fill_value(space.entry(offset)[2])


@pytest.mark.parametrize("value", SHORT, ids=hex)
def test_a_short_fill_word_needs_no_table(space: door.Space, value: int) -> None:
    assert coded(space, value) == value
    assert space.fill_words == 0


@pytest.mark.parametrize("value", LONGER, ids=hex)
def test_a_longer_one_needs_it_in_32_bits(space: door.Space, value: int) -> None:
    assert coded(space, value) == value
    assert coded(space, value) == value
    assert space.fill_words == (space.payload_bits < 48)


@pytest.mark.parametrize("value", LONG, ids=hex)
def test_a_long_fill_word_is_in_the_table_once(space: door.Space, value: int) -> None:
    assert coded(space, value) == value
    assert space.fill_code(value) == space.fill_code(value)
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
    assert max(codes) < 1 << space.payload_bits
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
    """What the space has to hold, and the operations that change both. A count of -1 is for ever."""

    def __init__(self, space: door.Space, rng: random.Random) -> None:
        self.space = space
        self.rng = rng
        self.entries: dict[int, tuple[str, int, int]] = {}

    def allocate(self) -> None:
        state = self.rng.choice(["cached", "stored", "filled"])
        more = self.space.count_more if self.rng.random() < 0.02 or self.space.count_more < 10 else 2
        count = self.rng.choice([1, 1, 1, 2, more - 1, more, more + 1, -1])
        payload = self.rng.getrandbits(min(self.space.payload_bits, STAMP))
        offset = self.space.allocate(state, count, payload)
        assert offset not in self.entries
        assert offset != 0
        self.entries[offset] = (state, count, payload)

    def get(self, offset: int) -> None:
        state, count, payload = self.entries[offset]
        self.space.get(offset)
        self.entries[offset] = (state, count if count < 0 else count + 1, payload)

    def put(self, offset: int) -> None:
        state, count, payload = self.entries[offset]
        if count == 0:
            return self.settle(offset)
        freed = count == 1 and state != "cached"
        assert self.space.put(offset) == freed
        if freed:
            del self.entries[offset]
        elif count > 0:
            self.entries[offset] = (state, count - 1, payload)
        return None

    def settle(self, offset: int) -> None:
        """What the evictor does with a cached entry."""
        state, count, payload = self.entries[offset]
        if count == 0:
            self.space.free(offset)
            del self.entries[offset]
        elif state == "cached":
            self.space.change(offset, "stored", payload ^ 1)
            self.entries[offset] = ("stored", count, payload ^ 1)

    def step(self, growth: float) -> None:
        if not self.entries or self.rng.random() < growth:
            return self.allocate()
        # Neighbours mostly, so that whole leaves empty.
        offset = min(self.rng.choices(self.offsets, k=2))
        if offset in self.entries:
            operations = [self.get, self.get, self.put, self.put, self.put, self.put, self.settle]
            for _ in range(self.rng.choice([1, 1, 6])):  # the same, so that small counts go over and back too
                if offset in self.entries:
                    self.rng.choice(operations)(offset)
        return None

    def run(self, steps: int, growth: float) -> None:
        for step in range(steps):
            if step % 200 == 0:
                self.offsets = list(self.entries) or [0]
            self.step(growth)
        assert self.space.check() == sorted(self.entries)
        assert self.space.entries == len(self.entries)
        for offset, (state, count, payload) in self.entries.items():
            assert self.space.entry(offset) == (state, door.EVER if count < 0 else count, payload)


@pytest.mark.parametrize("seed", range(8))
def test_a_space_is_what_the_model_says(space: door.Space, seed: int) -> None:
    model = Model(space, random.Random(seed))
    for growth in (0.8, 0.1, 0.5, 0.05, 0.9):
        model.run(4000, growth)
    for offset in list(model.entries):
        space.free(offset)
    assert space.check() == []
    assert (space.entries, space.leaf_count, space.continuations) == (0, 1, 0)


# ---- stamps


def stamp_of(space: door.Space, offset: int) -> int:
    return space.entry(offset)[2] >> STAMP


def test_a_stamp_changes_nothing_else() -> None:
    space = door.Space()
    stored = 17 | 5 << 12 | 3 << 36  # index, block, stamp
    offset = space.allocate("stored", 7, stored)
    space.stamp(offset, 4096 + 9)
    assert space.entry(offset) == ("stored", 7, 17 | 5 << 12 | 9 << 36)
    filled = space.allocate("filled", 2, stored)
    space.stamp(filled, 1)
    assert space.entry(filled) == ("filled", 2, stored)


def test_what_was_evicted_together_has_its_stamp_in_32_bits() -> None:
    space = door.Space(32)
    space.fill(LEAF - 1)  # the rest of the leaf of offset 0
    for stamp in (4000, 4095, 0, 7):  # the clock goes round
        offsets = [space.allocate("cached") for _ in range(LEAF)]
        for place, offset in enumerate(offsets):
            space.change(offset, "stored", stamp << STAMP | place)
        assert {space.entry(offset) for offset in offsets} == {
            ("stored", 1, stamp << STAMP | place) for place in range(len(offsets))
        }
        for offset in offsets:
            space.free(offset)


def test_a_leaf_has_the_mean_of_its_stamps_in_32_bits() -> None:
    space = door.Space(32)
    offsets = [space.allocate("cached") for _ in range(400)]
    for stamp in range(400):
        space.change(offsets[stamp], "stored", (4000 + stamp) % 4096 << STAMP | 9)
    assert {space.entry(offset)[2] & (1 << STAMP) - 1 for offset in offsets} == {9}
    assert stamp_of(space, offsets[0]) == (4000 + 199) % 4096
    # Each of them anew: those from before weigh less and less.
    for offset in offsets:
        space.stamp(offset, 1000)
    before = (1000 - 103) * 0.368  # (1 - 1/n)^n of it is left
    assert abs((1000 - stamp_of(space, offsets[0])) - before) < 3


def test_a_page_that_moves_changes_no_stamp_in_32_bits() -> None:
    space = door.Space(32)
    offsets = [space.allocate("stored", 1, stamp * 3 << STAMP) for stamp in range(100)]
    mean = stamp_of(space, offsets[0])
    for offset in offsets:
        space.change(offset, "stored", stamp_of(space, offset) << STAMP | 5)
    assert space.entry(offsets[50]) == ("stored", 1, mean << STAMP | 5)
