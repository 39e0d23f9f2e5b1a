# SPDX-License-Identifier: GPL-2.0-or-later
"""Without CAP_SYS_PTRACE: as an ordinary user who may open /dev/userfaultfd, and in a container with its
default rules. The kernel does not tell of forks there; they are caught."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from support import (
    AS_USER,
    EXIT_OWN_ERROR,
    LATE,
    MIB,
    UNBOUNDED,
    WITHOUT_PTRACE,
    Live,
    Options,
    Programs,
    Runner,
    Verbs,
    wait_until,
)
from test_control import CHECKED
from test_law1 import BALLAST_MIB, BEHAVIOURS, RAM
from test_takeover import kill, working_engine

pytestmark = pytest.mark.root

# What Docker, Podman and Kubernetes leave to root in a container.
CAPABILITIES = ["chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"]
CAPABILITIES += ["net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"]
NAMESPACES = ("unshare", "--mount", "--net", "--ipc", "--uts", "--cgroup")


def root_of_a_container(filters: str) -> list[str]:
    """Its namespaces, its capabilities, and its filter of system calls."""
    kept = ",".join(f"+{name}" for name in CAPABILITIES)
    return [*NAMESPACES, "setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", filters]


@pytest.fixture
def container(programs: Programs) -> list[str]:
    return root_of_a_container(programs("container"))


@pytest.fixture(params=["user", "container"])
def prefix(request: pytest.FixtureRequest, container: list[str]) -> list[str]:
    return list(AS_USER) if request.param == "user" else container


def as_somebody(prefix: list[str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*prefix, sys.executable, "-m", "userswap", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_doctor_says_what_it_costs(prefix: list[str]) -> None:
    done = as_somebody(prefix, "doctor")
    assert done.returncode == 0, done
    assert "\nless  forks " in done.stdout
    assert done.stdout.endswith("userswap run works here\n")


@pytest.mark.parametrize(
    ("prefix", "behaviour"),
    [("user", name) for name in BEHAVIOURS if "fork" in name or "exec" in name]
    + [("container", name) for name in ("exec_evicted", "fork_evicted", "vfork_evicted")],
    indirect=["prefix"],
)
def test_behaviour(userswap: Runner, programs: Programs, behaviour: str, prefix: list[str]) -> None:
    run = userswap(
        [programs(behaviour), BALLAST_MIB], RAM, timeout=60, env=CHECKED, prefix=prefix, tolerance=LATE
    )
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()
    assert run.stats["forks"] > 0 or behaviour in ("vfork_evicted", "exec_evicted"), run.describe()


def test_a_container_that_lets_nobody_read_memory(programs: Programs) -> None:
    """Nothing could be entered: that is said at once."""
    before = root_of_a_container(programs("container", flags=("-DBEFORE_DOCKER_23",)))
    done = as_somebody(before, "run", "--ram", "64M", "--", "true")
    assert done.returncode == EXIT_OWN_ERROR
    assert done.stderr == (
        "userswap: seccomp filter: process_vm_readv: Operation not permitted: no program can be entered "
        "(userswap doctor says how to fix it)\n"
    )
    doctor = as_somebody(before, "doctor")
    assert doctor.returncode == 1
    assert "\nFAIL  seccomp filter " in doctor.stdout, doctor
    assert doctor.stdout.endswith("does not work here: seccomp filter\n"), doctor


@pytest.mark.parametrize("behaviour", ["exec_evicted", "fork_refused"])
def test_limit_while_all_cpus_are_busy(userswap: Runner, programs: Programs, behaviour: str) -> None:
    """Nothing of ours has priority there: each step of entering a process waits for its turn."""
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() or 1)]
    try:
        for _ in range(3):
            run = userswap(
                [programs(behaviour), BALLAST_MIB], RAM, timeout=60, prefix=AS_USER, tolerance=LATE
            )
            assert run.stdout.endswith(b"ok\n"), run.describe()
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_no_wrong_byte(userswap: Runner, programs: Programs, prefix: list[str]) -> None:
    command = [programs("torture"), "6", "160", "4", "2", "1"]
    run = userswap(command, RAM, timeout=100, env=CHECKED, tolerance=UNBOUNDED, prefix=prefix)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    counts = json.loads(run.stdout.splitlines()[0])
    assert min(counts["fork"], counts["fork_world"], counts["vfork"]) > 0, counts
    assert run.stats["forks"] > 0, run.describe()


SHARED = """
import os
import numpy
numbers = numpy.random.default_rng(1).random(40_000_000)
total = numbers.sum()
child = os.fork()
if child == 0:
    os._exit(int(numbers.sum() != total))
