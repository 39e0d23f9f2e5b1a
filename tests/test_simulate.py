# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces that runs leave, and what is simulated from them."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import EXIT_OWN_ERROR, MIB, Programs, Runner, end_by_signal, wait_until
from test_surroundings import file_system, fill_up
from test_takeover import working_engine
from userswap.policies import LRU, OPTIMUM, OTHERS, OURS
from userswap.traces import (
    ENDED,
    EVICTED,
    FILLED,
    FOUND,
    GIVEN_BACK,
    KIND_BITS,
    LIMIT,
    MAGIC,
    PAGE_BITS,
    RECORD,
    TOUCHED,
    WRITTEN,
    Trace,
    Uses,
)

PAGE = 4096
RAM = 64 * MIB
SCANS = """
import numpy
words = numpy.arange(96 << 17)
for _ in range(4):
    assert words.sum() == len(words) * (len(words) - 1) // 2
print("ok")
"""


def simulate(*words: str, status: int = 0) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "userswap", "simulate", *words], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == status, run.stderr
    assert run.stderr.count("\n") == (status != 0), run.stderr
    return run.stderr if status else run.stdout


def record(path: Path, *records: tuple[int, int, int, int, int]) -> str:
    """A trace of these: kind, page, address space, pages before, pages."""
    rows = np.zeros(len(records), RECORD)
    for row, (kind, page, space, before, count) in zip(rows, records, strict=True):
        row["what"] = kind | page << KIND_BITS | space << (KIND_BITS + PAGE_BITS)
        row["before"] = before
        row["count"] = count
    path.write_bytes(MAGIC + rows.tobytes())
    return str(path)


