# SPDX-License-Identifier: GPL-2.0-or-later
"""Emptying an area of a log: what moves, what does not change, and what happens when the medium fails."""

import errno
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import wait_until
from test_log import BLOCK, BLOCK_BYTES, SPARE, Make, Swap, fails, make

__all__ = ["make"]  # the fixture
MOVERS = 2  # of swapoff.pyx


def filled(make: Make, *slots: int, blocks: int) -> Swap:
    """A log with so many blocks in its first area, none of them in memory."""
    swap = make(*slots)
    for _ in range(blocks):
        swap.store_block()
    wanted = set(swap.pages)
    swap.push_out()
    for offset in set(swap.pages) - wanted:
        swap.put(offset)
    swap.verify()
    return swap


def thinned(make: Make, *slots: int, blocks: int, live: int) -> Swap:
    """The same, with so many live pages in each block."""
    swap = filled(make, *slots, blocks=blocks)
    for block in {swap.block_of(offset) for offset in swap.pages}:
        for offset in [offset for offset in swap.pages if swap.block_of(offset) == block][live:]:
            swap.put(offset)
    return swap


def swapoff_while_writing(swap: Swap) -> int:
    """Blocks that were moved out of the first area, while full blocks are written as ever."""
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(swap.log.swapoff, 0)
        while not moving.done():
            if swap.log.write_next() == 0:
                time.sleep(0.0005)
        swap.write()
        return moving.result()


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