assert os.waitpid(child, 0)[1] == 0
"""


def test_what_a_fork_shares_is_counted_once(userswap: Runner, container: list[str]) -> None:
    """Though kcmp(2) is forbidden, and so whose memory a new process has is known only once it runs."""
    run = userswap([sys.executable, "-c", SHARED], 128 * MIB, prefix=container)
    assert run.stats["peak_resident_bytes"] == pytest.approx(run.sampled.peak_bytes, rel=0.12), run.describe()


def deaths(live: Live, times: int) -> Iterator[None]:
    """Of the engine, again and again: each goes on from its death until another one works, or the program has
    ended."""
    engine = working_engine(live)
    while engine and times > 0:
        kill(engine)
        yield
        engine = working_engine(live, but=engine)
        times -= 1


def test_engines_killed_at_random(userswap: Runner, programs: Programs) -> None:
    command = [programs("torture"), "8", "128", "1", "4", "2"]
    with userswap.start(command, RAM, env=CHECKED, tolerance=UNBOUNDED, prefix=AS_USER) as live:
        for _ in deaths(live, 12):
            pass
        run = live.finish(100)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] > 8, run.describe()


def test_nobody_waits_where_no_engine_is_any_more(userswap: Runner, programs: Programs, verbs: Verbs) -> None:
    """Who talks to an engine that has just died is cut off, also where the tracer is amid a fork, and what is
    open stays so."""
    command = [programs("torture"), "5", "128", "1", "4", "2"]
    options: Options = {"env": {**CHECKED, **verbs.env}, "tolerance": UNBOUNDED, "prefix": WITHOUT_PTRACE}
    with userswap.start(command, RAM, **options) as live:
        wait_until(lambda: bool(verbs.sockets()), 20, "it can be talked to")
        (path,) = verbs.sockets()
        for _ in deaths(live, 7):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                with suppress(ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
                    client.connect(str(path))
                    client.sendall(b"?\n")
                    assert client.recv(1) in (b"", b"{")  # it may be another one's already
        run = live.finish(100)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["takeovers"] > 4, run.describe()


def test_what_the_kernel_writes_amid_a_fork(userswap: Runner, programs: Programs) -> None:
    """Its pages are swapped, and nothing of the child is registered yet."""
    environment = {**CHECKED, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
    run = userswap([programs("fork_words"), BALLAST_MIB], RAM, env=environment, prefix=WITHOUT_PTRACE)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()


def test_forks_that_do_not_come_about(userswap: Runner, programs: Programs) -> None:
    """One of a process that somebody else traces is refused: its child would read zeros."""
    command = [programs("fork_refused"), BALLAST_MIB]
    run = userswap(command, RAM, env=CHECKED, prefix=AS_USER, tolerance=LATE)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.number("evicted") > 0, run.describe()
    assert run.number("refused") == 1, run.describe()


def test_attach_is_refused(prefix: list[str]) -> None:
    done = as_somebody(prefix, "attach", str(os.getpid()), "--ram", "64M")
    assert done.returncode == EXIT_OWN_ERROR
    assert done.stderr == (
        "userswap: CAP_SYS_PTRACE is not held: forks of what runs already cannot be served "
        "(userswap doctor says more)\n"
    )


def forks_on(live: Live) -> None:
    """It does, and sees what it should."""
    before = live.stdout().count(b"forked")
    wait_until(lambda: live.stdout().count(b"forked") > before + 5, 60, "it forks")


def test_it_forks_on_under_another_version_and_detached(userswap: Runner, verbs: Verbs) -> None:
    command = [sys.executable, "-c", FORKS]
    environment = {**verbs.env, **CHECKED}
    with userswap.start(command, RAM, env=environment, tolerance=UNBOUNDED, prefix=WITHOUT_PTRACE) as live:
        live.wait_for_line("ready", 60)
        for _ in range(2):
            verbs("upgrade")
            forks_on(live)
        program = int(live.stdout().split()[0])
        verbs("detach", str(program))
        forks_on(live)
        os.kill(program, signal.SIGTERM)
        run = live.finish(30)
    assert run.returncode == 128 + signal.SIGTERM, run.describe()
    assert b"Error" not in run.stderr, run.describe()


FORKS = """
import os
memory = bytearray(os.urandom(1 << 20) * 96)
print(os.getpid())
print("ready", flush=True)
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(memory[::4096] != memory[: 1 << 20 : 4096] * 96)
    assert os.waitpid(pid, 0)[1] == 0
    print("forked", flush=True)
"""