def misses(document: dict[str, Any], policy: str) -> dict[int, int]:
    """By pages of memory."""
    return {row["ram_bytes"] // PAGE: row["misses"] for row in document["misses"] if row["policy"] == policy}


def lru_misses(uses: Uses, pages: int) -> int:
    """Without the first uses."""
    memory: OrderedDict[int, None] = OrderedDict()
    seen: set[int] = set()
    count = begin = 0
    for at, things in [*uses.removed, (len(uses.things), uses.things[:0])]:
        for thing in uses.things[begin:at].tolist():
            count += thing in seen and thing not in memory
            seen.add(thing)
            memory[thing] = None
            memory.move_to_end(thing)
            if len(memory) > pages:
                memory.popitem(last=False)
        for thing in things.tolist():
            memory.pop(thing, None)
        begin = at
    return count


# ---- what is recorded


def test_a_run_is_recorded(userswap: Runner, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    run = userswap([sys.executable, "-c", SCANS], RAM, options=["--quiet", "--trace", str(file)])
    assert run.stdout == b"ok\n", run.describe()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    trace = Trace(str(file))
    assert trace.limit_pages * PAGE == RAM
    assert trace.count(EVICTED) == run.stats["pages_evicted"]
    assert trace.count(TOUCHED) == run.stats["pages_first_touched"]
    # A page that is given back while it is brought in is in the trace, and not in the count.
    assert trace.count(FILLED) == pytest.approx(run.stats["pages_in"], rel=0.01)
    assert file.stat().st_size < run.stats["pages_in"] + run.stats["pages_evicted"]  # compact
    uses = trace.uses()
    # All that it had in use when it was first looked at, and what came later.
    assert 0.9 * 96 * MIB / PAGE < uses.most_pages < 1.5 * 96 * MIB / PAGE


def test_processes_and_what_they_give_back(userswap: Runner, programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    options = ["--quiet", "--trace", str(file)]
    run = userswap(
        [programs("torture"), "3", "128", "2", "2", "5"], RAM, options=options, tolerance=2, timeout=120
    )
    assert run.stdout.endswith(b"ok\n"), run.describe()
    trace = Trace(str(file))
    assert trace.count(EVICTED) == run.stats["pages_evicted"]
    assert trace.count(GIVEN_BACK) > run.stats["pages_discarded"]
    entered = run.stats["processes_attached"]
    assert entered <= trace.count(ENDED) <= entered + run.stats["forks"]
    uses = trace.uses()
    assert uses.removed
    assert uses.firsts > uses.most_pages


def test_another_engine_goes_on_with_it(userswap: Runner, programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    command = [programs("loop_verify"), "128"]
    with userswap.start(command, RAM, options=["--quiet", "--trace", str(file)]) as live:
        live.wait_for_line("ready", 60)
        engine = working_engine(live)
        wait_until(lambda: file.stat().st_size > 1 << 16, 30, "it is written")
        os.kill(engine, signal.SIGKILL)
        working_engine(live, but=engine)
        before = file.stat().st_size
        wait_until(lambda: file.stat().st_size > before + (1 << 16), 30, "it is written by the other one")
        run = end_by_signal(live, Path(command[0]).name)
    assert run.stats["takeovers"] == 1
    trace = Trace(str(file))
    assert 1 << 12 < trace.count(EVICTED) <= run.stats["pages_evicted"]
    assert trace.count(FILLED) > 1 << 12


@pytest.mark.root
def test_a_full_disk_ends_the_trace_and_not_the_run(userswap: Runner, programs: Programs, disk: Path) -> None:
    with file_system(disk, 4) as place:
        fill_up(place)
        os.truncate(place / "others", (place / "others").stat().st_size - PAGE)
        file = place / "trace"
        run = userswap(
            [programs("reread"), "128", "60000"],
            RAM,
            options=["--quiet", "--trace", str(file)],
            swap=[str(disk)],
        )
        assert run.stdout.endswith(b"ok\n"), run.describe()
        assert run.stderr == b"userswap: --trace: it ends early: No space left on device\n"
        assert 0 < Trace(str(file)).records <= (PAGE - len(MAGIC)) // 16


# ---- what is simulated


def test_lru_is_lru(tmp_path: Path) -> None:
    """The library's, on our numbering of things, by an LRU that anybody can read."""
    rng = np.random.default_rng(3)
    records = [(LIMIT, 64, 0, 0, 1)]
    for _ in range(3000):
        space, page, count = int(rng.integers(1, 3)), int(rng.zipf(1.3) % 700), int(rng.integers(1, 9))
        records.append((FILLED, page + count - 1, space, int(rng.integers(0, count)), count))
        if rng.random() < 0.02:
            records.append((GIVEN_BACK, page, space, 0, 40))
    file = record(tmp_path / "trace", *records)
    uses = Trace(file).uses()
    (document,) = json.loads(simulate("--json", "--policy", "lru", "--ram", "1M", "--ram", "2M", file))
    assert document["uses"] == len(uses.pages) == sum(record[4] for record in records if record[0] == FILLED)
    assert len(uses.removed) > 10
    assert misses(document, "lru") == {pages: lru_misses(uses, pages) for pages in (256, 512)}


def test_no_policy_is_better_than_the_optimum(userswap: Runner, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    run = userswap([sys.executable, "-c", SCANS], RAM, options=["--quiet", "--trace", str(file)])
    assert run.stdout == b"ok\n", run.describe()
    (document,) = json.loads(simulate("--json", str(file)))
    best = misses(document, "optimum")
    assert len(best) == 5
    for policy in (*OURS, *OTHERS):
        found = misses(document, policy)
        assert all(found[pages] >= best[pages] for pages in best), policy
        if policy in (LRU, OPTIMUM):  # more memory is never worse: not so with all
            assert [found[pages] for pages in sorted(found)] == sorted(found.values(), reverse=True), policy
    # Of a scan again and again LRU keeps nothing, and what streams leave behind is better gone first.
    half = sorted(best)[2]
    assert misses(document, "lru")[half] > 1.5 * best[half]
    assert misses(document, "behind")[half] < 0.75 * misses(document, "lru")[half]
    # And it is what was so: of 64 MiB the engine had a part for itself.
    (document,) = json.loads(simulate("--json", "--policy", "ages", "--ram", "56M", str(file)))
    assert misses(document, "ages")[56 * MIB // PAGE] == pytest.approx(run.stats["pages_in"], rel=0.25)


def test_table_and_plot(tmp_path: Path) -> None:
    scan = [(FILLED, 512 * at, 1, 0, 512) for at in range(8)]
    first = record(tmp_path / "first", (LIMIT, 2048, 0, 0, 1), (FOUND, 0, 1, 0, 4096), *scan, *scan)
    second = record(tmp_path / "second", (LIMIT, 4096, 0, 0, 1), *scan, *scan)
    picture = tmp_path / "picture.svg"
    text = simulate("--plot", str(picture), first, second)
    assert "first: recorded in 8.0 MiB, at most 16.0 MiB in use" in text.replace("\n", " ")
    assert "12288 uses known, 4096 of them the first" in " ".join(text.split())
    assert "in geometric mean" in text
    assert "at most" in text
    assert picture.read_text().count("<svg") == 1


def test_pages_keep_their_neighbours_and_get_no_others(tmp_path: Path) -> None:
    file = record(
        tmp_path / "trace",
        (LIMIT, 16384, 0, 0, 1),
        (TOUCHED, 1000, 1, 0, 100),  # over the edge of a stretch
        (TOUCHED, 1000, 2, 0, 1),
        (FILLED, 1009, 1, 9, 10),  # the fault on the last: downwards
        (WRITTEN, 1005, 1, 3, 8),  # only that one
        (GIVEN_BACK, 1000, 1, 0, 10),
        (TOUCHED, 1003, 1, 0, 1),
        (ENDED, 0, 2, 0, 1),
    )
    uses = Trace(file).uses()
    pages = uses.pages.astype(np.int64)
    assert np.all(np.diff(pages[:100]) == 1)
    assert abs(pages[100] - pages[0]) > 512
    assert np.array_equal(pages[101:111], pages[9:None:-1][:10])
    assert pages[111] == pages[5]
    assert uses.things[112] != uses.things[3]
    assert uses.most_pages == 101
    assert uses.firsts == 102
    assert sum(len(things) for _, things in uses.removed) == 11


# ---- what cannot be done


def test_refused(userswap: Runner, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert "No such file" in simulate(str(nothing), status=EXIT_OWN_ERROR)
    nothing.write_bytes(b"")
    assert "not a trace" in simulate(str(nothing), status=EXIT_OWN_ERROR)
    nothing.write_bytes(MAGIC)
    assert "nothing was swapped" in simulate(str(nothing), status=EXIT_OWN_ERROR)
    nothing.write_bytes(MAGIC + b"\xff" * 16)
    assert "damaged" in simulate(str(nothing), status=EXIT_OWN_ERROR)
    nothing.write_bytes(MAGIC + bytes(15))
    assert "damaged" in simulate(str(nothing), status=EXIT_OWN_ERROR)
    good = record(tmp_path / "good", (LIMIT, 64, 0, 0, 1), (FOUND, 0, 1, 0, 4096))
    assert "not a size" in simulate("--ram", "much", good, status=EXIT_OWN_ERROR)
    assert "less than 1M" in simulate("--ram", "1000K", good, status=EXIT_OWN_ERROR)
    assert "less than 1M" in simulate("--ram", "1%", good, status=EXIT_OWN_ERROR)
    assert "invalid choice" in simulate("--policy", "magic", good, status=EXIT_OWN_ERROR)
    picture = str(tmp_path / "no" / "such.svg")
    assert "No such file" in simulate("--plot", picture, good, status=EXIT_OWN_ERROR)
    for path in (str(tmp_path), "/dev/null", picture):
        run = userswap(["true"], RAM, options=["--trace", path], status=EXIT_OWN_ERROR)
        assert run.stderr.startswith(f"userswap: --trace {path}: ".encode()), run.describe()
        assert run.stderr.count(b"\n") == 1


def test_without_its_packages(tmp_path: Path) -> None:
    (tmp_path / "libcachesim.py").write_text("raise ImportError(name='libcachesim')")
    file = record(tmp_path / "trace", (LIMIT, 64, 0, 0, 1), (FOUND, 0, 1, 0, 4096))
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    run = subprocess.run(
        [sys.executable, "-m", "userswap", "simulate", file],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == EXIT_OWN_ERROR
    assert run.stderr == (
        "userswap: simulate needs packages that are not installed (libcachesim): "
        "pip install 'userswap[simulate]'\n"
    )
