# SPDX-License-Identifier: GPL-2.0-or-later
"""Another version of userswap goes on with what runs, or refuses before it touches anything. The other
version is a copy of this one."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import userswap as package
from support import (
    EXIT_OWN_ERROR,
    HELPER,
    MIB,
    PLUGINS_ENV,
    UNBOUNDED,
    Attachable,
    Live,
    Programs,
    Run,
    Runner,
    Verbs,
    end_by_signal,
    engine_of,
    keeper_of,
    name_of,
    start,
    stat_of,
    tree_of,
    wait_until,
)
from userswap import handover
from userswap.client import Connection
from userswap.errors import UserswapError

RAM = 96 * MIB
CHECKED = {"USERSWAP_CHECK": "1"}
Other = Callable[..., Verbs]


@pytest.fixture
def other(tmp_path: Path, verbs: Verbs) -> Other:
    """The command line of a version in a folder of its own. In its extension modules `instead` takes the
    place of the digest of the layout; the one that is `broken` cannot be loaded."""

    def make(name: str, instead: bytes = b"", broken: str = "") -> Verbs:
        folder = tmp_path / name / "userswap"
        shutil.copytree(Path(package.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if instead:
            for stem in ("arena", "engine"):
                (module,) = folder.glob(f"{stem}.*.so")
                own = bytes.fromhex(str(handover.identity()["layout"]))[::-1]
                assert own in module.read_bytes()
                module.write_bytes(module.read_bytes().replace(own, instead))
        if broken:
            (module,) = folder.glob(f"{broken}.*.so")
            module.write_bytes(b"")
        made = Verbs(tmp_path / name)
        made.env = {**verbs.env, "PYTHONPATH": str(folder.parent)}
        return made

    return make


def version_of(pid: int) -> str:
    """Where its data plane was loaded from."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    (found,) = {Path(line.split()[-1]).parent.parent.name for line in lines if "/userswap/engine." in line}
    return found


def end_quietly(live: Live) -> Run:
    run = end_by_signal(live, "loop_verify-gcc")
    assert run.stderr == b"", run.describe()
    return run


def test_another_version_goes_on(
    userswap: Runner, programs: Programs, verbs: Verbs, other: Other, disk: Path, tmp_path: Path
) -> None:
    """With the limit, the areas and a store of Python as they were; and then a third one."""
    (tmp_path / "area").mkdir()
    swap = [f"{tmp_path}/area:300M:free", f"folder://{disk}:400M"]
    environment = {**PLUGINS_ENV, **CHECKED, **verbs.env}
    with userswap.start([programs("loop_verify"), "160"], RAM, swap=swap, env=environment) as live:
        live.wait_for_line("ready", 60)
        verbs("limit", "94M")
        keeper, before = keeper_of(live.pid), verbs.engine()
        for turn, name in enumerate(["second", "third"]):
            start = time.monotonic()
            other(name)("upgrade")
            print(f"{time.monotonic() - start:.2f} s")
            assert version_of(engine_of(live.pid)) == name
            assert keeper_of(live.pid) == keeper
            after = verbs.engine()
            assert after["takeovers"] == turn + 1
            for field in ("pid", "ram_limit_bytes", "programs"):
                assert after[field] == before[field]
            assert [{**area, "used_bytes": 0} for area in after["areas"]] == [
                {**area, "used_bytes": 0} for area in before["areas"]
            ]
        verbs("swapoff", f"{tmp_path}/area")
        run = end_quietly(live)
    assert run.stats["pages_in"] > 0


