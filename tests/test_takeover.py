# SPDX-License-Identifier: GPL-2.0-or-later
"""Engines that die, and others that take over: the program goes on, and sees no wrong byte. Killed at any
moment, more often by `make torture-kills`; and, in a build of its own, at each point at which the state
changes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import (
    ENGINE,
    EXIT_OWN_ERROR,
    HELPER,
    MIB,
    PLUGINS_ENV,
    UNBOUNDED,
    WITHOUT_PTRACE,
    Attachable,
    Live,
    Options,
    Programs,
    Runner,
    Verbs,
    end_by_signal,
    keeper_of,
    name_of,
    start,
    stat_of,
    tree_of,
    wait_until,
)
from userswap import __file__ as tested

SOURCES = Path(__file__).parent.parent / "src" / "userswap"
RAM = 96 * MIB
KILLS = int(os.environ.get("USERSWAP_KILLS", "45"))  # in all
SECONDS = float(os.environ.get("USERSWAP_TORTURE_SECONDS", "1"))  # at each point
ROUNDS = [(160, 64 * MIB, 4, 2, 1), (128, 64 * MIB, 1, 4, 2), (256, 80 * MIB, 8, 1, 3)]
CHECKED = {"USERSWAP_CHECK": "1"}
# Where sys_crash_point is. Those of a fork, of a move and of taking over come by once or more for each
# engine: it has to get beyond them.
POINTS = sorted(
    {
        point
        for file in SOURCES.glob("*.pyx")
        for point in re.findall(r'sys_crash_point\(b"([a-z-]+)"\)', file.read_text())
    }
)
RARE = {"swapoff-copied", "swapoff-switching", "detach-unregistered"}  # have a test of their own
EVER = {"takeover-mms", "takeover-made", "takeover-wake", "takeover-event"}
# Passed, or passed often, where the kernel tells of forks: who has no right to that is never there.
TOLD = {"enter-bind", "enter-bound", "enter-inserted", "enter-unverified", "fork-inserted", "fork-made"}
# How often an engine comes by before it is killed, so that it gets something done: once a page, a fault, a
# batch or an event; all others once a block, a mapping or a process.
PASSES = {
    2000: "evict-mark evict-store log-committed forget-value pack-moved",
    300: "evict-moving event-read fill-copied fill-loaded fill-marked fill-planned touch-copied",
    100: "move-value unprotect-given-up",
    30: "evict-allocated evict-dropped evict-marked evict-moved evict-stored evict-storing",
    40: "event-applied move-children move-forgotten move-moved unmap-done unmap-taken",
    2: "enter-bound enter-inserted",
}


# ---- engines and their end


def engines(live: Live) -> list[int]:
    return [pid for pid in tree_of(live.pid) if name_of(pid) == ENGINE]


def threads(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def working_engine(live: Live, but: int = 0) -> int:
    """Waits for an engine that has its threads. 0 when the program has ended meanwhile."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid in engines(live) if pid != but and threads(pid) > 9]
        return bool(found) or live.process.poll() is not None

    wait_until(is_there, 10, "there is an engine that works")
    return found[0] if found else 0


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Also of one that has ended; 0 is nobody, and not this process' own group."""
    assert pid > 0
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def descriptors_of_keeper(live: Live) -> int:
    keeper = keeper_of(live.pid)
    return len(os.listdir(f"/proc/{keeper}/fd"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_program_goes_on(userswap: Runner, programs: Programs, number: signal.Signals) -> None:
    command = [programs("loop_verify"), "160"]
    with userswap.start(command, RAM, env=CHECKED) as live:
        live.wait_for_line("ready", 60)
        engine = working_engine(live)
        start = time.monotonic()
        kill(engine, number)
        working_engine(live, but=engine)
        assert time.monotonic() - start < 1
        run = end_by_signal(live, Path(command[0]).name)
    assert run.stats["takeovers"] == 1
    assert run.stats["pages_in"] > 0
    assert run.stderr == b"", run.describe()


def test_before_anything_is_swapped(userswap: Runner, programs: Programs) -> None:
    command = [programs("fill_fast"), "256", "1"]
    with userswap.start(command, RAM, env=CHECKED, tolerance=UNBOUNDED) as live:
        kill(working_engine(live))
        run = live.finish(60)
    assert (run.returncode, run.stdout[-3:]) == (0, b"ok\n"), run.describe()
    assert run.stats["takeovers"] == 1
    assert run.stats["pages_evicted"] > 0


def test_engine_and_keeper_killed_stop_the_program(userswap: Runner, programs: Programs) -> None:
    """It never reads zeros instead."""
    with userswap.start([programs("loop_verify"), "160"], RAM) as live:
        live.wait_for_line("ready", 60)
        keeper, engine = keeper_of(live.pid), working_engine(live)
        kill(keeper)
        kill(engine)
        run = live.finish(30)
    assert run.returncode == EXIT_OWN_ERROR, run.describe()
    assert b"WRONG" not in run.stderr, run.describe()
    assert re.search(rb"^userswap: its keeper died", run.stderr, re.MULTILINE), run.describe()


@pytest.mark.parametrize(("mib", "ram", "threads", "processes", "seed"), ROUNDS)
def test_killed_at_random(
    userswap: Runner, programs: Programs, mib: int, ram: int, threads: int, processes: int, seed: int
) -> None:
    """Not one wrong byte, lost page or leak: the last engine checks that nothing is left."""
    kills = max(1, KILLS // len(ROUNDS))
    rng = random.Random(time.time_ns())
    command = [programs("torture"), str(max(8, kills // 4)), *map(str, (mib, threads, processes, seed))]
    killed, slowest = 0, 0.0
    with userswap.start(command, ram, env=CHECKED, tolerance=UNBOUNDED) as live:
        engine = working_engine(live)
        while killed < kills and live.process.poll() is None:
            time.sleep(rng.random() * 0.3)  # the moment at which it is killed, not a wait for something
            kill(engine)
            killed += 1
            start = time.monotonic()
            engine = working_engine(live, but=engine)
            slowest = max(slowest, time.monotonic() - start) if engine else slowest
        opened = descriptors_of_keeper(live) if live.process.poll() is None else 0
        run = live.finish(4 * kills + 120)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert killed > kills // 2, run.describe()
    assert killed - 1 <= run.stats["takeovers"] <= killed, run.describe()
    assert run.stats["pages_evicted"] > 1000, run.describe()
    assert opened < 400 + 12 * (1 + run.stats["processes_attached"]), opened
    print(f"{killed} killed, replaced within {slowest:.3f} s, peak {run.sampled.peak_bytes / ram:.2f}")


# ---- at each point


@pytest.fixture(scope="session")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which userswap is a build whose engine can be killed at its points: of its
    modules those that have some are built anew."""
    folder = tmp_path_factory.mktemp("crashing")
    package, build = folder / "userswap", folder / "build"
    options = ["-Dcrash_points=true", "--buildtype=plain"]
    modules = [file.stem for file in SOURCES.glob("*.pyx") if "sys_crash_point(b" in file.read_text()]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for command in (
        ["meson", "setup", str(build), str(SOURCES.parent.parent), *options],
        ["ninja", "-C", str(build), *(f"src/userswap/{name}{suffix}" for name in modules)],
    ):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(
            command, check=True, capture_output=True, timeout=600, env={**os.environ, "PATH": path}
        )
    package.mkdir()
    for file in Path(tested).parent.iterdir():
        if file.suffix in (".py", ".so"):
            made = build / "src" / "userswap" / file.name
            (package / file.name).symlink_to(made if made.exists() else file.resolve())
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[pytest.mark.root] if point in TOLD else [])
        for point in POINTS
        if point not in RARE | EVER
    ],
)
def test_killed_at_each_point(
    userswap: Runner, programs: Programs, crashing: dict[str, str], point: str
) -> None:
    """Each engine is killed when it comes by for the n-th time. One that never does ends the run without a
    death."""
    passes = next((number for number, names in PASSES.items() if point in names.split()), 3)
    environment = {**crashing, **CHECKED, "USERSWAP_CRASH": f"{point}:{passes}"}
    command = [programs("torture"), str(SECONDS), "128", "3", "2", str(POINTS.index(point))]
    options: Options = {"env": environment, "tolerance": UNBOUNDED}
    if point.startswith("birth-"):  # of forks that are caught
        options["prefix"] = WITHOUT_PTRACE
    run = userswap(command, 64 * MIB, timeout=120, **options)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] > 0, run.describe()


@pytest.mark.parametrize("point", sorted(EVER - {"takeover-event"}))
def test_engines_that_do_not_come_to_work(
    userswap: Runner, programs: Programs, crashing: dict[str, str], point: str
) -> None:
    """Each dies while it takes over. In the end the program is stopped, and has seen no wrong byte."""
    environment = {**crashing, "USERSWAP_CRASH": f"{point}:1"}
    with userswap.start([programs("loop_verify"), "160"], RAM, env=environment) as live:
        live.wait_for_line("ready", 60)
        if (
            point == "takeover-wake"
        ):  # by then it works: the next one takes over, and so on, until somebody ends it
            engine = working_engine(live)
            for _ in range(5):
                kill(engine)
                wait_until(lambda e=engine: stat_of(e) is None, 10, "it is gone")  # type: ignore[misc]
            run = end_by_signal(live, "loop_verify-gcc")
            return
        kill(working_engine(live))
        run = live.finish(60)
    assert run.returncode == EXIT_OWN_ERROR, run.describe()
    assert b"WRONG" not in run.stderr, run.describe()
    assert re.search(rb"^userswap: the engine died .* no other one could take over", run.stderr), (
        run.describe()
    )


# ---- what goes with it


def test_areas_and_limit_are_as_they_were(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    command = [programs("loop_verify"), "160"]
    with userswap.start(command, RAM, swap=[f"{first}:400M"], env={**verbs.env, **CHECKED}) as live:
        live.wait_for_line("ready", 60)
        verbs("swapon", f"{second}:300M:free", "--priority", "7")
        verbs("limit", "90M")
        before = verbs.engine()
        engine = working_engine(live)
        kill(engine)
        after = verbs.engine()  # which waits for the next one
        assert after["pid"] == before["pid"]
        assert after["ram_limit_bytes"] == 90 * MIB
        assert after["takeovers"] == 1
        assert [{**area, "used_bytes": 0} for area in after["areas"]] == [
            {**area, "used_bytes": 0} for area in before["areas"]
        ]
        verbs("swapoff", f"{first}")
        assert list(verbs.areas()) == ["second:300M:free"]
        end_by_signal(live, Path(command[0]).name)


def test_whoever_asks_meanwhile_is_answered_by_the_next_one(
    userswap: Runner, programs: Programs, verbs: Verbs
) -> None:
    command = [programs("loop_verify"), "160"]
    with userswap.start(command, RAM, env={**verbs.env, **CHECKED}) as live:
        live.wait_for_line("ready", 60)
        for turn in range(1, 11):
            kill(working_engine(live))
            assert verbs.engine()["takeovers"] == turn
        end_by_signal(live, Path(command[0]).name)
    assert not list(verbs.runtime.iterdir())


def test_a_store_of_python_goes_on(userswap: Runner, programs: Programs, disk: Path) -> None:
    command = [programs("loop_verify"), "160"]
    environment = {**PLUGINS_ENV, **CHECKED}
    with userswap.start(command, RAM, swap=[f"folder://{disk}:400M"], env=environment) as live:
        live.wait_for_line("ready", 60)
        engine = 0
        for _ in range(5):
            engine = working_engine(live, but=engine)
            kill(engine)
        working_engine(live, but=engine)
        run = end_by_signal(live, Path(command[0]).name)
    assert run.stats["takeovers"] == 5
    assert run.stderr == b"", run.describe()


def test_a_swapoff_begins_anew(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path, crashing: dict[str, str]
) -> None:
    """Killed again and again amid it: what was moved stays moved, and in the end the area is empty."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    command = [programs("loop_verify"), "160"]
    for point in sorted(RARE - {"detach-unregistered"}):
        environment = {**verbs.env, **crashing, **CHECKED, "USERSWAP_CRASH": f"{point}:8"}
        swap = [f"{first}:400M", f"{second}:400M"]
        with userswap.start(command, RAM, swap=swap, env=environment) as live:
            live.wait_for_line("ready", 60)
            for _ in range(40):
                wait_until(
                    lambda: bool(working_engine(live)) and bool(verbs.sockets()), 10, "it can be talked to"
                )
                done = verbs.start("swapoff", f"{first}")
                done.communicate(timeout=60)
                if done.returncode == 0:
                    break
            wait_until(lambda: bool(verbs.sockets()), 10, "it can be talked to")
            assert list(verbs.areas()) == ["second:400M"]
            run = end_by_signal(live, Path(command[0]).name)
        assert run.stats["takeovers"] > 1, run.describe()


@pytest.mark.root
def test_a_detach_is_not_finished(
    started: list[Attachable], programs: Programs, verbs: Verbs, crashing: dict[str, str]
) -> None:
    """The next engine attaches to the process again, and its memory is as it was."""
    verbs.env.update({**crashing, **CHECKED, "USERSWAP_CRASH": "detach-unregistered:1"})
    program = start(started, programs("loop_verify"), "160")
    verbs("attach", str(program.pid), "--ram", str(RAM))
    for deaths in range(1, 4):
        wait_until(lambda: verbs.engine()["pages_evicted"] > 1000, 20, "it is swapped")
        verbs.start("detach", str(program.pid)).communicate(timeout=60)
        wait_until(lambda: verbs.takeovers() >= deaths, 20, "there is another one")  # noqa: B023
    program.end()


def test_it_can_happen_after_the_program_has_ended(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    """Its children live on, and so does what they have swapped."""
    script = f"{programs('loop_verify')} 160 > {tmp_path}/out 2>&1 & exit 3"
    command = [
        sys.executable,
        "-m",
        "userswap",
        "run",
        "--quiet",
        "--ram",
        str(RAM),
        "--",
        "sh",
        "-c",
        script,
    ]
    done = subprocess.run(command, env={**os.environ, **verbs.env}, timeout=60)
    assert done.returncode == 3
    wait_until(lambda: b"ready" in (tmp_path / "out").read_bytes(), 60, "it is filled")
    keeper = verbs.engine()["pid"]
    (program,) = [one["pid"] for one in verbs.engine()["programs"]]
    (engine,) = [pid for pid in tree_of(keeper) if name_of(pid) == ENGINE]
    kill(engine)
    wait_until(lambda: json.loads(verbs("status", "--json"))["engines"] != [], 10, "there is another one")
    assert verbs.engine()["takeovers"] == 1
    before = verbs.engine()["faults"]
    wait_until(lambda: verbs.engine()["faults"] > before, 30, "faults are served")
    os.kill(program, signal.SIGKILL)
    wait_until(lambda: stat_of(keeper) is None, 30, "nothing is left")
    assert b"WRONG" not in (tmp_path / "out").read_bytes()


@pytest.fixture(autouse=True)
def no_helper_left() -> Iterator[None]:
    def helpers() -> list[int]:
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and name_of(int(pid)) == HELPER]

    before: Callable[[], set[int]] = lambda: set(helpers())  # noqa: E731
    known = before()
    yield
    wait_until(lambda: set(helpers()) <= known, 10, "no helper is left")
