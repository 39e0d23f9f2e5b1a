# SPDX-License-Identifier: GPL-2.0-or-later
"""Readahead: what windows a sequence of faults gets."""

import random
from collections.abc import Callable

import pytest

from support import MIB, Programs, Runner
from userswap import tests_door as door

GROWTH = [1, 4, 16, 64, 128, 256, 512, 512, 512]
END = 1 << (47 - 12)
PAGE = 4096


def upwards(streams: door.Streams, page: int, faults: int) -> list[int]:
    """Faults each just above the window before; the sizes of the windows."""
    counts = []
    for _ in range(faults):
        start, count, _ = streams.fault(page)
        assert start == page
        counts.append(count)
        page += count
    return counts


def downwards(streams: door.Streams, page: int, faults: int) -> list[int]:
    counts = []
    for _ in range(faults):
        start, count, _ = streams.fault(page)
        assert start + count == page + 1
        counts.append(count)
        page = start - 1
    return counts


Direction = Callable[[door.Streams, int, int], list[int]]


@pytest.mark.parametrize("direction", [upwards, downwards])
def test_windows_grow_along_a_stream(direction: Direction) -> None:
    assert direction(door.Streams(), 1 << 20, len(GROWTH)) == GROWTH


@pytest.mark.parametrize("direction", [upwards, downwards])
@pytest.mark.parametrize("most", [1, 2, 3, 16, 100, 511, 512, 1000])
def test_no_window_is_larger_than_the_most(direction: Direction, most: int) -> None:
    expected = [min(count, most, 512) for count in GROWTH]
    assert direction(door.Streams(most), 1 << 20, len(GROWTH)) == expected


def pairs(streams: door.Streams, count: int) -> list[int]:
    """The windows at the second of two neighbours, anywhere, again and again."""
    rng = random.Random(count)
    windows = []
    for _ in range(count):
        page = rng.randrange(END // 2)
        streams.fault(page)
        windows.append(streams.fault(page + 1)[1])
    return windows


def test_windows_stay_small_where_streams_end_soon() -> None:
    windows = pairs(door.Streams(), 400)
    assert windows[:8] == [4] * 8
    assert windows[40:].count(1) > 0.8 * len(windows[40:])


@pytest.mark.parametrize("direction", [upwards, downwards])
def test_a_stream_among_what_ends_soon_grows_all_the_same(direction: Direction) -> None:
    streams = door.Streams()
    pairs(streams, 400)
    assert direction(streams, END - (1 << 20), 24)[-4:] == [512] * 4


def test_what_a_fault_confirms_is_the_window_before_less_its_fault() -> None:
    streams = door.Streams()
    page, confirmed = 1000, []
    for _ in range(6):
        start, count, used = streams.fault(page)
        confirmed.append(used)
        page = start + count
    assert confirmed == [0, *(count - 1 for count in GROWTH[:5])]


def test_a_new_stream_confirms_nothing() -> None:
    streams = door.Streams()
    upwards(streams, 1000, 5)
    assert streams.fault(1 << 30) == (1 << 30, 1, 0)


@pytest.mark.parametrize("number", [2, 8, 16])
def test_streams_interleaved(number: int) -> None:
    """As many as 16, some up and some down, each grows as if it were alone."""
    streams = door.Streams()
    up = [at % 3 != 0 for at in range(number)]
    pages = [(at + 1) << 20 for at in range(number)]
    for expected in GROWTH:
        for at in range(number):
            start, count, _ = streams.fault(pages[at])
            assert count == expected
            assert start <= pages[at] < start + count
            pages[at] = start + count if up[at] else start - 1


def test_one_stream_too_many_grows_none() -> None:
    streams = door.Streams()
    pages = [(at + 1) << 20 for at in range(17)]
    for _ in range(10):
        for at in range(17):
            assert streams.fault(pages[at])[1] == 1
            pages[at] += 1


def test_a_stream_that_turns_starts_anew() -> None:
    streams = door.Streams()
    upwards(streams, 10_000, 4)
    start, count, _ = streams.fault(9_999)
    assert (start, count) == (9_999, 1)
    assert streams.fault(9_998)[:2] == (9_995, 4)


def test_a_window_cut_short_is_continued_from_where_it_ended() -> None:
    streams = door.Streams()
    streams.fault(100)
    streams.fault(101)
    assert streams.fault(105, high=110)[:2] == (105, 16)
    assert streams.fault(110)[:2] == (110, 64)


def test_a_few_pages_beyond_the_edge_continue_the_stream() -> None:
    """They were present: the window ended early there, and the program went on behind them."""
    for page, expected in ((121, 64), (121 + 15, 64), (121 + 16, 1)):
        streams = door.Streams()
        assert upwards(streams, 100, 3) == [1, 4, 16]
        assert streams.fault(page)[:2] == (page, expected)


@pytest.mark.parametrize("seed", range(3))
def test_random_access_brings_in_single_pages(seed: int) -> None:
    """20,000 faults over 4 GiB: at least 99.9 % of the windows are of one page."""
    rng, streams = random.Random(seed), door.Streams()
    counts = [streams.fault(rng.randrange(1 << 20))[1] for _ in range(20_000)]
    assert counts.count(1) / len(counts) >= 0.999
    assert sum(counts) <= 1.01 * len(counts)


@pytest.mark.parametrize("seed", range(3))
def test_random_access_beside_a_stream_does_not_disturb_it(seed: int) -> None:
    """One random fault, or up to 15, between two faults of the stream."""
    rng, streams = random.Random(seed), door.Streams()
    page, counts = 1 << 30, []
    for _ in GROWTH:
        start, count, _ = streams.fault(page)
        counts.append(count)
        page = start + count
        for _ in range(rng.randrange(1, 16)):
            assert streams.fault(rng.randrange(1 << 29))[1] == 1
    assert counts == GROWTH


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [1, 7, 512])
def test_any_window_holds_its_fault(seed: int, most: int) -> None:
    """Whatever the faults, and however the windows are cut; near both ends of the address space too."""
    rng, streams = random.Random(seed), door.Streams(most)
    page = 0
    for _ in range(20_000):
        low = rng.choice([0, max(0, page - rng.randrange(600))])
        high = rng.choice([END, page + 1 + rng.randrange(600)])
        start, count, confirmed = streams.fault(page, low, high)
        assert 0 <= start <= page < start + count
        assert 1 <= count <= most
        assert 0 <= confirmed < most
        start, end = max(start, low), min(start + count, high)
        jump = rng.choice([rng.randrange(1200), END - 1 - rng.randrange(1200), rng.randrange(END)])
        page = rng.choices([end, start - 1, end + 3, start - 3, jump], [8, 8, 2, 2, 1])[0]
        page = min(max(page, 0), END - 1)


