# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one workload under the kernel's swap file and under userswap, and print both.

Each round runs every side once, in an order that alternates from round to round, so that a machine that
grows slower or faster favours nobody. The table gives medians over the rounds.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from bench import kernel
from bench.table import Result, Timing, markdown

HERE = Path(__file__).parent
SIDES = ("none", "kernel", "userswap")
ENCRYPTED = "userswap-encrypted"  # only if it is asked for
RESULTS = """\
# The kernel's swap file and userswap, side by side

`python -m bench {command}`, or `make bench`:

{setting}.

{table}

One process with one array of 16-byte records of random bits (nothing compresses), checked to the last byte
in every phase. "No limit" has all the memory it asks for. "Kernel" is a swap file under a memory cgroup,
which counts page tables and the file cache as well; "userswap" is `userswap run --ram`, which counts the
engine's own memory. A unit is a page of 4 KiB, for the random phases an operation on a random page, a quarter
of which are in memory. The teardown is the munmap of the whole array.
"""
Command = Callable[[list[str]], list[str]]


def interrupted(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that the swap file goes away."""
    sys.exit(128 + number)


def compile_workload(folder: Path) -> Path:
    binary = folder / "workload"
    source = HERE / "workload.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(binary)], check=True)
    return binary


@contextlib.contextmanager
def side(name: str, options: argparse.Namespace) -> Iterator[Command]:
    """Yield what turns the workload's command into one under this side's swap."""
    limit = options.ram << 20
    swap = (options.size + options.ram) << 20
    with contextlib.ExitStack() as stack:
        if name == "kernel":
            stack.enter_context(kernel.swap_file(options.directory, swap))
            stack.enter_context(kernel.global_swappiness(options.swappiness))
            group = stack.enter_context(kernel.memory_cgroup(limit, options.swappiness))
            yield lambda command: kernel.enter(group, command)
        elif name in ("userswap", ENCRYPTED):
            temporary = tempfile.TemporaryDirectory(prefix=kernel.PREFIX, dir=options.directory)
            folder = stack.enter_context(temporary)
            run = [sys.executable, "-m", "userswap", "run", "--ram", str(limit), "--quiet"]
            run += ["--swap", f"{folder}:{swap}", "--stats", f"{folder}/stats.json"]
            run += ["--encrypt"] if name == ENCRYPTED else []
            yield lambda command: [*run, "--", *command]
        else:
            yield lambda command: command


def run_once(name: str, command: list[str], options: argparse.Namespace) -> Result:
    with side(name, options) as wrapped:
        os.sync()
        start = time.monotonic()
        child = subprocess.Popen(wrapped(command), stdout=subprocess.PIPE)
        try:
            out, _ = child.communicate(timeout=options.timeout)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        wall = time.monotonic() - start
    if child.returncode:
        sys.exit(f"bench: {name}: exit status {child.returncode}")
    phases = {phase: Timing(**timing) for phase, timing in json.loads(out).items()}
    phases["whole run"] = Timing(seconds=wall, units=options.size << 8)
    return Result(name, phases)


def sides_of_round(number: int, sides: list[str]) -> list[str]:
    return sides if number % 2 == 0 else sides[::-1]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="memory of the workload (1024)")
    parser.add_argument("--ram", type=int, default=256, metavar="MIB", help="memory that it is given (256)")
    parser.add_argument("--ops", type=int, default=32768, help="random reads, and random writes (32768)")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, ENCRYPTED], default=list(SIDES))
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the swap lies")
    parser.add_argument("--swappiness", type=int, default=60, help="of the kernel's side (60)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take (600)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table with its command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, interrupted)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix=kernel.PREFIX) as folder:
        binary = compile_workload(Path(folder))
        for number in range(options.rounds):
            for name in sides_of_round(number, options.sides):
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                command = [str(binary), str(options.size), str(options.ops), str(number + 1)]
                results.append(run_once(name, command, options))
    page_cluster = Path("/proc/sys/vm/page-cluster").read_text().strip()
    setting = (
        f"{options.size} MiB at {options.ram} MiB, {options.ops} random operations, "
        f"medians of {options.rounds} rounds, Linux {platform.release()}, {os.cpu_count()} CPUs, "
        f"kernel swappiness {options.swappiness}, page-cluster {page_cluster}"
    )
    table = markdown(results)
    print(f"{setting}\n\n{table}")
    if options.results:
        options.results.write_text(
            RESULTS.format(setting=setting, table=table, command=shlex.join(sys.argv[1:]))
        )
    if options.json:
        rows = [result.as_dict() for result in results]
        options.json.write_text(json.dumps({"setting": setting, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except kernel.Unavailable as lack:
        sys.exit(f"bench: {lack}")
