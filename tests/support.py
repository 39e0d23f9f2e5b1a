# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of whole programs share: compiled programs, measured runs, and nothing left behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict, Unpack

PROGRAMS = Path(__file__).parent / "programs"
PLUGINS = Path(__file__).parent / "plugins"
# With these a process finds the stores of tests/plugins.
PLUGINS_ENV = {"PYTHONPATH": os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])}
MIB = 1 << 20
INTERVAL_MS = 5
# Who has no right to real time looks too late at times: 112 % were seen of a limit of 64 MiB.
LATE = 1.25
TOLERANCE = 1.05 if os.geteuid() == 0 else LATE
# While there is no engine nobody holds back what a program maps anew: the limit holds again when there is
# one.
UNBOUNDED = float("inf")
EXIT_OWN_ERROR = 125
HELPER = "userswap-helper"
ENGINE = "userswap-engine"
KEEPER = "userswap-keeper"
USERFAULTFD = "anon_inode:[userfaultfd]"
# Becomes the program once somebody writes to the pipe: by then it is being sampled.
WAIT_AT_GATE = ("sh", "-c", 'read -r line < "$1" && shift && exec "$@"', "sh")
# The system calls that inject_calls.c sits in.
CALLS = [
    "read", "poll", "ppoll", "select", "epoll_wait", "epoll_wait-time", "nanosleep", "futex", "sigtimedwait",
    "recv", "semop", "recvmsg", "send", "accept", "waitid", "flock", "fcntl", "msgrcv", "mq", "splice",
    "clock_nanosleep", "timerfd", "io_getevents",
]  # fmt: skip
CC = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


def privileged() -> bool:
    """Whether this machine has to be able to run everything: then a lack is a failure, not a skip."""
    return os.geteuid() == 0 or os.environ.get("CI", "").lower() in {"1", "true"}


def open_to_all(folder: Path) -> None:
    """Other users may use it; and get there."""
    if str(folder).startswith("/tmp/pytest"):
        folder.chmod(0o777)
        for parent in folder.parents:
            if str(parent).startswith("/tmp/pytest"):
                parent.chmod(parent.stat().st_mode | 0o055)


# Becomes userswap with all rights but that to be told of forks by the kernel.
WITHOUT_PTRACE = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
# ... as an ordinary user.
AS_USER = (str(Path(__file__).parent / "as_user.sh"),)


# ---- programs


class Programs:
    """The programs of tests/programs, built when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}

    def __call__(self, name: str, compiler: Sequence[str] = CC, flags: Sequence[str] = ()) -> str:
        """Path of the binary of `name`.c; another compiler or other flags make another binary."""
        key = "-".join([name, Path(compiler[0]).name, *flags]).replace("/", "_")
        if key not in self._built:
            command = [*compiler, *flags, str(PROGRAMS / f"{name}.c"), "-o", str(self._folder / key)]
            subprocess.run(command, check=True, timeout=120)
            self._built[key] = self._folder / key
        return str(self._built[key])

    def go(self, name: str) -> str:
        """Path of the binary of `name`.go."""
        binary = self._folder / f"{name}-go"
        if not binary.exists():
            environment = os.environ | {"GOCACHE": str(self._folder / "go-cache"), "GO111MODULE": "off"}
            command = ["go", "build", "-o", str(binary), str(PROGRAMS / f"{name}.go")]
            subprocess.run(command, check=True, timeout=300, env=environment)
        return str(binary)


# ---- processes


def stat_of(pid: int) -> tuple[int, int, int, str] | None:
    """Parent, session, start time and state of a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[3]), int(fields[19]), fields[0]