def test_at_any_moment(userswap: Runner, programs: Programs, verbs: Verbs, other: Other) -> None:
    """Among processes that come, go and change their memory all the time. What is killed afterwards is
    replaced by the new version's own."""
    new = other("second")
    rng = random.Random(time.time_ns())
    command = [programs("torture"), "10", "160", "4", "2", "1"]
    with userswap.start(command, 64 * MIB, env={**CHECKED, **verbs.env}, tolerance=UNBOUNDED) as live:
        wait_until(lambda: bool(verbs.sockets()), 10, "it can be talked to")
        for turn in range(6):
            time.sleep(rng.random() * 0.5)  # the moment, not a wait for something
            new("upgrade")
            if turn == 3:
                os.kill(engine_of(live.pid), signal.SIGKILL)
                wait_until(lambda: verbs.takeovers() == 5, 10, "another one has taken over")
                assert version_of(engine_of(live.pid)) == "second"
        opened = len(list(Path(f"/proc/{keeper_of(live.pid)}/fd").iterdir()))
        run = live.finish(120)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] == 7, run.describe()
    assert opened < 400 + 12 * (1 + run.stats["processes_attached"])


@pytest.mark.root
def test_an_attached_process(
    started: list[Attachable], programs: Programs, verbs: Verbs, other: Other
) -> None:
    program = start(started, programs("loop_verify"), "160")
    verbs("attach", str(program.pid), "--ram", "96M")
    wait_until(lambda: verbs.engine()["pages_evicted"] > 1000, 30, "some of it is swapped")
    other("second")("upgrade")
    assert verbs.engine()["takeovers"] == 1
    verbs("detach", str(program.pid))
    assert not [pid for pid in tree_of(program.pid) if name_of(pid) == HELPER]
    assert "memfd:userswap" not in Path(f"/proc/{program.pid}/maps").read_text()
    program.end()


# ---- refused, with all as it was


@pytest.mark.parametrize("why", ["layout", "broken"])
def test_what_cannot_go_on_touches_nothing(
    userswap: Runner, programs: Programs, verbs: Verbs, other: Other, why: str
) -> None:
    new = other("second", instead=bytes(8)) if why == "layout" else other("second", broken="engine")
    with userswap.start([programs("loop_verify"), "160"], RAM, env={**CHECKED, **verbs.env}) as live:
        live.wait_for_line("ready", 60)
        engine = engine_of(live.pid)
        started = stat_of(engine)
        said = new("upgrade", status=EXIT_OWN_ERROR)
        assert ("keeps its state in another way" if why == "layout" else "does not start") in said
        assert said.count("\n") == 1
        assert stat_of(engine) is not None
        assert started is not None
        assert engine_of(live.pid) == engine
        assert verbs.engine()["takeovers"] == 0
        end_quietly(live)


def test_one_that_cannot_be_executed(userswap: Runner, programs: Programs, verbs: Verbs) -> None:
    """Found out too late: then another engine of the old version goes on."""
    with userswap.start([programs("loop_verify"), "160"], RAM, env={**CHECKED, **verbs.env}) as live:
        live.wait_for_line("ready", 60)
        engine = engine_of(live.pid)
        (path,) = verbs.sockets()
        connection = Connection(str(path))
        words = {"key": "key", "identity": handover.identity()}
        connection.ask("upgrade", command=["/nothing/here"], **words)
        wait_until(lambda: stat_of(engine) is None and verbs.takeovers() == 1, 10, "it is replaced")
        connection.again()
        with pytest.raises(UserswapError, match=r"it goes on as it was: /nothing/here: No such file"):
            connection.ask("upgrade-state", key="key")
        wrongs: list[dict[str, object]]
        wrongs = [{"command": []}, {"command": ["a" * 10000]}, {"command": [1]}, {"key": "../x"}]
        for wrong in wrongs:
            with pytest.raises(UserswapError, match=r"command|key"):
                connection.ask("upgrade", **{**words, "command": ["/nothing/here"], **wrong})
        connection.close()
        run = end_quietly(live)
    assert run.stats["takeovers"] == 1


def test_there_is_nothing_to_upgrade(verbs: Verbs) -> None:
    assert verbs("upgrade", status=EXIT_OWN_ERROR) == "userswap: no engine of yours runs\n"
