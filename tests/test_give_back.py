# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program gives back is forgotten at once, page by page, and not written even amid its eviction."""

import subprocess
from typing import Any

import pytest

from support import MIB, Live, Programs, Runner, Verbs, rise, send, wait_until

RAM = 64 * MIB
PAGE = 4096


def order(live: Live, byte: bytes, line: str) -> None:
    """Has the program go on, until it has printed `line` once more."""
    said = live.stdout().count(line.encode() + b"\n")
    send(live.process, byte)
    wait_until(lambda: live.stdout().count(line.encode() + b"\n") > said or ended(live), 60, line)
    assert not ended(live) or line == "ok", live.stderr()


def ended(live: Live) -> bool:
    return live.process.poll() is not None


def counted(live: Live, verbs: Verbs) -> tuple[int, dict[str, Any]]:
    """How many of the pages to give back are out, and the counts of the engine at that moment."""
    for _ in range(20):
        before = verbs.settled()
        order(live, b"c", "counted")
        after = verbs.engine()
        if not any(rise(before, after, name) for name in ("pages_evicted", "pages_in")):
            return int(live.stdout().split()[-2]), after
    pytest.fail(f"pages come and go: {before} {after}")


@pytest.mark.parametrize("way", ["dontneed", "free", "munmap", "brk", "trim"])
def test_the_entries_go_at_once(userswap: Runner, programs: Programs, verbs: Verbs, way: str) -> None:
    command = [programs("give_each"), way, "160"]
    with userswap.start(command, RAM, env=verbs.env, stdin=subprocess.PIPE) as live:
        live.wait_for_line("filled", 60)
        out, before = counted(live, verbs)
        order(live, b"g", "given back")
        after = verbs.engine()
        order(live, b"k", "ok")
        assert live.process.stdin
        live.process.stdin.close()
        run = live.finish(60)
    assert run.returncode == 0, run.describe()
    assert out > 4000, run.describe()
    given = rise(before, after, "pages_discarded")
    late = rise(before, after, "pages_evicted")  # after the program had counted: as a rule none
    assert late < out / 10, (out, before, after)
    assert out <= given <= out + late, (out, before, after)
    assert rise(before, after, "entries") <= late - given, (out, before, after)
    if (
        way != "trim"
    ):  # what free() wrote to brought its neighbours in, and they may be unchanged, with entries
        assert rise(before, after, "entries") >= -given, (out, before, after)
    assert rise(before, after, "pages_in") == 0, (before, after)
    assert rise(before, after, "store_bytes_written") <= (late + given / 10) * PAGE, (before, after)


@pytest.mark.parametrize("packed", [False, True])
def test_given_back_while_being_evicted(userswap: Runner, programs: Programs, packed: bool) -> None:
    times = 20_000
    environment = {"USERSWAP_CHECK": "1", "USERSWAP_PACK": str(int(packed))}
    run = userswap([programs("give_race"), "96", str(times)], RAM, timeout=120, env=environment)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("given") >= times, run.describe()
    stats = run.stats
    assert stats["pages_discarded_in_flight"] > 100, run.describe()
    # What was neither clean nor of one word nor given back may have been written, and nothing else. Without
    # packing, nearly all of it was.
    unwritten = sum(stats[f"pages_{why}"] for why in ("evicted_clean", "filled", "discarded_in_flight"))
    assert stats["store_bytes_written"] <= (stats["pages_evicted"] - unwritten) * PAGE, run.describe()
