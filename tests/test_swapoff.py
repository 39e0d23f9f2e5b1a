# SPDX-License-Identifier: GPL-2.0-or-later
"""Emptying an area of a log: what moves, what does not change, and what happens when the medium fails."""

import errno
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import wait_until
from test_log import BLOCK_BYTES, Make, Swap, fails, make

__all__ = ["make"]  # the fixture


def filled(make: Make, *slots: int, blocks: int) -> Swap:
    """A log with so many blocks in its first area, none of them in memory."""
    swap = make(*slots)
    for _ in range(blocks):
        swap.store_block()
    swap.push_out()
    swap.verify()
    return swap


def entries(swap: Swap) -> dict[int, tuple[int, int, int, int]]:
    return {offset: swap.log.entry(offset) for offset in swap.pages}


def areas_of(swap: Swap) -> set[int]:
    return {swap.log.block(swap.block_of(offset))["area"] for offset in swap.pages}


def test_all_blocks_move_and_no_entry_changes(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=8)
    before = entries(swap)
    reads = swap.log.area(0)["reads"]
    used = swap.log.slots_used
    assert swap.log.swapoff(0) == used
    assert entries(swap) == before
    assert areas_of(swap) == {1}
    # One read of a whole block each, but for those that were in memory still; one aligned write each.
    area = swap.log.area(1)
    assert swap.log.area(0)["reads"] - reads <= used
    assert (area["writes"], area["bytes_written"]) == (used, used * BLOCK_BYTES)
    assert area["bad_calls"] == 0
    assert swap.log.slots_used == used
    swap.verify()


def test_an_emptied_area_is_not_written_to_again(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=4)
    swap.log.swapoff(0)
    writes = swap.log.area(0)["writes"]
    for _ in range(8):
        swap.store_block()
    assert swap.log.area(0)["writes"] == writes
    assert areas_of(swap) == {1}
    swap.verify()
    with fails(errno.ENOENT):
        swap.log.swapoff(0)
    with fails(errno.ENOENT):
        swap.log.swapoff(7)


def test_an_empty_area_goes_at_once(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=4)
    assert swap.log.swapoff(1) == 0
    assert areas_of(swap) == {0}
    swap.verify()


def test_what_the_rest_cannot_hold_is_refused_and_nothing_moves(make: Make) -> None:
    swap = filled(make, 40, 10, blocks=8)
    where = areas_of(swap)
    with fails(errno.ENOSPC):
        swap.log.swapoff(0)
    assert areas_of(swap) == where
    assert swap.log.area(1)["write_calls"] == 0
    swap.store_block()
    swap.verify()


def test_the_only_area_is_refused(make: Make) -> None:
    swap = filled(make, 40, blocks=2)
    with fails(errno.ENOSPC):
        swap.log.swapoff(0)
    swap.verify()


@pytest.mark.parametrize("failing", ["read", "write"])
def test_an_error_leaves_the_rest_where_it_is(make: Make, failing: str) -> None:
    swap = filled(make, 40, 40, blocks=8)
    if failing == "read":
        swap.log.fail_reads(0, errno.EIO)
    else:
        swap.log.fail_writes(1, errno.EIO, torn=True)
    with fails(errno.EIO):
        swap.log.swapoff(0)
    swap.verify()
    swap.store_block()
    swap.verify()
    swap.log.swapoff(0)
    assert areas_of(swap) == {1}
    swap.verify()


def test_a_block_that_is_being_read_moves_when_the_reader_is_done(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=3)
    offset = min(swap.pages)
    pin, index = swap.log.pin(offset)
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(swap.log.swapoff, 0)
        moving.add_done_callback(lambda _: done.set())
        wait_until(lambda: swap.log.area(1)["writes"] > 0, 10, "blocks are written")
        assert not done.wait(0.05)
        assert swap.log.block(swap.block_of(offset))["area"] == 0
        assert pin.read(index) == swap.pages[offset]
        pin.unpin()
        moving.result(10)
    assert areas_of(swap) == {1}
    swap.verify()


def churn(swap: Swap, stop: threading.Event, rng: random.Random) -> None:
    """Packs, frees, writes and cleans, as the evictor and the writer do."""
    while not stop.is_set():
        for _ in range(64):
            swap.pack()
        for offset in rng.sample(sorted(swap.pages), 64):
            swap.put(offset)
        swap.write()
        assert swap.log.clean() >= 0 or swap.log.free_slots > 0


def test_back_and_forth_while_pages_come_and_go(make: Make) -> None:
    swap = filled(make, 60, 60, blocks=6)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(churn, swap, stop, random.Random(3))
        try:
            moved = swap.log.swapoff(0)
        finally:
            stop.set()
        working.result(30)
    assert moved > 0
    assert {swap.log.area(0)["writes"] > 0, swap.log.area(1)["writes"] > 0} == {True}
    swap.write()
    swap.verify()
    assert 0 not in areas_of(swap) or swap.log.block(swap.block_of(max(swap.pages)))["in_memory"]
