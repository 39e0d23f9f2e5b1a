# SPDX-License-Identifier: GPL-2.0-or-later
"""Law 6: a process that needs no swap pays nothing."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from support import MIB, Programs, Runner, attached, tree_of

PERIOD_SECONDS = 6.0
CPU_SECONDS_A_MINUTE = 0.1
RAM = 512 * MIB


def cpu_seconds(pids: set[int]) -> float:
    """CPU time of all threads of these processes, to the nanosecond."""
    total = 0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                total += int(schedstat.read_text().split()[0])
    return total / 1e9


def test_an_idle_program_costs_nothing(userswap: Runner, programs: Programs) -> None:
    with userswap.start([programs("idle")], RAM, stdin=subprocess.PIPE) as live:
        live.wait_for_line("ready", 30)
        tree = tree_of(live.pid)
        before = cpu_seconds(tree)
        # The period is what is measured; that it passes without the program ending is part of the test.
        with pytest.raises(subprocess.TimeoutExpired):
            live.process.wait(PERIOD_SECONDS)
        used = cpu_seconds(tree) - before
        assert used * 60 / PERIOD_SECONDS < CPU_SECONDS_A_MINUTE, f"{used:.4f} s in {PERIOD_SECONDS} s"
        assert tree_of(live.pid) == tree, "a process came or went"
        assert attached(live.pid) == []
        assert live.process.stdin is not None
        live.process.stdin.close()
        run = live.finish(30)
    assert run.returncode == 0, run.describe()
    assert run.stats["processes_attached"] == 0
    assert run.stats["pages_evicted"] == 0
    assert run.stats["faults"] == 0


def test_a_program_far_below_its_limit_is_not_slowed(userswap: Runner, programs: Programs) -> None:
    command = [programs("static_sum"), "256"]
    native, swapped = [], []
    for _ in range(5):
        native.append(userswap.native(command).seconds)
        swapped.append(userswap(command, "2G").stats["wall_seconds"])
    # The shortest of each: what is left is not noise. The program's own time, without userswap's start.
    assert min(swapped) < min(native) * 1.1 + 0.02, (native, swapped)
