# SPDX-License-Identifier: GPL-2.0-or-later
"""attach and detach: swap for processes that run already, and nothing of it left in them. More cycles by
USERSWAP_CYCLES=1000."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import (
    CALLS,
    ENGINE,
    EXIT_OWN_ERROR,
    HELPER,
    KEEPER,
    MIB,
    Attachable,
    Programs,
    Verbs,
    name_of,
    start,
    stat_of,
    tree_of,
    wait_until,
)

pytestmark = pytest.mark.root

CYCLES = int(os.environ.get("USERSWAP_CYCLES", "2"))
RAM = "96M"


def traces(pid: int) -> dict[str, object]:
    """What might be left of us in a process, and all else that should be as it was."""
    threads = sorted(os.listdir(f"/proc/{pid}/task"))
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    flags = [
        line for line in Path(f"/proc/{pid}/smaps").read_text().splitlines() if line.startswith("VmFlags:")
    ]
    return {
        "maps": [line.split()[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()],
        "flags": flags,
        "fds": sorted(os.listdir(f"/proc/{pid}/fd")),
        "threads": threads,
        "children": [Path(f"/proc/{pid}/task/{thread}/children").read_text() for thread in threads],
        "traced": [line for line in status if line.startswith("TracerPid")],
    }


def remains(pid: int) -> list[str]:
    """Of us, in a process that changes all the time."""
    found = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:userswap" in line]
    smaps = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    found += [line for line in smaps if line.startswith("VmFlags:") and (" um" in line or " uw" in line)]
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += [name for name in [os.readlink(f"/proc/{pid}/fd/{fd}")] if "userfault" in name]
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            found += [child for child in children if name_of(int(child)) == HELPER]
    status = Path(f"/proc/{pid}/status").read_text()
    return found if "TracerPid:\t0" in status else [*found, "a tracer"]


def no_engine(verbs: Verbs) -> bool:
    return not json.loads(verbs("status", "--json"))["engines"]


def keepers() -> set[int]:
    return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and name_of(int(pid)) == KEEPER}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = keepers()
    yield
    wait_until(lambda: keepers() <= before, 20, "no keeper is left")


def swapped(verbs: Verbs) -> bool:
    engines = json.loads(verbs("status", "--json"))["engines"]
    return any(
        one["pages_evicted"] > 1000 and one["resident_bytes"] <= one["ram_limit_bytes"] for one in engines
    )


def test_a_process_is_as_it_was(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    program = start(started, programs("loop_verify"), "160")
    before = traces(program.pid)
    for _ in range(CYCLES):
        verbs("attach", str(program.pid), "--ram", RAM)
        assert [one["pid"] for one in verbs.engine()["programs"]] == [program.pid]
        wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
        assert program.resident() < 96 * MIB
        verbs("detach", str(program.pid))
        assert traces(program.pid) == before
        assert program.resident() > 160 * MIB
        wait_until(lambda: no_engine(verbs), 10, "the engine has ended")
    program.end()


def test_huge_pages_are_made_again(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    def huge() -> int:
        rollup = Path(f"/proc/{program.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages:"))

    program = start(started, programs("loop_verify"), "160")
    before = huge()
    verbs("attach", str(program.pid), "--ram", RAM)
    wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
    verbs("detach", str(program.pid))
    assert huge() >= before * 9 // 10
    program.end()


def busy(programs: Programs, what: str) -> list[str]:
    kind, *arguments = what.split()
    if kind == "go":
        return [programs.go("inject_busy"), "4"]
    if kind in ("static", "musl"):
        compiler = ("musl-gcc" if kind == "musl" else "gcc", "-O1", "-pthread")
        return [programs("inject_busy", compiler, ["-static"]), "4"]
    return [programs(kind, ("gcc", "-O1", "-pthread")), *arguments]


@pytest.mark.parametrize(
    "what", ["inject_busy 4", "attach_dlopen 64", "inject_storm", "static", "musl", "go"]
)
def test_again_and_again(started: list[Attachable], programs: Programs, verbs: Verbs, what: str) -> None:
    program = start(started, *busy(programs, what))
    for _ in range(CYCLES):
        verbs("attach", str(program.pid), "--ram", "64M")
        verbs("detach", str(program.pid))
        assert remains(program.pid) == []
    assert "WRONG" not in program.finish()
    wait_until(lambda: no_engine(verbs), 10, "the engine has ended")


def test_in_every_system_call(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    """A tree with one process in each kind of call; none sees an error."""
    script = 'program=$1; shift; exec 3<&0; for call; do "$program" "$call" <&3 & pids="$pids $!"; done; '
    script += "for pid in $pids; do wait $pid || exit; done"
    command = ["sh", "-c", script, "sh", programs("inject_calls", ("gcc", "-O1")), *CALLS]
    shell = start(started, *command)
    for _ in CALLS[1:]:
        assert shell.line() == "ready\n"
    for _ in range(CYCLES):
        verbs("attach", "--tree", str(shell.pid), "--ram", "64M")
        verbs("detach", "--tree", str(shell.pid))
        for pid in tree_of(shell.pid):
            assert remains(pid) == []
    rounds = shell.finish().splitlines()
    assert len(rounds) == len(CALLS), rounds
    assert all(line.startswith("rounds ") for line in rounds), rounds
    wait_until(lambda: no_engine(verbs), 10, "the engine has ended")


def test_a_stopped_process(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    program = start(started, programs("loop_verify"), "160")
    os.kill(program.pid, signal.SIGSTOP)
    before = traces(program.pid)
    for _ in range(CYCLES):
        verbs("attach", str(program.pid), "--ram", RAM)
        wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
        verbs("detach", str(program.pid))
        assert traces(program.pid) == before
        state = stat_of(program.pid)
        assert state is not None
    os.kill(program.pid, signal.SIGCONT)
    program.end()


def test_a_tree_that_works(programs: Programs, verbs: Verbs) -> None:
    """Attached, swapped and detached amid random operations: no wrong byte, and nothing left of us in any of
    them, those that it forked meanwhile included."""
    command = [programs("torture"), "12", "128", "3", "2", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as torture:
        wait_until(lambda: len(tree_of(torture.pid)) > 2, 10, "it works")
        for _ in range(2):
            verbs("attach", "--tree", str(torture.pid), "--ram", RAM)
            wait_until(lambda: swapped(verbs), 30, "it is under the limit")
            verbs("detach", "--tree", str(torture.pid))
            wait_until(lambda: no_engine(verbs), 10, "the engine has ended")
            assert HELPER not in {name_of(pid) for pid in tree_of(torture.pid)}
        out, err = torture.communicate(timeout=60)
    assert torture.returncode == 0, err
    assert out.endswith("ok\n")


def test_its_children_are_served(verbs: Verbs, tmp_path: Path) -> None:
    """Those that it starts from then on; those that it had are not, without --tree."""
    script = "sleep 100 & echo $!; read line; sleep 100 & echo $!; wait"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        first = int(shell.stdout.readline())
        verbs("attach", str(shell.pid), "--ram", "64M")
        shell.stdin.write("\n")
        shell.stdin.flush()
        second = int(shell.stdout.readline())
        wait_until(
            lambda: {one["pid"] for one in verbs.engine()["programs"]} == {shell.pid, second},
            10,
            "it is known",
        )
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: no_engine(verbs), 10, "the engine has ended")


def test_refusals(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    before = keepers()
    assert verbs("attach", "4194303", status=EXIT_OWN_ERROR) == "userswap: there is no process 4194303\n"
    assert "a thread of the kernel" in verbs("attach", "2", status=EXIT_OWN_ERROR)
    assert "all others descend from it" in verbs("attach", "1", status=EXIT_OWN_ERROR)
    assert "not the number of a process" in verbs("attach", "x", status=EXIT_OWN_ERROR)
    assert "is not served" in verbs("detach", str(os.getpid()), status=EXIT_OWN_ERROR)
    program = start(started, programs("loop_verify"), "16")
    verbs("attach", str(program.pid), "--ram", "64M")
    assert "served by a userswap already" in verbs("attach", str(program.pid), status=EXIT_OWN_ERROR)
    verbs("detach", str(program.pid))
    wait_until(lambda: keepers() <= before, 10, "nothing is left")
    program.end()


@contextlib.contextmanager
def traced(pid: int) -> Iterator[None]:
    """By a process of its own."""
    seize = f"ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0)"
    command = [sys.executable, "-c", f"import ctypes; print({seize}, flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "0\n"
        yield
        tracer.communicate("\n", timeout=10)


def test_a_process_that_is_traced_is_refused(
    started: list[Attachable], programs: Programs, verbs: Verbs
) -> None:
    program = start(started, programs("loop_verify"), "16")
    with traced(program.pid):
        assert "is being traced already" in verbs("attach", str(program.pid), status=EXIT_OWN_ERROR)
    assert remains(program.pid) == []
    program.end()


@pytest.fixture
def parent(started: list[Attachable], programs: Programs) -> Attachable:
    """A shell, and a large process that it has started."""
    return start(started, "sh", "-c", f"{programs('loop_verify')} 160 & wait")


def child_of(parent: Attachable) -> int:
    (child,) = [pid for pid in tree_of(parent.pid) if pid != parent.pid]
    return child


def test_a_refused_tree_goes_on_as_before(parent: Attachable, verbs: Verbs) -> None:
    """The child is entered first, as it is the larger one, and its parent cannot be."""
    child = child_of(parent)
    before = traces(child)
    with traced(parent.pid):
        refused = verbs("attach", "--tree", str(parent.pid), "--ram", RAM, status=EXIT_OWN_ERROR)
        assert f"process {parent.pid} cannot be entered: it is being traced already" in refused
    wait_until(lambda: no_engine(verbs), 10, "the engine has ended")
    assert traces(child) == before
    os.kill(child, signal.SIGTERM)
    assert "WRONG" not in parent.finish()


def test_a_child_that_cannot_be_entered_is_left_alone(parent: Attachable, verbs: Verbs) -> None:
    child = child_of(parent)
    with traced(child):
        _, said = verbs.start("attach", "--tree", str(parent.pid), "--ram", RAM).communicate(timeout=60)
        assert f"left alone: {name_of(child)} ({child}): it is being traced already" in said
    assert remains(child) == []
    verbs("detach", "--tree", str(parent.pid))
    assert remains(parent.pid) == []
    os.kill(child, signal.SIGTERM)
    assert "WRONG" not in parent.finish()


def test_children_of_another_userswap_are_left_out(parent: Attachable, verbs: Verbs) -> None:
    child = child_of(parent)
    verbs("attach", str(child), "--ram", RAM)
    verbs("attach", "--tree", str(parent.pid), "--ram", RAM)
    engines = json.loads(verbs("status", "--json"))["engines"]
    assert sorted([one["pid"] for one in engine["programs"]] for engine in engines) == sorted(
        [[child], [parent.pid]]
    )
    for pid in (child, parent.pid):
        verbs("detach", "--tree", str(pid))
        assert remains(pid) == []
    os.kill(child, signal.SIGTERM)
    assert "WRONG" not in parent.finish()


def test_an_engine_that_dies_is_replaced(started: list[Attachable], programs: Programs, verbs: Verbs) -> None:
    program = start(started, programs("loop_verify"), "160")
    verbs("attach", str(program.pid), "--ram", RAM)
    wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
    keeper = verbs.engine()["pid"]
    (engine,) = [pid for pid in tree_of(keeper) if name_of(pid) == ENGINE]
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: bool(verbs.sockets()) and not no_engine(verbs), 10, "there is another one")
    wait_until(lambda: verbs.engine()["takeovers"] == 1, 10, "it took over")
    verbs("detach", str(program.pid))
    assert remains(program.pid) == []
    program.end()


def test_without_keeper_and_engine_it_is_stopped(
    started: list[Attachable], programs: Programs, verbs: Verbs
) -> None:
    """It never reads zeros instead."""
    program = start(started, programs("loop_verify"), "160")
    verbs("attach", str(program.pid), "--ram", RAM)
    wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
    os.kill(verbs.engine()["pid"], signal.SIGKILL)
    _, err = program.process.communicate(timeout=30)
    assert program.process.returncode == -signal.SIGKILL
    assert "WRONG" not in err


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory cgroup of version 1."""
    path = Path(f"/sys/fs/cgroup/memory/userswap-attach-{os.getpid()}")
    mounted = not path.parent.is_mount()
    if mounted:
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup", "-o", "memory", "cgroup", str(path.parent)], check=True)
    path.mkdir()
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text(), 10, "the group is empty")
    path.rmdir()
    if mounted:
        subprocess.run(["umount", str(path.parent)], check=True)