def test_a_downward_stream_ends_at_page_0() -> None:
    streams = door.Streams()
    page, windows = 60, []
    while page >= 0:
        start, count, _ = streams.fault(page)
        windows.append((start, count))
        page = start - 1
    assert windows == [(60, 1), (56, 4), (40, 16), (0, 40)]
    assert streams.fault(0)[:2] in {(0, 1), (0, 512)}


@pytest.mark.parametrize("streams", [door.Streams(), door.Streams(1)], ids=["512", "1"])
def test_the_first_fault_of_all_may_be_at_page_0(streams: door.Streams) -> None:
    assert streams.fault(0) == (0, 1, 0)


# ---- strides

STEPS = [2, 3, 16, -16, 511, 4096, -4096]


def fault(streams: door.Streams, page: int, most: int | None = None) -> tuple[int, int, int]:
    """(step in pages, count, confirmed)"""
    step, pages, confirmed = streams.fault_at(page * PAGE, most)
    assert pages == [page + at * (step // PAGE) for at in range(len(pages))]
    return step // PAGE, len(pages), confirmed


def down(streams: door.Streams, page: int, step: int, faults: int) -> list[tuple[int, int]]:
    """Faults each one step beyond the window before; (step, count) of each window."""
    found = []
    for _ in range(faults):
        by, count, _ = fault(streams, page)
        found.append((by, count))
        page += count * step
    return found


@pytest.mark.parametrize("step", STEPS)
def test_a_stride_is_believed_at_the_third_fault_and_grows(step: int) -> None:
    windows = down(door.Streams(), 1 << 22, step, 6)
    assert windows == [(1, 1), (1, 1), (step, 4), (step, 16), (step, 64), (step, 64)]


@pytest.mark.parametrize("step", STEPS)
def test_a_known_step_is_believed_at_the_second_fault(step: int) -> None:
    streams = door.Streams()
    down(streams, 1 << 22, step, 3)
    assert down(streams, 1 << 30, step, 3) == [(1, 1), (step, 4), (step, 16)]


@pytest.mark.parametrize("step", [0, 4097, -5000])
def test_no_stride_is_as_short_or_as_long(step: int) -> None:
    streams = door.Streams(strides=True)
    for turn in range(20):
        by, _, _ = fault(streams, (1 << 22) + turn * step)
        assert by == 1


def test_no_strides_unless_they_are_looked_for() -> None:
    assert down(door.Streams(strides=False), 1 << 22, 16, 6) == [(1, 1)] * 6


def test_pages_of_a_stride_that_were_present_are_skipped() -> None:
    streams = door.Streams()
    down(streams, 1000, 16, 3)  # 1000, 1016, then four from 1032 on
    assert fault(streams, 1032 + 6 * 16)[:2] == (16, 16)


def test_what_a_fault_of_a_stride_confirms() -> None:
    """The window before less its fault; of one that was cut, as much as was brought."""
    streams = door.Streams()
    down(streams, 1000, 16, 2)
    assert fault(streams, 1032, most=3) == (16, 3, 0)
    assert fault(streams, 1032 + 3 * 16) == (16, 16, 2)


@pytest.mark.parametrize("number", [2, 8, 16])
def test_strides_in_turns(number: int) -> None:
    """Of matrices that lie apart, each with a step of its own."""
    streams = door.Streams()
    pages = [(at + 1) << 20 for at in range(number)]
    for turn in range(8):
        for at in range(number):
            by, count, _ = fault(streams, pages[at])
            assert turn < 2 or by == 3 + at
            pages[at] += count * (3 + at)


def test_records_of_two_pages_are_two_strides() -> None:
    """Each row is used from one page into the next: no window reads on beyond that."""
    streams = door.Streams()
    missing = [row * 16 + at for row in range(200) for at in (0, 1)]
    brought: set[int] = set()
    for page in missing:
        if page not in brought:
            by, count, _ = fault(streams, page)
            brought |= {page + at * by for at in range(count)}
    assert len(brought & set(missing)) == len(missing)
    assert len(brought - set(missing)) < 150


@pytest.mark.parametrize("row", [8192, 26_624, -26_624, 10_000, 1 << 24])
def test_rows_need_not_be_whole_pages(row: int) -> None:
    """Pages come as they do down a column of such rows: six, seven, six from one to the next."""
    streams, wanted = door.Streams(), [((1 << 40) + 24 + at * row) // PAGE for at in range(400)]
    at, faults = 0, 0
    while at < 300:
        _, pages, _ = streams.fault_at((1 << 40) + 24 + at * row)
        assert pages == wanted[at : at + len(pages)]
        at += len(pages)
        faults += 1
    assert faults <= 9


def test_a_column_may_be_anywhere_in_the_page() -> None:
    rng, streams = random.Random(1), door.Streams()
    page, counts = 1 << 22, []
    for _ in range(5):
        step, pages, _ = streams.fault_at(page * PAGE + rng.randrange(PAGE))
        counts.append(len(pages))
        page += 5 * len(pages)
    assert counts == [1, 1, 4, 16, 64]
    assert step == 5 * PAGE


def test_a_scan_beside_a_stride_is_still_a_stream() -> None:
    streams = door.Streams()
    down(streams, 1 << 30, 16, 4)
    assert upwards(streams, 1 << 20, len(GROWTH)) == GROWTH


@pytest.mark.parametrize("page", [0, 1, 40, 62])
def test_a_stride_ends_at_page_0(page: int) -> None:
    streams = door.Streams()
    fault(streams, page + 64)
    fault(streams, page + 32)
    by, count, _ = fault(streams, page)
    assert (by, count) == (-32, page // 32 + 1)


def test_columns_of_a_matrix_take_few_faults(userswap: Runner, programs: Programs) -> None:
    """A program that reads them, down and up, and of two matrices in turns; little else comes in."""
    run = userswap([programs("columns"), "128"], 64 * MIB, env={"USERSWAP_CHECK": "1"}, timeout=100)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 4096, run.describe()
    assert run.stats["pages_in"] > 20 * run.stats["faults"], run.describe()
    assert run.stats["pages_readahead_used"] > 0.9 * run.stats["pages_readahead"], run.describe()
