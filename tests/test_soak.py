# SPDX-License-Identifier: GPL-2.0-or-later
"""A mixed tree at four times the memory there is, for long (`make soak`), or for a moment: the limit holds,
and nothing grows. What it was like is printed: `pytest -s`."""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from support import (
    HELPER,
    MIB,
    PROGRAMS,
    Live,
    Programs,
    Runner,
    Verbs,
    engine_of,
    keeper_of,
    name_of,
    tree_of,
)

SECONDS = float(os.environ.get("USERSWAP_SOAK_SECONDS", "12"))
RAM = 96 * MIB
PART = 96  # MiB, of each of the four that hold so much
SAMPLES = 40
LONG = 300  # seconds
BURSTS = 1.2  # a moment of 110 % was seen once in four runs
COLUMNS = (
    "resident",
    "swap",
    "entries",
    "blocks",
    "engine's",
    "descriptors",
    "helpers",
    "processes",
    "threads",
)


def own_bytes(pid: int) -> int:
    """What an engine has for itself; memory files are counted where they are mapped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def sample(live: Live, verbs: Verbs) -> dict[str, int]:
    engine = engine_of(live.pid)
    counts = verbs.engine()
    names = {pid: name_of(pid) for pid in tree_of(live.pid)}
    return {
        "resident": counts["resident_bytes"],
        "swap": counts["swap_bytes"],
        "entries": counts["entries"],
        "blocks": counts["blocks"],
        "engine's": own_bytes(engine) - counts["packed_resident_bytes"],
        "descriptors": len(os.listdir(f"/proc/{keeper_of(live.pid)}/fd")),
        "helpers": list(names.values()).count(HELPER),
        "processes": len(names),
        "threads": len(os.listdir(f"/proc/{engine}/task")),
    }


def test_soak(userswap: Runner, programs: Programs, verbs: Verbs) -> None:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))  # short enough for the name of a socket
    words = [str(SECONDS), str(PART), programs("fault_probe"), str(folder)]
    command = [sys.executable, str(PROGRAMS / "soak.py"), *words]
    samples: list[dict[str, int]] = []
    try:
        with userswap.start(command, RAM, env={"USERSWAP_CHECK": "1", **verbs.env}, tolerance=BURSTS) as live:
            started = time.monotonic()
            print(f"\n{'s':>6}" + "".join(f"{name:>13}" for name in COLUMNS))
            while (passed := time.monotonic() - started) < SECONDS * (1 - 1.5 / SAMPLES):
                assert live.process.poll() is None
                time.sleep(SECONDS / SAMPLES)  # between two looks
                samples.append(sample(live, verbs))
                print(f"{passed:6.0f}" + "".join(f"{number:13}" for number in samples[-1].values()))
            run = live.finish(SECONDS + 300)
    finally:
        shutil.rmtree(folder)
    print(run.stdout.decode(), run.sampled.describe(), json.dumps(run.stats, indent=1), sep="\n")
    assert run.returncode == 0, run.describe()
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert b"WRONG" not in run.stderr, run.describe()
    assert b"p999=" in run.stdout, run.describe()
    done = json.loads(run.stdout.splitlines()[-2])
    assert min(done.values()) > 0, done
    assert set(done) == {"sorted", "walked", "compiled", "hundred short", "saved"}
    assert run.stats["pages_evicted"] * 4096 > 4 * RAM
    # What grows with time would show. The engine's memory does at first, with what is swapped.
    third = len(samples) // 3
    for name in ["descriptors", "threads", "helpers", *(["engine's"] if SECONDS >= LONG else [])]:
        early = statistics.median(one[name] for one in samples[third : 2 * third])
        late = statistics.median(one[name] for one in samples[2 * third :])
        assert late <= 1.2 * early + 8, (name, early, late)
    assert all(one["helpers"] <= one["processes"] for one in samples)