def test_detach_is_refused_where_memory_cannot_hold_all(
    group: Path, started: list[Attachable], programs: Programs, verbs: Verbs
) -> None:
    program = start(started, programs("loop_verify"), "160")
    (group / "cgroup.procs").write_text(str(program.pid))
    verbs("attach", str(program.pid), "--ram", RAM)
    wait_until(lambda: swapped(verbs), 30, "its memory is under the limit")
    (group / "memory.limit_in_bytes").write_text(str(100 * MIB))
    assert "MiB more would be needed" in verbs("detach", str(program.pid), status=EXIT_OWN_ERROR)
    assert [one["pid"] for one in verbs.engine()["programs"]] == [program.pid]
    (group / "memory.limit_in_bytes").write_text("-1")
    Path(group.parent / "cgroup.procs").write_text(str(program.pid))
    verbs("detach", str(program.pid))
    assert remains(program.pid) == []
    program.end()


def test_a_process_at_the_end_of_its_memory(
    group: Path, started: list[Attachable], programs: Programs, verbs: Verbs
) -> None:
    """It has a MiB left, and is given swap: nothing of it is ended, and then it has room. The engine's own
    memory cannot be swapped by the kernel."""
    enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    program = start(started, *enter, programs("loop_verify"), "160")
    used = int((group / "memory.usage_in_bytes").read_text())
    assert used > 128 * MIB
    (group / "memory.limit_in_bytes").write_text(str(used + MIB))
    verbs("attach", str(program.pid), "--ram", RAM)
    wait_until(lambda: program.resident() < 96 * MIB, 30, "its memory is under the limit")
    assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    (engine,) = [pid for pid in tree_of(verbs.engine()["pid"]) if name_of(pid) == ENGINE]
    locked = next(line for line in Path(f"/proc/{engine}/status").read_text().splitlines() if "VmLck" in line)
    assert int(locked.split()[1]) > 8 << 10
    (group / "memory.limit_in_bytes").write_text("-1")
    verbs("detach", str(program.pid))
    assert remains(program.pid) == []
    program.end()
