# SPDX-License-Identifier: GPL-2.0-or-later
"""How well pages of different kinds are packed, and how fast, beside what zram would do with them.

`python -m bench.codecs` prints the table; the heaps need redis-server. zram is measured on a real device,
as root, where there is one that nobody uses; its times are those of whole reads and writes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy

from userswap import tests_door as door

PAGE = 4096
BYTES = 8 << 20
ZRAM = Path("/sys/block/zram0")
DD = ("dd", "bs=1M", "status=none")

CPYTHON = """
import sys
words = {f"key {at}": [at, str(at * 7), (at, float(at))] for at in range(120000)}
print("ready", flush=True)
sys.stdin.read()
"""


def numeric(size: int = BYTES, seed: int = 1) -> dict[str, bytes]:
    """Arrays of numbers of several kinds, each of `size` bytes."""
    rng = numpy.random.default_rng(seed)
    count = size // 8
    return {
        "float64 walk": numpy.cumsum(rng.standard_normal(count)).tobytes(),
        "prices": numpy.round(100 + numpy.cumsum(rng.standard_normal(count) * 0.01), 2).tobytes(),
        "sorted ids": numpy.sort(rng.integers(0, 1 << 40, count)).tobytes(),
        "small ints": rng.integers(0, 1000, count).tobytes(),
    }


def text(size: int = BYTES) -> bytes:
    """Source text, of this Python's own library."""
    found = b""
    for path in sorted(Path(subprocess.__file__).parent.rglob("*.py")):
        found += path.read_bytes()
        if len(found) >= size:
            break
    return found[: min(size, len(found)) // PAGE * PAGE]


def heap_of(pid: int, size: int = BYTES) -> bytes:
    """Of the private writable memory of a process, what is not one repeated word: that is never packed."""
    found = bytearray()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            where, mode, _, _, inode = line.split()[:5]
            if mode != "rw-p" or inode != "0":
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            memory.seek(start)
            data = memory.read(min(end - start, 4 * size)) or b""
            for at in range(0, len(data) - PAGE + 1, PAGE):
                page = data[at : at + PAGE]
                if page != page[:8] * (PAGE // 8):
                    found += page
                if len(found) >= size:
                    return bytes(found)
    return bytes(found)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def cpython_heap() -> bytes:
    command = [sys.executable, "-c", CPYTHON]
    with _ended(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return heap_of(process.pid)


def redis_heap() -> bytes:
    with tempfile.TemporaryDirectory(prefix="userswap-bench-") as folder:
        socket = f"{folder}/socket"
        command = ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", ""]
        with _ended(subprocess.Popen(command, stdout=subprocess.DEVNULL)) as process:
            while not Path(socket).exists():
                time.sleep(0.01)
            fill = f"redis-benchmark -s {socket} -q -t set -n 300000 -r 200000 -d 100"
            subprocess.run(fill.split(), stdout=subprocess.DEVNULL, check=True)
            return heap_of(process.pid)


def sets() -> dict[str, bytes]:
    rng = numpy.random.default_rng(1)
    return {
        "random": rng.bytes(BYTES),
        **numeric(),
        "text": text(),
        "CPython heap": cpython_heap(),
        "redis heap": redis_heap(),
    }


# ---- the rivals

Result = tuple[float, float, float]  # ratio, us a page to pack, us a page to unpack


def ours(data: bytes, *, cold: bool) -> Result:
    pages = len(data) // PAGE
    packed, pack_s, unpack_s = door.Codec().time(data, cold, 3)
    return len(data) / packed, pack_s / 3 / pages * 1e6, unpack_s / 3 / pages * 1e6


def zram(data: bytes, algorithm: str) -> Result:
    """A zram device, written and read page by page."""
    (ZRAM / "reset").write_text("1")
    (ZRAM / "comp_algorithm").write_text(algorithm)
    (ZRAM / "disksize").write_text(str(len(data)))
    try:
        pages = len(data) // PAGE
        begun = time.perf_counter()
        subprocess.run([*DD, "of=/dev/zram0", "oflag=direct"], input=data, check=True)
        packed_at = time.perf_counter()
        subprocess.run([*DD, "if=/dev/zram0", "of=/dev/null", "iflag=direct"], check=True)
        read_at = time.perf_counter()
        used = int((ZRAM / "mm_stat").read_text().split()[2])  # with the allocator's own loss
    finally:
        (ZRAM / "reset").write_text("1")
    return len(data) / used, (packed_at - begun) / pages * 1e6, (read_at - packed_at) / pages * 1e6


def rivals() -> dict[str, Callable[[bytes], Result]]:
    found: dict[str, Callable[[bytes], Result]] = {
        "userswap": lambda data: ours(data, cold=False),
        "userswap, cold": lambda data: ours(data, cold=True),
    }
    if ZRAM.exists() and (ZRAM / "disksize").read_text().strip() == "0":
        for algorithm in ("lz4", "lzo-rle"):
            found[f"zram {algorithm}"] = lambda data, algorithm=algorithm: zram(data, algorithm)  # type: ignore[misc]
    return found


def main() -> None:
    argparse.ArgumentParser(prog="python -m bench.codecs", description=__doc__.splitlines()[0]).parse_args()
    columns = rivals()
    print("ratio, us a page to pack / to unpack\n")
    print("| data | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, data in sets().items():
        results = [measure(data) for measure in columns.values()]
        print(f"| {name} | " + " | ".join(f"{r:.2f}, {p:.1f} / {u:.1f}" for r, p, u in results) + " |")


if __name__ == "__main__":
    main()
