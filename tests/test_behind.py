# SPDX-License-Identifier: GPL-2.0-or-later
"""What streams leave behind: that it goes first where that saves misses, and does not where it costs any."""

import sys

import numpy as np
import pytest
from bench.reclaim import PAGES, Trace, hot_and_scan, in_turn, touched, up

from support import MIB, Programs, Runner
from test_torture import BURSTS

BESIDE = """
import subprocess, sys, numpy
words = numpy.arange(96 << 17)
for _ in range(6):
    words.sum()
del words
idle = "import numpy, sys; x = numpy.arange(60 << 17); print(flush=True); sys.stdin.read(); assert x[5] == 5"
idle = subprocess.Popen([sys.executable, "-c", idle], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
idle.stdout.readline()
words = numpy.arange(40 << 17)
for _ in range(300):
    assert words.sum() == len(words) * (len(words) - 1) // 2
idle.stdin.close()
assert idle.wait() == 0
print("ok")
"""


def brought(trace: Trace, *, behind: bool) -> int:
    """Pages that had to be brought back, the first pass over the trace's own pages left out."""
    memory = touched(trace, behind=behind)
    assert memory.resident <= PAGES
    assert memory.references == len(trace)
    assert memory.first_touches == len(np.unique(trace))
    return memory.brought


def ratio(trace: Trace) -> float:
    return brought(trace, behind=True) / brought(trace, behind=False)


def passes(*scans: Trace) -> Trace:
    return np.concatenate(scans)


@pytest.mark.parametrize("over", [1.1, 1.5, 2, 3])
@pytest.mark.parametrize("direction", [1, -1])
def test_of_a_cyclic_scan_what_fits_stays(over: float, direction: int) -> None:
    """The best there is: of `over` times the memory all but one part. The oldest first: none."""
    count = int(over * PAGES)
    scan = up(0, count)[::direction]
    trace = passes(*[scan] * 12)
    best = 11 * (count - PAGES)
    assert best <= brought(trace, behind=True) < 1.1 * best + PAGES
    if direction > 0:  # down, the hand comes towards it
        assert brought(trace, behind=False) > 0.95 * 11 * count


def test_two_arrays_in_turn() -> None:
    """As a program adds one to the other."""
    both = in_turn(up(0, PAGES), up(1 << 20, PAGES))
    assert ratio(passes(*[both] * 10)) < 0.65


def test_back_and_forth_is_no_worse() -> None:
    there = up(0, 2 * PAGES)
    assert ratio(passes(*[there, there[::-1]] * 6)) < 1.05


def test_memory_that_is_not_wanted_again_goes_for_what_is() -> None:
    """The memory is full of what nobody touches again: a stream over what fits must not be kept out."""
    wanted = up(1 << 20, PAGES * 3 // 4)
    trace = passes(up(0, 3 * PAGES), *[wanted] * 10, up(1 << 21, 2 * PAGES), *[wanted] * 30)
    assert brought(trace, behind=True) < 3 * PAGES


def test_a_working_set_that_moves_on() -> None:
    """Each part is scanned again and again, and fits, then the next one."""
    parts = [up(at * PAGES, PAGES * 3 // 4) for at in range(4)]
    trace = passes(*[part for part in parts for _ in range(10)] * 2)
    assert ratio(trace) < 1.1


def test_hot_pages_beside_a_scan_stay() -> None:
    assert ratio(passes(*[hot_and_scan(np.random.default_rng(1))] * 4)) < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_are_as_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert ratio(rng.integers(0, 2 * PAGES, size=400_000, dtype=np.uint64)) == pytest.approx(1, abs=0.01)


def test_what_is_wanted_soon_after_is_not_worse() -> None:
    """Each piece of a stream is gone over twice: as blocked algorithms do."""
    piece = PAGES // 2
    pieces = [up(start, piece) for start in range(0, 4 * PAGES, piece)]
    assert ratio(passes(*[part for part in pieces for _ in range(3)] * 3)) < 1.1


def test_torture_with_what_streams_leave_behind(userswap: Runner, programs: Programs) -> None:
    command = [programs("torture"), "6", "160", "4", "2", "7"]
    options = ["--quiet", "--policy", "behind"]
    run = userswap(
        command, 64 * MIB, timeout=120, options=options, env={"USERSWAP_CHECK": "1"}, tolerance=BURSTS
    )
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["pages_evicted"] > 10_000, run.describe()


def test_memory_of_another_process_that_is_not_wanted_goes(userswap: Runner) -> None:
    """Though streams go over more than there is beside it, of which what is behind would go first. If it
    did not, all that is gone over would come back each time; so it does some times yet, and then fits."""
    options = ["--quiet", "--policy", "behind"]
    run = userswap([sys.executable, "-c", BESIDE], 96 * MIB, timeout=120, options=options)
    assert run.stdout == b"ok\n", run.describe()
    streamed, again = 6 * 96 * MIB // 4096, 300 * 40 * MIB // 4096
    assert run.stats["pages_in"] < streamed + again / 4, run.describe()