def test_of_a_block_that_is_mostly_dead_only_the_pages_move(make: Make) -> None:
    swap = thinned(make, 40, 40, blocks=12, live=BLOCK // 4)
    assert swapoff_while_writing(swap) == 12
    assert (swap.log.area(1)["writes"], swap.log.slots_used) == (3, 3)
    assert {swap.log.block(swap.block_of(offset))["packed"] for offset in swap.pages} == {True}
    swap.verify()


def test_a_block_that_is_half_alive_moves_whole(make: Make) -> None:
    swap = thinned(make, 40, 40, blocks=6, live=BLOCK // 2)
    before = entries(swap)
    assert swapoff_while_writing(swap) == 6
    assert entries(swap) == before
    assert areas_of(swap) == {1}
    swap.verify()


def test_what_is_dead_needs_no_room(make: Make) -> None:
    swap = thinned(make, 40, 10, blocks=24, live=BLOCK // 8)
    assert swapoff_while_writing(swap) == 24
    assert swap.log.slots_used == 3
    swap.verify()


def test_an_error_amid_the_pages_of_a_block_leaves_the_rest(make: Make) -> None:
    swap = thinned(make, 40, 40, blocks=6, live=BLOCK // 4)
    swap.log.fail_reads(0, errno.EIO, -1)
    with fails(errno.EIO):
        swapoff_while_writing(swap)
    swap.log.fail_reads(0, 0)
    swap.verify()
    swapoff_while_writing(swap)
    swap.verify()
    with fails(errno.ENOENT):
        swap.log.swapoff(0)


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


def states_of(swap: Swap) -> set[str]:
    return {swap.log.block(swap.block_of(offset))["state"] for offset in swap.pages}


def test_into_memory_where_no_area_is_left(make: Make) -> None:
    swap = filled(make, 40, blocks=4)
    before = entries(swap)
    used = swap.log.slots_used
    assert swap.log.swapoff(0, memory_blocks=used) == used
    assert entries(swap) == before
    assert states_of(swap) == {"full"}
    assert swap.log.tiered == used
    assert swap.log.slots_used == 0
    swap.verify()
    # There they stay: nothing tries to write them, and what is packed next stays as well.
    swap.pack_block()
    assert swap.log.write_next() == 0
    assert swap.log.tiered == used + 1
    swap.verify()


def test_into_memory_what_the_rest_cannot_hold(make: Make) -> None:
    swap = filled(make, 40, 10, blocks=8)
    used = swap.log.slots_used
    held = 10 - SPARE
    with fails(errno.ENOSPC):
        swap.log.swapoff(0, memory_blocks=used - held - 1)
    assert swap.log.swapoff(0, memory_blocks=used - held) == used
    assert swap.log.area(1)["writes"] >= held
    assert 0 < swap.log.tiered <= used - held
    swap.verify()


def test_an_error_on_the_way_into_memory_leaves_the_rest_where_it_is(make: Make) -> None:
    swap = filled(make, 40, blocks=8)
    swap.log.fail_reads(0, errno.EIO, -1)
    with fails(errno.EIO):
        swap.log.swapoff(0, memory_blocks=40)
    swap.log.fail_reads(0, 0)
    swap.verify()
    swap.store_block()
    swap.log.swapoff(0, memory_blocks=40)
    assert states_of(swap) == {"full"}
    swap.verify()


def test_what_came_into_memory_is_written_again_where_there_is_an_area(make: Make) -> None:
    swap = filled(make, 40, blocks=4)
    used = swap.log.swapoff(0, memory_blocks=40)
    swap.add(40)
    assert swap.log.write_next() == 0
    swap.log.tier(used - 2)
    swap.write()
    assert (swap.log.tiered, swap.log.slots_used) == (used - 2, 2)
    swap.verify()


@pytest.mark.parametrize("failing", ["read", "write"])
def test_an_error_leaves_the_rest_where_it_is(make: Make, failing: str) -> None:
    swap = filled(make, 40, 40, blocks=8)
    if failing == "read":
        swap.log.fail_reads(0, errno.EIO, -1)
    else:
        swap.log.fail_writes(1, errno.EIO, torn=True)
    with fails(errno.EIO):
        swap.log.swapoff(0)
    swap.log.fail_reads(0, 0)
    swap.verify()
    swap.store_block()
    swap.verify()
    swap.log.swapoff(0)
    assert areas_of(swap) == {1}
    swap.verify()


def test_a_read_that_fails_once_is_made_again(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=8)
    swap.log.fail_reads(0, errno.EIO)
    swap.log.swapoff(0)
    assert areas_of(swap) == {1}
    swap.verify()


def test_nothing_is_lost_when_both_movers_fail(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=8)
    used = swap.log.slots_used
    swap.log.delay_writes(1, 20_000)  # while one fails the other is at it
    swap.log.fail_writes(1, errno.EIO, -1, torn=True)
    with fails(errno.EIO):
        swap.log.swapoff(0)
    assert 1 <= swap.log.area(1)["write_calls"] <= MOVERS
    assert swap.log.slots_used == used
    assert areas_of(swap) == {0}
    swap.verify()
    swap.log.fail_writes(1, 0)
    swap.log.swapoff(0)
    assert areas_of(swap) == {1}
    swap.verify()


def test_an_error_stops_both_and_what_was_moved_stays_moved(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=8)
    used = swap.log.slots_used
    swap.log.delay_writes(1, 20_000)
    swap.log.fail_writes(1, errno.EIO, 1, torn=True)
    with fails(errno.EIO):
        swap.log.swapoff(0)
    area = swap.log.area(1)
    assert (
        area["write_calls"] <= MOVERS + 1
    )  # the other's, and one that it had begun before the error was told
    assert area["writes"] == area["write_calls"] - 1
    assert area["slot_end"] - area["returned"] == area["writes"]
    assert swap.log.slots_used == used
    swap.verify()


def test_a_cancelled_one_leaves_the_rest_and_can_be_resumed(make: Make) -> None:
    swap = filled(make, 40, 40, blocks=8)
    used = swap.log.slots_used
    swap.log.delay_writes(1, 100_000)
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(swap.log.swapoff, 0)
        wait_until(lambda: swap.log.area(1)["writes"] > 0, 10, "blocks are written")
        swap.log.cancel_swapoff()
        with fails(errno.ECANCELED):
            moving.result(10)
    moved = swap.log.area(1)["writes"]
    assert 0 < moved < used
    assert areas_of(swap) == {0, 1}
    swap.verify()
    swap.store_block()  # the area is in use as before
    assert swap.log.swapoff(0) == used + 1 - moved
    assert areas_of(swap) == {1}
    swap.verify()


def test_a_block_that_is_being_read_moves_when_the_reader_is_done(make: Make) -> None:
    """Its mover waits; the other one moves the rest."""
    swap = filled(make, 40, 40, blocks=8)
    offset = min(swap.pages)
    held = swap.block_of(offset)
    pin, index = swap.log.pin(offset)
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(swap.log.swapoff, 0)
        moving.add_done_callback(lambda _: done.set())
        others = {block for block in map(swap.block_of, swap.pages) if block != held}
        try:
            wait_until(
                lambda: {swap.log.block(block)["area"] for block in others} == {1},
                10,
                "the others have moved",
            )
            assert not done.wait(0.05)
            assert swap.log.block(held)["area"] == 0
            assert pin.read(index) == swap.pages[offset]
        finally:
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
