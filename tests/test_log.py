# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of blocks and the store of files, on real files opened O_DIRECT, with stores that fail."""

import errno
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from userswap import tests_door as door

PAGE = 4096
BLOCK = 512
BLOCK_BYTES = BLOCK * PAGE
SPARE = 4  # as the evictor's SLOTS_SPARE
GAIN = 16  # and CLEAN_GAIN


class Swap:
    """A log on files, and every page that it has to hold."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *slots: int,
        bits: int,
        buffers: int = 6,
        seed: int = 1,
        apart: bool = False,
    ) -> None:
        self.log = door.Log(buffers, bits, apart)
        self.rng = random.Random(seed)
        self.pages: dict[int, bytes] = {}
        self.files: list[Path] = []
        self._folder, self._stack = folder, stack
        for number in slots:
            self.add(number)

    def add(self, slots: int) -> None:
        """One more area."""
        self.files.append(self._folder / f"area{len(self.files)}")
        fd = os.open(self.files[-1], os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        self._stack.callback(os.close, fd)
        self.log.add_area(fd, slots * BLOCK_BYTES)

    def page(self) -> bytes:
        return self.rng.randbytes(PAGE)

    def pack(self, stamp: int = 0, hot: bool = False) -> int:
        page = self.page()
        offset = self.log.pack(page, stamp, hot)
        assert offset not in self.pages
        self.pages[offset] = page
        return offset

    def pack_block(self, hot: bool = False) -> list[int]:
        return [self.pack(hot=hot) for _ in range(BLOCK)]

    def put(self, offset: int) -> None:
        assert self.log.put(offset)
        del self.pages[offset]

    def write(self) -> None:
        """Writes all that is full."""
        while (result := self.log.write_next()) == 1:
            pass
        assert result == 0

    def store_block(self, hot: bool = False) -> list[int]:
        """A block that has been written; its pages."""
        assert self.log.queued == 0
        offsets = self.pack_block(hot)
        self.write()
        return offsets

    def push_out(self, blocks: int = 7) -> None:
        """Packs and frees until blocks that were only kept in memory are so no more."""
        for _ in range(blocks):
            for offset in self.store_block()[1:]:
                self.put(offset)

    def block_of(self, offset: int) -> int:
        return self.log.entry(offset)[1]

    def pack_for_ever(self, count: int, rng: random.Random) -> tuple[dict[int, bytes], list[int]]:
        """Packs pages of which every fourth is to stay for ever, and so to be moved again and again: these,
        and the offsets of the others."""
        kept: dict[int, bytes] = {}
        passing: list[int] = []
        for _ in range(count):
            offset = self.pack()
            if rng.random() < 0.25:
                kept[offset] = self.pages[offset]
            else:
                passing.append(offset)
        return kept, passing

    def read_until(self, stop: threading.Event, kept: dict[int, bytes], seed: int) -> int:
        """Reads pages of `kept` at random, and checks them; how many."""
        choose, done = random.Random(seed), 0
        offsets = list(kept)
        while not stop.is_set():
            offset = choose.choice(offsets)
            assert self.log.read(offset) == kept[offset]
            done += 1
        return done

    def verify(self) -> None:
        """Every byte is what was packed, and the invariants hold."""
        self.log.check()
        for offset, page in self.pages.items():
            assert self.log.read(offset) == page, f"offset {offset}"
        self.log.check()


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        yield
    assert caught.value.errno == number


class Make:
    """Makes Swaps in a folder of its own, with entries of so many bits."""

    def __init__(self, folder: Path, stack: ExitStack, bits: int) -> None:
        self.folder = folder
        self.stack = stack
        self.bits = bits

    def __call__(self, *slots: int, buffers: int = 6, seed: int = 1, apart: bool = False) -> Swap:
        return Swap(self.folder, self.stack, *slots, bits=self.bits, buffers=buffers, seed=seed, apart=apart)


@pytest.fixture(params=[64, 32])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    # Not pytest's folder, which may be on a tmpfs: that has no O_DIRECT.
    with tempfile.TemporaryDirectory(prefix="userswap-log-", dir="/var/tmp") as folder, ExitStack() as stack:
        yield Make(Path(folder), stack, request.param)


# ---- packing and writing


def test_pages_are_read_back_from_the_open_block(make: Make) -> None:
    swap = make(4)
    for _ in range(10):
        swap.pack()
    assert swap.log.block(0)["state"] == "open"
    assert swap.log.write_next() == 0
    swap.verify()
    assert swap.log.area(0)["write_calls"] == 0


def test_a_full_block_is_written_by_one_aligned_write(make: Make) -> None:
    swap = make(4)
    offsets = swap.pack_block()
    assert swap.log.queued == 1
    assert swap.log.block(0)["state"] == "full"
    swap.verify()
    assert swap.log.write_next() == 1
    area = swap.log.area(0)
    assert (area["write_calls"], area["writes"], area["bytes_written"]) == (1, 1, BLOCK_BYTES)
    assert swap.log.block(0) == {
        "state": "stored",
        "area": 0,
        "slot": 0,
        "live": BLOCK,
        "used": BLOCK,
        "pins": 0,
        "in_memory": True,
        "bytes": BLOCK_BYTES,
        "packed": False,
        "hot": False,
        "cleaned": False,
    }
    # What is on the medium is what was packed, in the order it was packed.
    assert swap.files[0].read_bytes() == b"".join(swap.pages[offset] for offset in offsets)
    swap.verify()


def test_every_write_is_a_whole_aligned_block(make: Make) -> None:
    """Seen from outside: the kernel counts calls and bytes of this process (/proc/self/io)."""

    def counted() -> tuple[int, int]:
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(lines["syscw"]), int(lines["wchar"])

    swap = make(16)
    for _ in range(4):
        swap.pack_block()
    calls, written = counted()
    results = [swap.log.write_next() for _ in range(4)]
    calls_after, written_after = counted()
    assert results == [1] * 4
    assert calls_after - calls == 4
    assert written_after - written == 4 * BLOCK_BYTES
    assert swap.files[0].stat().st_size == 4 * BLOCK_BYTES
    assert swap.log.area(0)["bad_calls"] == 0


def test_pages_come_back_from_the_area(make: Make) -> None:
    swap = make(32)
    offsets = swap.store_block()
    swap.push_out()
    assert not swap.log.block(swap.block_of(offsets[0]))["in_memory"]
    reads = swap.log.area(0)["reads"]
    swap.verify()
    assert swap.log.area(0)["reads"] >= reads + BLOCK


def test_a_run_of_pages_is_read_at_once(make: Make) -> None:
    swap = make(32)
    offsets = swap.store_block()
    swap.push_out()
    pin, index = swap.log.pin(offsets[100])
    before = swap.log.area(0)["read_calls"]
    assert not pin.in_memory
    assert pin.read(index, 200) == b"".join(swap.pages[offset] for offset in offsets[100:300])
    assert swap.log.area(0)["read_calls"] == before + 1
    pin.unpin()
    swap.verify()


def test_the_stamp_and_the_count_are_kept(make: Make) -> None:
    swap = make(8)
    offset = swap.pack(stamp=4095)
    swap.log.get(offset)
    assert swap.log.entry(offset) == (2, 0, 0, 4095)
    assert not swap.log.put(offset)
    assert swap.pack(stamp=4096 + 7) != offset
    assert swap.log.entry(offset + 1)[3] == (7 if make.bits == 64 else 3)  # there, the mean of the leaf


def test_a_file_grows_as_needed(make: Make) -> None:
    swap = make(1000)
    assert swap.files[0].stat().st_size == 0
    for used in (1, 2, 3):
        swap.store_block()
        assert swap.files[0].stat().st_size == used * BLOCK_BYTES


@pytest.mark.parametrize("size", [0, BLOCK_BYTES - 1, 1 << 52])
def test_a_store_of_an_impossible_size_is_refused(make: Make, size: int) -> None:
    swap = make()
    with fails(errno.EINVAL):
        swap.log.add_area(0, size)


# ---- freeing


def test_a_freed_block_gives_back_its_slot(make: Make) -> None:
    swap = make(4)
    first, second = swap.store_block(), swap.store_block()
    assert swap.log.slots_used == 2
    assert swap.log.free_slots == 2
    for offset in first[:-1]:
        swap.put(offset)
    assert swap.log.free_slots == 2
    swap.put(first[-1])
    assert swap.log.free_slots == 3
    third = swap.store_block()
    assert swap.log.block(swap.block_of(third[0]))["slot"] == 0
    assert swap.log.block(swap.block_of(second[0]))["slot"] == 1
    assert swap.log.area(0)["slot_end"] == 2
    assert swap.log.slots_peak == 2
    swap.verify()


def test_a_small_area_lasts_for_ever(make: Make) -> None:
    swap = make(2)
    for _ in range(20):
        for offset in swap.store_block():
            swap.put(offset)
    assert swap.log.area(0)["writes"] == 20
    assert swap.files[0].stat().st_size <= 2 * BLOCK_BYTES
    assert swap.log.blocks <= 2
    assert swap.log.slots_used == 0
    swap.log.check()


def test_a_block_that_was_all_given_back_is_never_written(make: Make) -> None:
    swap = make(4)
    for offset in swap.pack_block():
        swap.put(offset)
    assert swap.log.queued == 0
    assert swap.log.write_next() == 0
    assert swap.log.area(0)["write_calls"] == 0
    assert swap.log.buffers_free == 6
    swap.log.check()


def test_one_live_page_has_its_block_written(make: Make) -> None:
    swap = make(4)
    for offset in swap.pack_block()[:-1]:
        swap.put(offset)
    swap.write()
    assert swap.log.area(0)["writes"] == 1
    swap.verify()


def test_the_oldest_of_the_blocks_kept_in_memory_makes_room(make: Make) -> None:
    swap = make(32, buffers=3)
    blocks = [swap.block_of(swap.store_block()[0]) for _ in range(3)]
    assert [swap.log.block(block)["in_memory"] for block in blocks] == [True, True, True]
    swap.pack()
    assert [swap.log.block(block)["in_memory"] for block in blocks] == [False, True, True]
    swap.verify()


KEPT_SLOTS = 16  # as the log's


def test_free_slots_beyond_a_few_are_given_back_to_the_file_system(make: Make) -> None:
    swap = make(64)
    blocks = [swap.store_block() for _ in range(KEPT_SLOTS + 10)]
    allocated = swap.files[0].stat().st_blocks
    assert not swap.log.discard_next()
    for offset in [offset for block in blocks[2:] for offset in block]:
        swap.put(offset)
    for _ in range(8):
        assert swap.log.discard_next()
        swap.log.check()
    assert not swap.log.discard_next()
    assert swap.log.area(0)["discarded"] == 8
    given_back = (allocated - swap.files[0].stat().st_blocks) * 512
    assert given_back == pytest.approx(8 * BLOCK_BYTES, abs=PAGE * 8)  # holes take a little
    swap.verify()
    # What was discarded is used like any other slot, the others first.
    for _ in range(KEPT_SLOTS):
        swap.store_block()
    assert swap.log.area(0)["discarded"] == 8
    for _ in range(8):
        swap.store_block()
    assert (swap.log.area(0)["discarded"], swap.log.area(0)["slot_end"]) == (0, KEPT_SLOTS + 10)
    swap.verify()


def test_an_area_that_cannot_discard_is_not_asked_again(make: Make) -> None:
    swap = make(64)
    blocks = [swap.store_block() for _ in range(KEPT_SLOTS + 4)]
    swap.log.refuse_discards(0)
    for offset in [offset for block in blocks for offset in block]:
        swap.put(offset)
    assert swap.log.discard_next()
    assert not swap.log.discard_next()
    assert swap.log.area(0)["returned"] == KEPT_SLOTS + 4
    swap.store_block()
    swap.verify()


# ---- pins


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_pin_keeps_a_freed_block(make: Make, in_memory: bool) -> None:
    swap = make(12)
    offsets = swap.store_block()
    if not in_memory:
        swap.push_out()
    pages = [swap.pages[offset] for offset in offsets]
    pin, index = swap.log.pin(offsets[0])
    assert pin.in_memory == in_memory
    slot = swap.log.block(pin.block)["slot"]
    for offset in offsets:
        swap.put(offset)
    swap.log.check()
    for _ in range(3):  # much is written, but neither to its slot nor over its bytes
        assert swap.log.block(swap.block_of(swap.store_block()[0]))["slot"] != slot
    assert pin.read(index, BLOCK) == b"".join(pages)
    used = swap.log.slots_used
    pin.unpin()
    assert swap.log.slots_used == used - 1
    assert swap.log.block(pin.block)["state"] == "free"
    swap.verify()


def test_a_pinned_block_stays_in_memory(make: Make) -> None:
    swap = make(32, buffers=3)
    pin, index = swap.log.pin(swap.store_block()[5])
    page = pin.read(index)
    swap.push_out()
    assert swap.log.block(pin.block)["in_memory"]
    assert pin.read(index) == page
    pin.unpin()
    swap.push_out(3)
    assert not swap.log.block(pin.block)["in_memory"]
    swap.verify()


def test_a_pinned_block_that_was_given_back_before_its_write(make: Make) -> None:
    swap = make(4)
    offsets = swap.pack_block()
    page = swap.pages[offsets[3]]
    pin, index = swap.log.pin(offsets[3])
    for offset in offsets:
        swap.put(offset)
    swap.write()
    assert pin.read(index) == page
    pin.unpin()
    assert swap.log.buffers_free == 6
    assert swap.log.slots_used == 0
    swap.log.check()


# ---- cleaning


def test_cleaning_empties_the_emptiest_block(make: Make) -> None:
    swap = make(8)
    blocks = [swap.store_block() for _ in range(3)]
    for offset in blocks[0][::2] + blocks[1][3:] + blocks[2][:9]:
        swap.put(offset)
    assert swap.log.clean() == BLOCK - 3
    assert swap.log.slots_used == 2
    swap.verify()
    assert swap.log.clean() == BLOCK // 2
    assert swap.log.slots_used == 1
    swap.verify()
    assert swap.log.clean() == 9
    swap.write()
    swap.verify()


def test_cleaning_keeps_count_and_stamp(make: Make) -> None:
    swap = make(8)
    offset = swap.pack(stamp=321)
    swap.log.get(offset)
    for other in [swap.pack(stamp=321) for _ in range(BLOCK - 1)]:
        swap.put(other)
    swap.write()
    assert swap.log.clean() == BLOCK - 1
    count, block, _, stamp = swap.log.entry(offset)
    assert (count, stamp) == (2, 321)
    assert swap.log.block(block)["state"] == "open"
    swap.log.check()


def test_cleaning_gains_nothing_from_full_blocks_and_moves_nothing(make: Make) -> None:
    swap = make(8)
    assert swap.log.clean() == 0
    offsets = swap.store_block() + swap.store_block()
    entries = [swap.log.entry(offset) for offset in offsets]
    assert swap.log.clean() == 0
    assert [swap.log.entry(offset) for offset in offsets] == entries
    swap.verify()


def test_a_pinned_block_is_not_cleaned(make: Make) -> None:
    swap = make(8)
    one, other = swap.store_block(), swap.store_block()
    for offset in one[1:] + other[:100]:
        swap.put(offset)
    pin, index = swap.log.pin(one[0])
    assert swap.log.clean() == 100
    assert pin.read(index) == swap.pages[one[0]]
    pin.unpin()
    swap.verify()


def test_an_offset_that_was_given_to_another_page_is_left_alone(make: Make) -> None:
    """The reverse map of a block is not told of frees: it is only believed where the entry agrees."""
    swap = make(8)
    first = swap.store_block()
    for offset in first[1:]:
        swap.put(offset)
    again = swap.pack_block()  # has the same offsets
    assert set(again) & set(first)
    swap.write()
    assert swap.log.clean() == BLOCK - 1
    swap.verify()


def test_cleaning_reads_from_the_area(make: Make) -> None:
    swap = make(32)
    offsets = swap.store_block()
    swap.push_out()
    for offset in offsets[:10]:
        swap.put(offset)
    while swap.log.block(block := swap.block_of(offsets[10]))["state"] == "stored":
        assert not swap.log.block(block)["in_memory"]
        assert swap.log.clean() > 0
    swap.verify()


@pytest.mark.parametrize(("full", "slots", "seed"), [(0.5, 20, 1), (0.8, 20, 2), (0.9, 30, 3)])
@pytest.mark.parametrize("skewed", [False, True])
def test_random_overwrites(make: Make, full: float, slots: int, seed: int, skewed: bool) -> None:
    """An area that is 50, 80 or 90 % full of live pages, overwritten once over in random order."""
    spare = 2  # of so small an area, the evictor's four would be a fifth
    swap = make(slots, seed=seed)
    rng = random.Random(seed)
    live = int(slots * BLOCK * full)
    offsets: list[int] = []
    for step in range(live * 2):
        if len(offsets) == live:
            # Skewed: most of the overwrites are of a tenth of the pages.
            at = int(live * rng.random() ** (4 if skewed else 1))
            swap.put(offsets[at])
            offsets[at] = swap.pack()
        else:
            offsets.append(swap.pack())
        if swap.log.queued:
            swap.write()
        while swap.log.free_slots < spare:
            assert swap.log.clean() >= GAIN
            swap.write()
        if step % (live // 2) == 0:
            swap.log.check()
    swap.verify()
    area = swap.log.area(0)
    assert area["slot_end"] <= slots
    assert area["bytes_written"] == area["writes"] * BLOCK_BYTES
    assert area["bytes_written"] < 12 * live * 2 * PAGE
    for offset in offsets:
        swap.put(offset)
    swap.write()
    swap.log.check()
    assert swap.log.slots_used == 0
    assert swap.log.entries == 0


# ---- errors


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("torn", [False, True])
def test_after_a_failed_write_nothing_is_lost(make: Make, error: int, torn: bool) -> None:
    swap = make(4)
    swap.pack_block()
    swap.log.fail_writes(0, error, 3, torn=torn)
    for _ in range(3):
        assert swap.log.write_next() == -error
        assert swap.log.error == -error
        assert swap.log.queued == 1
        assert swap.log.slots_used == 0
        swap.verify()
    assert swap.log.write_next() == 1
    assert swap.log.error == 0
    swap.push_out(3)
    swap.verify()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_block_that_one_area_does_not_take_goes_to_the_next(make: Make, error: int) -> None:
    swap = make(30, 30)
    swap.log.fail_writes(0, error, -1, torn=True)
    offsets = swap.store_block()
    assert swap.log.error == 0
    assert swap.log.block(swap.block_of(offsets[0]))["area"] == 1
    assert (swap.log.area(0)["writes"], swap.log.area(1)["writes"]) == (0, 1)
    swap.push_out()
    swap.verify()
    assert swap.log.area(0)["writes"] == 0
    swap.log.fail_writes(0, 0)
    assert swap.log.block(swap.block_of(swap.store_block()[0]))["area"] == 0
    swap.verify()


def test_areas_fill_in_order_of_priority(make: Make) -> None:
    swap = make(2, 1, 3)
    blocks = [swap.block_of(swap.store_block()[0]) for _ in range(6)]
    where = [(swap.log.block(block)["area"], swap.log.block(block)["slot"]) for block in blocks]
    assert where == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert swap.log.free_slots == 0
    swap.pack_block()
    assert swap.log.write_next() == -errno.ENOSPC
    swap.verify()


def test_full_areas_stop_the_packer_with_the_reason_and_lose_nothing(make: Make) -> None:
    swap = make(1, buffers=3)
    swap.store_block()
    swap.pack_block()
    swap.pack_block()
    assert swap.log.write_next() == -errno.ENOSPC
    swap.pack_block()
    with fails(errno.ENOSPC):
        swap.pack()
    swap.verify()
    # Once something is given back it goes on.
    for offset in list(swap.pages)[:BLOCK]:
        swap.put(offset)
    swap.log.write_next()
    swap.pack()
    swap.verify()


def test_blocks_that_no_entry_could_name_are_not_made(make: Make) -> None:
    swap = make(8)
    swap.log.limit_blocks(3)
    kept, passing = swap.store_block(), swap.store_block()
    assert swap.log.free_slots == 1
    swap.store_block()
    assert swap.log.free_slots == 0
    with fails(errno.ENOSPC):
        swap.pack()
    swap.verify()
    for offset in passing:
        swap.put(offset)
    assert swap.log.free_slots == 1
    assert swap.block_of(swap.pack()) < 3
    with fails(errno.ENOSPC):
        for _ in range(BLOCK):
            swap.pack()
    swap.verify()
    assert swap.log.blocks_used == 3
    assert swap.block_of(kept[0]) == 0


def test_the_layout_says_how_many_blocks_there_can_be(make: Make) -> None:
    assert make(8).log.block_limit == (1 << 20 if make.bits == 64 else 1 << 15)


def test_a_block_given_back_after_its_write_failed(make: Make) -> None:
    swap = make(4, buffers=3)
    offsets = swap.pack_block()
    swap.log.fail_writes(0, errno.EIO, 1)
    assert swap.log.write_next() == -errno.EIO
    for offset in offsets:
        swap.put(offset)
    assert swap.log.write_next() == 0
    assert swap.log.area(0)["write_calls"] == 1
    swap.log.check()
    # The error went with it: a packer that runs out of buffers waits, and does not give up for a past one.
    assert swap.log.error == 0
    for _ in range(3):
        swap.pack_block()
    with ThreadPoolExecutor(1) as packer:
        packing = packer.submit(swap.pack)
        assert swap.log.write_next() == 1
        packing.result(10)
    swap.write()
    swap.verify()


@pytest.mark.parametrize("times", [1, -1])
def test_a_failed_read_says_so_and_changes_nothing(make: Make, times: int) -> None:
    swap = make(32)
    offsets = swap.store_block()
    swap.push_out()
    swap.log.fail_reads(0, errno.EIO, times)
    with fails(errno.EIO):
        swap.log.read(offsets[0])
    swap.log.fail_reads(0, 0)
    swap.verify()


def test_cleaning_that_cannot_read_leaves_all_as_it_was(make: Make) -> None:
    swap = make(32)
    offsets = swap.store_block()
    for offset in offsets[1:]:
        swap.put(offset)
    swap.push_out(6)
    entries = {offset: swap.log.entry(offset) for offset in swap.pages}
    swap.log.fail_reads(0, errno.EIO, -1)
    assert not swap.log.block(swap.block_of(offsets[0]))["in_memory"]
    assert swap.log.clean() == -errno.EIO
    assert {offset: swap.log.entry(offset) for offset in swap.pages} == entries
    swap.log.fail_reads(0, 0)
    swap.verify()


@pytest.mark.parametrize("seed", range(3))
def test_random_overwrites_with_random_errors(make: Make, seed: int) -> None:
    """Each write may fail, torn, and is tried again or goes to the other area; no byte is lost."""
    swap = make(12, 12, seed=seed)
    rng = random.Random(seed)
    live, failures = 20 * BLOCK * 3 // 4, 0
    for step in range(live * 3):
        if step >= live:
            swap.put(rng.choice(list(swap.pages)) if step % 97 == 0 else next(iter(swap.pages)))
        swap.pack()
        while swap.log.queued or swap.log.free_slots < SPARE:
            for area in (0, 1):
                error = rng.choice([0, 0, errno.EIO, errno.ENOSPC])
                swap.log.fail_writes(area, error, rng.choice([1, -1]), torn=True)
            if swap.log.free_slots < SPARE:
                assert swap.log.clean() >= GAIN
            failures += swap.log.write_next() < 0
    assert failures > 10
    swap.verify()


# ---- threads


def test_the_packer_waits_for_a_slow_store(make: Make) -> None:
    swap = make(16, buffers=3)
    swap.log.delay_writes(0, 100_000)
    for _ in range(3):
        swap.pack_block()
    with ThreadPoolExecutor(1) as writer:
        start = time.monotonic()
        writing = writer.submit(swap.log.write_next)
        swap.pack()
        assert time.monotonic() - start >= 0.1
        assert writing.result() == 1
    swap.write()
    swap.verify()


def test_packing_freeing_reading_and_writing_at_once(make: Make) -> None:
    """One packs and cleans, one writes (slowly), two read what cleaning is moving meanwhile."""
    swap = make(8, 5, buffers=3, seed=5)
    swap.log.delay_writes(0, 1000)
    rng = random.Random(5)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set() or swap.log.queued:
            if swap.log.write_next() <= 0:
                time.sleep(0.001)

    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(write)
        try:
            kept, passing = swap.pack_for_ever(8 * BLOCK, rng)
            readers = [threads.submit(swap.read_until, stop, kept, seed) for seed in (1, 2)]
            cleaned = 0
            for _ in range(30 * BLOCK):
                at = rng.randrange(len(passing))
                swap.put(passing[at])
                passing[at] = swap.pack()
                while swap.log.free_slots < SPARE:
                    gained = swap.log.clean()
                    cleaned += gained > 0
                    if gained == 0:
                        time.sleep(0.001)
        finally:
            stop.set()
        writing.result(10)
        assert all(reader.result(10) > 100 for reader in readers)
    assert cleaned > 0
    swap.verify()