def name_of(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def tree_of(root: int) -> set[int]:
    """The live processes that descend from `root` or are in its session, itself included."""
    stats = {pid: stat for pid in pids() if (stat := stat_of(pid)) and stat[3] != "Z"}
    found = {pid for pid, stat in stats.items() if pid == root or stat[1] == root}
    while more := {pid for pid, stat in stats.items() if stat[0] in found} - found:
        found |= more
    return found


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process are, as the kernel names them."""
    links: list[str] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return links


def attached(root: int) -> list[str]:
    """All signs that some process of the tree has been entered or is traced; empty if none has."""
    signs: list[str] = []
    for pid in tree_of(root):
        if name_of(pid) == HELPER:
            signs.append(f"{pid} is a helper")
        if USERFAULTFD in descriptors(pid):
            signs.append(f"{pid} {name_of(pid)} holds a userfaultfd")
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            with suppress(FileNotFoundError, ProcessLookupError):
                tracer = next(
                    line for line in status.read_text().splitlines() if line.startswith("TracerPid:")
                )
                if tracer.split()[1] != "0":
                    signs.append(f"{status.parent.name} is traced")
    return signs


def engine_of(front: int) -> int:
    """The engine's process below the front process."""
    found = [pid for pid in tree_of(front) if name_of(pid) == ENGINE]
    assert len(found) == 1, f"engines below {front}: {found}"
    return found[0]


def keeper_of(front: int) -> int:
    """The keeper's process below the front process."""
    (keeper,) = [pid for pid in tree_of(front) if name_of(pid) == KEEPER]
    return keeper


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that cannot be waited for by a descriptor."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.005)


def environment_holds(pid: int, entry: str) -> bool:
    """No, once it has ended."""
    with suppress(OSError):
        return entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def kill_all(root: int, seen: Iterable[tuple[int, int]] = (), marked: str = "") -> None:
    """Kill the tree of `root`, by pid and until none is left, and those of `seen` that are still the same.

    Also those with `marked` in their environment: an engine whose front has gone is in no tree of ours."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = tree_of(root) | {pid for pid, started in seen if is_alive(pid, started)}
        left |= {pid for pid in pids() if marked and environment_holds(pid, marked)}
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def is_alive(pid: int, started: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and stat[2] == started and stat[3] != "Z"


def send(process: "subprocess.Popen[bytes]", line: bytes = b"\n") -> None:
    """A line to a program that waits for one on its standard input."""
    assert process.stdin
    process.stdin.write(line)
    process.stdin.flush()


class Attachable:
    """A program that runs by itself, and what it was like before."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid
        while "ready" not in self.line():
            assert self.process.poll() is None

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def resident(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096

    def finish(self) -> str:
        assert self.process.stdin is not None
        out, err = self.process.communicate("x\n", timeout=60)
        assert self.process.returncode == 0, (out, err)
        return out

    def end(self) -> None:
        """It checks its memory for ever: whatever was wrong it has said by now."""
        self.process.terminate()
        _, err = self.process.communicate(timeout=30)
        assert self.process.returncode == -signal.SIGTERM, err
        assert "WRONG" not in err


def start(started: list[Attachable], *command: str) -> Attachable:
    started.append(Attachable(list(command)))
    return started[-1]


# ---- the sampler


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What the sampler saw: bytes of anonymous memory at the peak, and every process as (pid, start time);
    and for how long the machine's CPUs were taken from it meanwhile, when nobody can hold a limit."""

    peak_bytes: int
    samples: int
    discarded: int
    longest_gap: float
    at_peak: list[tuple[int, str, int]]
    seen: list[tuple[int, int]]
    stolen_seconds: float

    def describe(self) -> str:
        parts = ", ".join(f"{name} {size / MIB:.1f}" for _, name, size in self.at_peak)
        return (
            f"{self.peak_bytes / MIB:.1f} MiB ({parts}) in {self.samples} samples, "
            f"{self.longest_gap:.3f} s the longest gap, {self.stolen_seconds:.2f} s stolen"
        )


def stolen_seconds() -> float:
    """As the hypervisor tells, since the machine's start; of all CPUs."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


class Sampler:
    """Samples the memory of a tree from its start to `stop`."""

    def __init__(self, binary: str, root: int, engine: bool) -> None:
        command = [binary, str(root), str(INTERVAL_MS), str(int(engine))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._started = time.monotonic()
        self._stolen = stolen_seconds()

    def stop(self) -> Sampled:
        seconds = time.monotonic() - self._started
        try:
            out, _ = self._process.communicate("", timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        result = json.loads(out)
        result["stolen_seconds"] = stolen_seconds() - self._stolen
        result["at_peak"] = [tuple(entry) for entry in result["at_peak"]]
        result["seen"] = [tuple(entry) for entry in result["seen"]]
        sampled = Sampled(**result)
        assert sampled.samples >= seconds * 1000 / INTERVAL_MS / 4, f"the sampler fell behind: {sampled}"
        # It discards a sample when processes come and go while it adds up. Most must be good.
        assert sampled.discarded <= 5 + sampled.samples / 2, f"the sampler discarded too much: {sampled}"
        return sampled

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


# ---- runs


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended. `stats` is what --stats wrote, empty for a native run."""

    command: Sequence[str]
    returncode: int
    stdout: bytes
    stderr: bytes
    stats: Mapping[str, Any]
    sampled: Sampled
    seconds: float

    def describe(self) -> str:
        return (
            f"{' '.join(self.command)}: status {self.returncode} after {self.seconds:.1f} s, "
            f"peak {self.sampled.describe()}\n"
            f"stdout: {tail(self.stdout)}\nstderr: {tail(self.stderr)}\nstats: {self.stats}"
        )

    def number(self, name: str) -> int:
        """The value of a `name=value` line of the program; the largest if there are several."""
        prefix = name + "="
        lines = self.stdout.decode().splitlines()
        return max(int(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def tail(output: bytes) -> str:
    return output[-4000:].decode(errors="replace")


class Options(TypedDict, total=False):
    """How a program is run. `stdin` is as for subprocess; `options` are those of `userswap run`; `prefix` is
    what becomes userswap, as another user for instance.

    `tolerance` is how far over the limit its peak may be: infinite for a program that has the kernel
    fill new memory in one call."""

    swap: Sequence[str]
    options: Sequence[str]
    stdin: int
    env: Mapping[str, str]
    tolerance: float
    prefix: Sequence[str]


class Live:
    """A program that runs, natively or under userswap, with a sampler beside it.

    Standard output goes to a file, so that a program cannot block on a reader; `stdin` is a pipe on request.
    """

    def __init__(
        self,
        programs: Programs,
        folder: Path,
        command: Sequence[str],
        ram: int | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.ram = ram
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._temporary = self._folder / "tmp"
        self._temporary.mkdir()
        if "prefix" in options:
            open_to_all(self._folder)
            open_to_all(self._temporary)
            open_to_all(Path(command[0]).parent)
        self.command = self._wrapped(command, options)
        self._mark = f"TMPDIR={self._temporary}"
        environment = {**os.environ, "TMPDIR": str(self._temporary), **options.get("env", {})}
        gate = self._folder / "gate"
        os.mkfifo(gate)
        with (self._folder / "stdout").open("wb") as out, (self._folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [*WAIT_AT_GATE, str(gate), *self.command],
                stdin=options.get("stdin", subprocess.DEVNULL),
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=environment,
                cwd=self._folder,
            )
        self.pid = self.process.pid
        self._tolerance = options.get("tolerance", TOLERANCE)
        try:
            self._sampler = Sampler(programs("sample_rss"), self.pid, engine=ram is not None)
            self._started = time.monotonic()
            gate.write_text("go\n")
        except BaseException:
            kill_all(self.pid, marked=self._mark)
            self.process.wait()
            raise

    def _wrapped(self, command: Sequence[str], options: Options) -> list[str]:
        if self.ram is None:
            return list(command)
        own = [*options.get("prefix", []), sys.executable, "-m", "userswap", "run", "--ram", str(self.ram)]
        own += ["--stats", str(self._folder / "stats.json"), *options.get("options", ["--quiet"])]
        for area in options.get("swap", []):
            own += ["--swap", area]
        return [*own, "--", *command]

    def stdout(self) -> bytes:
        """What it has printed so far."""
        return (self._folder / "stdout").read_bytes()

    def stderr(self) -> bytes:
        return (self._folder / "stderr").read_bytes()

    def wait_for_line(self, line: str, seconds: float) -> None:
        def seen() -> bool:
            ended = self.process.poll() is not None
            if line.encode() + b"\n" in self.stdout():
                return True
            assert not ended, f"ended with status {self.process.returncode}: {self._tails()}"
            return False

        wait_until(seen, seconds, f"it prints {line}; so far {self._tails()}")

    def finish(self, timeout: float) -> Run:
        """Wait for the end; check that nothing is left. A run that takes longer is killed, and fails."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            state = self.describe_processes()
            self.abandon()
            raise AssertionError(
                f"{self.command}: no end after {timeout} s\n{state}\n{self._tails()}"
            ) from None
        seconds = time.monotonic() - self._started
        if self.process.stdin:
            self.process.stdin.close()
        sampled = self._sampler.stop()
        left = self._processes_left(sampled)
        if left:
            kill_all(self.pid, sampled.seen, self._mark)
        statistics = self._folder / "stats.json"
        stats = json.loads(statistics.read_text()) if statistics.exists() else {}
        run = Run(self.command, status, self.stdout(), self.stderr(), stats, sampled, seconds)
        assert not left, f"processes left behind: {left}\n{run.describe()}"
        self._check_files()
        self._check_limit(run)
        return run

    def abandon(self) -> None:
        """Kill everything of this run. For a run that will not end."""
        kill_all(self.pid, marked=self._mark)
        self._sampler.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()

    def describe_processes(self) -> str:
        lines: list[str] = []
        for pid in sorted(tree_of(self.pid)):
            for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
                with suppress(OSError, IndexError):
                    state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                    where = (task / "wchan").read_text()
                    lines.append(f"{pid}/{task.name} {(task / 'comm').read_text().strip()} {state} {where}")
        return "\n".join(lines)

    def _tails(self) -> str:
        return f"stdout: {tail(self.stdout())}\nstderr: {tail(self.stderr())}"

    def _processes_left(self, sampled: Sampled) -> list[str]:
        """What still runs. The kernel may take a moment to end a killed process, nothing else may."""
        deadline = time.monotonic() + 2
        while True:
            alive = {pid for pid, started in sampled.seen if is_alive(pid, started)} | tree_of(self.pid)
            if not alive or time.monotonic() > deadline:
                return [f"{pid} {name_of(pid)}" for pid in alive]
            time.sleep(0.005)

    def _check_files(self) -> None:
        left = list(self._temporary.iterdir())
        assert not left, f"files left behind: {left}"

    def _check_limit(self, run: Run) -> None:
        if isinstance(self.ram, int):
            assert run.sampled.peak_bytes <= self.ram * self._tolerance, (
                f"over the limit of {self.ram}: {run.describe()}"
            )


class Runner:
    """Starts programs for one test, and kills what the test leaves running."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._folder = folder

    @contextmanager
    def start(
        self, command: Sequence[str], ram: int | str | None = None, **options: Unpack[Options]
    ) -> Iterator[Live]:
        """A live program; killed at the end of the block if it has not been waited for."""
        live = Live(self._programs, self._folder, command, ram, **options)
        try:
            yield live
        finally:
            if live.process.returncode is None:
                live.abandon()

    def native(self, command: Sequence[str], timeout: float = 60, **options: Unpack[Options]) -> Run:
        """Without userswap; it has to succeed."""
        with self.start(command, **options) as live:
            run = live.finish(timeout)
        assert run.returncode == 0, run.describe()
        return run

    def __call__(
        self,
        command: Sequence[str],
        ram: int | str,
        timeout: float = 120,
        status: int = 0,
        **options: Unpack[Options],
    ) -> Run:
        """Under `userswap run --ram`; it has to end with `status`, within the limit, with nothing left."""
        with self.start(command, ram, **options) as live:
            run = live.finish(timeout)
        assert run.returncode == status, run.describe()
        return run

    def quarter(
        self, command: Sequence[str], timeout: float = 120, **options: Unpack[Options]
    ) -> tuple[Run, Run]:
        """Natively, then in a quarter of the memory that this took; the output must be the same.

        Swapping must have happened, else the test has tested nothing.
        """
        native = self.native(command, timeout, **options)
        ram = native.sampled.peak_bytes // 4
        swapped = self(command, ram, timeout, **options)
        assert swapped.stdout == native.stdout, f"{native.describe()}\n{swapped.describe()}"
        assert swapped.stats["pages_evicted"] * 4096 > native.sampled.peak_bytes // 2, swapped.describe()
        assert swapped.stats["pages_in"] > 0, swapped.describe()
        return native, swapped


def end_by_signal(live: Live, name: str) -> Run:
    """Ends a program of this name that checks its memory for ever: what was wrong it has said by now."""
    (program,) = [pid for pid in tree_of(live.pid) if name_of(pid) == name[:15]]
    os.kill(program, signal.SIGTERM)
    run = live.finish(30)
    assert run.returncode == 128 + signal.SIGTERM, run.describe()
    assert b"WRONG" not in run.stderr, run.describe()
    return run


# ---- verbs that talk to a running engine


class Verbs:
    """The command line, with sockets in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.env = {"XDG_RUNTIME_DIR": str(self.runtime)}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "userswap", *words]
        return subprocess.Popen(
            command,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, status: int = 0) -> str:
        """Its standard output, or its standard error where it has to fail."""
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, (out, err)
        return err if status else out

    def takeovers(self) -> int:
        """-1 while no engine answers."""
        found = json.loads(self("status", "--json"))["engines"]
        return max((engine["takeovers"] for engine in found), default=-1)

    def engine(self) -> dict[str, Any]:
        engines = json.loads(self("status", "--json"))["engines"]
        assert len(engines) == 1, engines
        engine: dict[str, Any] = engines[0]
        return engine

    def settled(self) -> dict[str, Any]:
        """The counts once nothing is being evicted or written any more."""
        seen = [self.engine()]

        def still() -> bool:
            seen.append(self.engine())
            return all(seen[-1][name] == seen[-2][name] for name in ("pages_evicted", "store_writes"))

        wait_until(still, 30, "nothing is evicted or written any more")
        return seen[-1]

    def areas(self) -> dict[str, dict[str, Any]]:
        return {area["path"].rpartition("/")[2]: area for area in self.engine()["areas"]}

    def sockets(self) -> list[Path]:
        return list(self.runtime.glob("userswap/*.sock"))


def rise(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> int:
    """By how much a count rose from one look at an engine to another."""
    change: int = after[name] - before[name]
    return change
