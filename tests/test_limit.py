# SPDX-License-Identifier: GPL-2.0-or-later
"""The limit is hard: a program that fills memory faster than any disk waits, it does not overshoot."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import MIB, TOLERANCE, Programs, Runner, attached, send, wait_until

RAM = 96 * MIB


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fast_fill_stays_under_the_limit(userswap: Runner, programs: Programs, threads: int) -> None:
    run = userswap([programs("fill_fast"), "512", str(threads)], RAM)
    assert run.number("filled") == 512 * MIB
    assert run.stats["pages_evicted"] * 4096 >= 512 * MIB - RAM, run.describe()
    # The runner has checked it already; here it is what the test is about.
    assert run.sampled.peak_bytes <= RAM * TOLERANCE, run.describe()
    # And the limit is used: a program that was held far below it would be swapped for nothing.
    assert run.sampled.peak_bytes >= RAM * 0.7, run.describe()


def test_a_program_is_watched_before_it_runs(userswap: Runner) -> None:
    """Or it would have filled the memory before anybody looks. It shows the threads of its siblings."""
    script = """
    for children in /proc/$PPID/task/*/children; do read pids < $children
        for pid in $pids; do for name in /proc/$pid/task/*/comm; do read word < $name; echo $word; done; done
    done 2> /dev/null
    """
    for _ in range(10):
        run = userswap(["sh", "-c", script], RAM)
        assert {b"userswap-engine", b"sampler", b"monitor"} <= set(run.stdout.split()), run.describe()


def test_one_call_that_fills_more_than_there_is(userswap: Runner, programs: Programs, tmp_path: Path) -> None:
    """Amid such a call nobody can be entered: it was before, as it had mapped so much."""
    command = [programs("read_large"), str(tmp_path / "data"), "384"]
    with userswap.start(command, RAM, stdin=subprocess.PIPE) as live:
        live.wait_for_line("mapped", 60)
        wait_until(lambda: any("helper" in sign for sign in attached(live.pid)), 20, "it is entered")
        send(live.process)
        run = live.finish(120)
    assert run.returncode == 0, run.describe()
    assert run.stats["pages_evicted"] * 4096 >= 384 * MIB - RAM, run.describe()


def test_what_is_entered_before_memory_is_short_is_not_slowed(
    userswap: Runner, programs: Programs, tmp_path: Path
) -> None:
    """Nothing of it is registered: no fault is the engine's."""
    command = [programs("read_large"), str(tmp_path / "data"), "96"]
    with userswap.start(command, 256 * MIB, stdin=subprocess.PIPE) as live:
        live.wait_for_line("mapped", 60)
        send(live.process)
        run = live.finish(60)
    assert run.stats["faults"] + run.stats["pages_first_touched"] == 0, run.describe()


# Programs with memory of their own that have another one fill memory, and wait for it or do not.
LARGE_PARENT = """
import subprocess, sys
ballast = b"x" * (int(sys.argv[1]) << 20)
sys.exit(subprocess.call(sys.argv[2:]))
"""
PARENT_THAT_ENDS = LARGE_PARENT.replace(
    "sys.exit(subprocess.call(sys.argv[2:]))", "subprocess.Popen(sys.argv[2:])"
)


@pytest.mark.parametrize(("parent", "ballast"), [(LARGE_PARENT, 48), (PARENT_THAT_ENDS, 24)])
def test_a_child_counts_for_itself_while_it_grows(
    userswap: Runner, programs: Programs, parent: str, ballast: int
) -> None:
    """It may share with its parent as much as that has, until it is known that it does not."""
    # `cat` waits for whoever holds its end of the pipe.
    command = ["sh", "-c", '"$@" | cat', "sh", sys.executable, "-c", parent, str(ballast)]
    run = userswap([*command, programs("fill_fast"), "512", "1"], RAM)
    assert run.number("filled") == 512 * MIB
    assert run.sampled.peak_bytes <= RAM * TOLERANCE, run.describe()
    # What is counted is what is seen from outside.
    assert run.stats["peak_resident_bytes"] == pytest.approx(run.sampled.peak_bytes, rel=0.1), run.describe()


def test_an_area_that_is_just_large_enough(userswap: Runner, programs: Programs, tmp_path: Path) -> None:
    """Copies that are kept of clean pages, and dead pages in blocks, give way to what must be swapped."""
    command = [programs("reread"), "256", "40000"]
    run = userswap(command, RAM, swap=[f"{tmp_path}:216M"], env={"USERSWAP_CHECK": "1"})
    assert run.stats["blocks_cleaned"] > 0, run.describe()
    assert run.stats["swap_peak_bytes"] > 200 * MIB, run.describe()


def test_an_area_that_is_too_small_ends_the_program_with_a_reason(
    userswap: Runner, programs: Programs, tmp_path: Path
) -> None:
    run = userswap([programs("reread"), "256", "40000"], RAM, status=125, swap=[f"{tmp_path}:128M"])
    assert run.stderr == b"userswap: the swap areas are full\n", run.describe()
    assert run.stats["pages_evicted"] > 0, "the counts of a run that failed are wanted most"


def test_peak_in_the_statistics_is_what_is_seen_from_outside(userswap: Runner, programs: Programs) -> None:
    run = userswap([programs("fill_fast"), "256", "2"], RAM)
    assert run.stats["ram_limit_bytes"] == RAM
    assert run.stats["peak_resident_bytes"] == pytest.approx(run.sampled.peak_bytes, rel=0.1), run.describe()


def test_the_sampler_sees_what_a_program_holds(native: Runner, programs: Programs) -> None:
    """The measure itself: what is filled is what is seen, with nothing missing and nothing twice."""
    # It looks at its memory for much longer than a sample takes.
    run = native.native([programs("fill_fast"), "256", "4", "200"])
    assert 256 * MIB <= run.sampled.peak_bytes < 258 * MIB, run.describe()


def test_the_sampler_counts_shared_memory_once(native: Runner, programs: Programs) -> None:
    """After a fork the copies are shared, a vfork child has no memory of its own: never twice as much."""
    forked = native.native([programs("wipe_on_fork"), "256"])
    assert 280 * MIB <= forked.sampled.peak_bytes < 284 * MIB, forked.describe()
    borrowed = native.native([programs("vfork_evicted"), "64"])
    assert 72 * MIB <= borrowed.sampled.peak_bytes < 74 * MIB, borrowed.describe()
