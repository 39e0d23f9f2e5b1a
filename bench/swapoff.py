# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty a swap area under processes that hold their memory: the kernel's `swapoff` and `userswap swapoff`.

`python -m bench.swapoff` fills an area to so and so much by processes that hold random bits (holder.c), lets
them overwrite pages at random for a while if it is told to, empties the area, and has them check every word.
In the same run, for each case, what the disk gives to large reads and copies of as much.

The sides. "kernel": a swap file under a memory cgroup, whose limit is lifted before, so that swapoff reads
into free memory. "kernel-moving": the limit stays and there is a second swap file, so that what comes in has
to go out again. "userswap": a second area is added, and takes all. "userswap-memory": as "kernel": the
limit is lifted before, and there is no other area.
"""

import argparse
import contextlib
import dataclasses
import json
import mmap
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import kernel
from bench.__main__ import interrupted
from bench.workloads import compiled

HERE = Path(__file__).parent
SIDES = ("kernel", "kernel-moving", "userswap", "userswap-memory")
MIB = 1 << 20
BLOCK = 2 * MIB
# Of an area that is "full": cleaning has to have something to gain when pages are overwritten.
MOST = 0.95
# What an engine has for itself, and for each process: with so much more, as much of the program is resident
# as in the cgroup.
ENGINE_MIB = 48
PROCESS_MIB = 0.6
LIFTED_MIB = 256
# Bytes of metadata by which userswap finds a page again: page table, entry, owner; and of each block.
PAGE_TABLE_BYTES, ENTRY_BYTES, OWNER_BYTES, BLOCK_TABLE_BYTES = 4, 8, 4, 80


@dataclasses.dataclass(frozen=True)
class Case:
    fill: int  # percent of the area
    processes: int
    age: float  # seconds of random overwrites


@dataclasses.dataclass(frozen=True)
class Disk:
    """MB/s of 2 MiB at a time."""

    read: float
    copy: float  # read one, write it, read the next
    overlapped: float  # two at a time


@dataclasses.dataclass(frozen=True)
class Emptied:
    side: str
    used: float  # of the area, when swapoff began
    seconds: float
    command_seconds: float  # with the start of the command, and its waiting for the end
    bytes_moved: int
    overwritten: int  # pages, while they aged
    faults: int  # of the check that follows
    pages_in: int  # that came back by these
    check_seconds: float
    entries_visited: int | None = None
    metadata_bytes: int | None = None

    @property
    def rate(self) -> float:
        return self.bytes_moved / self.seconds / 1e6


# ---- the disk


def _each_block(source: int, target: int | None, start: int, size: int, step: int) -> None:
    buffer = mmap.mmap(-1, BLOCK)
    for at in range(start, size, step):
        if os.preadv(source, [buffer], at) != BLOCK:
            raise OSError("a short read")
        if target is not None and os.pwritev(target, [buffer], at) != BLOCK:
            raise OSError("a short write")


@contextlib.contextmanager
def direct_file(directory: Path, size: int) -> Iterator[int]:
    """A file without a name, with holes as a swap area has."""
    fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_DIRECT, 0o600)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def _rate(source: int, target: int | None, size: int, threads: int = 1) -> float:
    start = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        parts = [(source, target, at * BLOCK, size, threads * BLOCK) for at in range(threads)]
        for copy in [pool.submit(_each_block, *part) for part in parts]:
            copy.result()
    return size / (time.monotonic() - start) / 1e6


def measure_disk(directory: Path, size: int) -> Disk:
    with direct_file(directory, size) as source:
        buffer = mmap.mmap(-1, BLOCK)
        for at in range(0, size, BLOCK):
            buffer[:] = os.urandom(BLOCK)
            os.pwritev(source, [buffer], at)
        read = statistics.median(_rate(source, None, size) for _ in range(3))
        with direct_file(directory, size) as target:
            copy = _rate(source, target, size)
        with direct_file(directory, size) as target:
            overlapped = _rate(source, target, size, threads=2)
    return Disk(read, copy, overlapped)


# ---- the processes


class Holder:
    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the processes have ended: status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except BaseException:
            self.process.terminate()
            self.process.wait(60)
            raise


@contextlib.contextmanager
def holding(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Holder]:
    """The processes, filled."""
    holder = Holder(command, environment)
    try:
        holder.answer()
        yield holder
    finally:
        holder.end()


def age(holder: Holder, case: Case) -> int:
    return int(holder.ask(f"age {case.age}")["pages"]) if case.age else 0


# ---- the sides


def swap_used(path: Path) -> int:
    """Bytes of a swap file that are in use."""
    for line in Path("/proc/swaps").read_text().splitlines():
        if line.startswith(str(path)):
            return int(line.split()[3]) << 10
    raise kernel.Unavailable(f"{path} is not in use")


def empty_by_kernel(case: Case, command: list[str], options: argparse.Namespace, moving: bool) -> Emptied:
    size = options.size * MIB
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(kernel.swap_file(options.directory, size))
        stack.enter_context(kernel.global_swappiness(options.swappiness))
        group = stack.enter_context(kernel.memory_cgroup(options.ram * MIB, options.swappiness))
        holder = stack.enter_context(holding(kernel.enter(group, command)))
        overwritten = age(holder, case)
        if moving:
            stack.enter_context(kernel.swap_file(options.directory, size + options.ram * MIB, 1))
        else:
            kernel.lift_limit(group)
        used = swap_used(path)
        start = time.monotonic()
        subprocess.run(["swapoff", str(path)], check=True)
        seconds = time.monotonic() - start
        checked = holder.ask("check")
    return Emptied(
        side="kernel-moving" if moving else "kernel",
        used=used / size,
        seconds=seconds,
        command_seconds=seconds,
        bytes_moved=used,
        overwritten=overwritten,
        faults=checked["faults"],
        pages_in=checked["faults"],
        check_seconds=checked["seconds"],
    )


class Verbs:
    """userswap's command line, with the control socket in a folder of the bench's own."""

    def __init__(self, folder: Path) -> None:
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        self.environment = {"XDG_RUNTIME_DIR": str(runtime)}

    def __call__(self, *words: str) -> str:
        command = [sys.executable, "-m", "userswap", *words]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout

    def engine(self) -> dict[str, Any]:
        (engine,) = json.loads(self("status", "--json"))["engines"]
        found: dict[str, Any] = engine
        return found


def metadata_bytes(engine: dict[str, Any], pages: int) -> int:
    blocks = engine["swap_bytes"] // BLOCK
    each = OWNER_BYTES * (BLOCK >> 12) + BLOCK_TABLE_BYTES
    return int(pages * PAGE_TABLE_BYTES + engine["entries"] * ENTRY_BYTES + blocks * each)


def empty_by_userswap(
    case: Case, command: list[str], options: argparse.Namespace, into_memory: bool
) -> Emptied:
    size = options.size * MIB
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix=kernel.PREFIX, dir=options.directory)
        folder = Path(stack.enter_context(temporary))
        verbs = Verbs(folder)
        first, second = folder / "first", folder / "second"
        first.mkdir()
        second.mkdir()
        ram = options.ram + ENGINE_MIB + round(PROCESS_MIB * case.processes)
        run = [sys.executable, "-m", "userswap", "run", "--ram", f"{ram}M", "--quiet"]
        run += ["--swap", f"{first}:{options.size}M", "--", *command]
        holder = stack.enter_context(holding(run, verbs.environment))
        overwritten = age(holder, case)
        if into_memory:
            # The blocks may have half of it.
            verbs("limit", f"{2 * (ram + options.size) + LIFTED_MIB}M")
        else:
            verbs("swapon", str(options.second or f"{second}:{options.size + options.ram}M"))
        used = verbs.engine()["areas"][0]["used_bytes"]
        start = time.monotonic()
        said = verbs("swapoff", str(first))
        command_seconds = time.monotonic() - start
        found = re.fullmatch(r"(\d+) MiB moved in ([\d.]+) s, (\d+) page table entries visited\n", said)
        if not found:
            raise ValueError(f"userswap swapoff says {said!r}")
        before = verbs.engine()
        checked = holder.ask("check")
        after = verbs.engine()
    return Emptied(
        side="userswap-memory" if into_memory else "userswap",
        used=used / size,
        seconds=float(found[2]),
        command_seconds=command_seconds,
        bytes_moved=int(found[1]) * MIB,
        overwritten=overwritten,
        faults=after["faults"] - before["faults"],
        pages_in=after["pages_in"] - before["pages_in"],
        check_seconds=checked["seconds"],
        entries_visited=int(found[3]),
        metadata_bytes=metadata_bytes(before, checked["pages"]),
    )


def empty(side: str, case: Case, binary: Path, options: argparse.Namespace) -> Emptied:
    data = options.ram + round(options.size * case.fill / 100 * MOST)
    command = [str(binary), str(case.processes), str(data), str(case.processes), str(options.bits)]
    os.sync()
    if side.startswith("userswap"):
        return empty_by_userswap(case, command, options, side == "userswap-memory")
    return empty_by_kernel(case, command, options, side == "kernel-moving")


# ---- the table


HEAD = (
    "fill",
    "processes",
    "aged, s",
    "side",
    "used",
    "MiB moved",
    "s",
    "MB/s",
    "of read",
    "of copy",
    "kernel / this",
    "faults",
    "pages in",
    "entries visited",
    "metadata, KiB",
)


def row(case: Case, disk: Disk, emptied: Emptied, results: dict[str, Emptied]) -> list[str]:
    base = results.get("kernel")
    known = emptied.entries_visited is not None and emptied.metadata_bytes is not None
    return [
        f"{case.fill} %",
        str(case.processes),
        f"{case.age:g}",
        emptied.side,
        f"{emptied.used:.0%}",
        str(emptied.bytes_moved >> 20),
        f"{emptied.seconds:.2f}",
        f"{emptied.rate:.0f}",
        f"{emptied.rate / disk.read:.0%}",
        f"{emptied.rate / disk.copy:.0%}",
        f"{base.seconds / emptied.seconds:.1f}" if base else "",
        str(emptied.faults),
        str(emptied.pages_in),
        str(emptied.entries_visited) if known else "",
        str((emptied.metadata_bytes or 0) >> 10) if known else "",
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- the run


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.swapoff", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=768, metavar="MIB", help="of the area (%(default)s)")
    parser.add_argument("--ram", type=int, default=256, metavar="MIB", help="resident (%(default)s)")
    parser.add_argument("--fill", type=int, nargs="+", default=[25, 50, 100], metavar="PERCENT")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument("--age", type=float, nargs="+", default=[0], metavar="SECONDS")
    parser.add_argument("--bits", type=int, default=64, help="random ones in each word of 64 (%(default)s)")
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["kernel", "userswap", "userswap-memory"]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the swap lies")
    parser.add_argument("--second", type=Path, metavar="DEVICE", help="that takes all, on userswap's side")
    parser.add_argument("--swappiness", type=int, default=60, help="of the kernel's side (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every figure, a line a side")
    return parser.parse_args(argv)


def run_case(case: Case, binary: Path, options: argparse.Namespace, turn: int) -> None:
    disk = measure_disk(options.directory, options.size * MIB)
    print(
        f"disk, MB/s: read {disk.read:.0f}, copy {disk.copy:.0f}, overlapped {disk.overlapped:.0f}",
        file=sys.stderr,
        flush=True,
    )
    results: dict[str, Emptied] = {}
    for side in options.sides if turn % 2 == 0 else options.sides[::-1]:
        try:
            results[side] = empty(side, case, binary, options)
        except (ChildProcessError, subprocess.CalledProcessError) as error:
            print(f"{case}: {side}: {error}", file=sys.stderr, flush=True)
    for side in options.sides:
        if side in results:
            print("| " + " | ".join(row(case, disk, results[side], results)) + " |", flush=True)
            record(case, disk, results[side], options)


def record(case: Case, disk: Disk, emptied: Emptied, options: argparse.Namespace) -> None:
    if options.json:
        line = {
            "case": dataclasses.asdict(case),
            "disk": dataclasses.asdict(disk),
            **dataclasses.asdict(emptied),
        }
        with options.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, interrupted)
    print(
        f"area of {options.size} MiB, {options.ram} MiB resident, Linux {platform.release()}, "
        f"{os.cpu_count()} CPUs\n"
    )
    print(markdown(HEAD, []))
    cases = [
        Case(fill, processes, age)
        for age in options.age
        for fill in options.fill
        for processes in options.processes
    ]
    with tempfile.TemporaryDirectory(prefix=kernel.PREFIX) as folder:
        binary = compiled(HERE / "holder.c", Path(folder))
        for turn in range(options.rounds * len(cases)):
            run_case(cases[turn % len(cases)], binary, options, turn)


if __name__ == "__main__":
    try:
        main()
    except kernel.Unavailable as lack:
        sys.exit(f"bench: {lack}")
