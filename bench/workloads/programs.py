# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs, each about so many MiB large: `programs.py NAME MIB SEED`.

Each prints JSON: its phases with seconds and units, and a value that tells whether the result is right. What
it imports is not part of the time; making its data is.
"""

import contextlib
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20
Phases = dict[str, dict[str, float]]


class Clock:
    """Times phases. The first one has the name of the program and is the one that counts."""

    def __init__(self) -> None:
        self.phases: Phases = {}

    @contextlib.contextmanager
    def __call__(self, name: str, units: int = 1) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.add(name, time.monotonic() - start, units)

    def add(self, name: str, seconds: float, units: int = 1) -> None:
        self.phases[name] = {"seconds": seconds, "units": units}


def digest(data: memoryview) -> str:
    """Of its bytes."""
    return hashlib.blake2b(data.cast("B"), digest_size=16).hexdigest()


def sort(clock: Clock, size: int, seed: int) -> str:
    import numpy

    with clock("sort"):
        values = numpy.random.default_rng(seed).integers(0, 1 << 62, size * MIB // 8)
        values.sort()
    return digest(values.data)


def _matrices(size: int, seed: int) -> tuple[Any, Any, Any]:
    import numpy

    n = int((size * MIB / 8 / 3) ** 0.5) // 64 * 64
    rng = numpy.random.default_rng(seed)
    # Whole numbers: the order of additions changes nothing.
    first, second = (rng.integers(0, 16, (n, n)).astype(numpy.float64) for _ in range(2))
    return first, second, numpy.zeros((n, n))


def matmul(clock: Clock, size: int, seed: int) -> str:
    """Blocked, as the library does it."""
    import numpy

    with clock("matmul"):
        first, second, product = _matrices(size, seed)
        numpy.matmul(first, second, out=product)
    return digest(product.data)


def matmul_naive(clock: Clock, size: int, seed: int) -> str:
    """Down the columns of row-major matrices, 256 columns at a time: each pass reads all of the first."""
    with clock("matmul_naive"):
        first, second, product = _matrices(size, seed)
        for at in range(0, len(first), 256):
            product[:, at : at + 256] = first @ second[:, at : at + 256]
    return digest(product.data)


def fft(clock: Clock, size: int, seed: int) -> str:
    import numpy
    import scipy.fft

    count = 1 << (size * MIB // 16).bit_length() - 1
    with clock("fft"):
        values = numpy.random.default_rng(seed).standard_normal(count).view(numpy.complex128)
        values = scipy.fft.ifft(scipy.fft.fft(values, overwrite_x=True), overwrite_x=True)
    return f"{float(numpy.abs(values).sum()):.6e}"


def _frames(size: int, seed: int) -> tuple[Any, Any]:
    import numpy
    import pandas

    rows = size * MIB // 64
    rng = numpy.random.default_rng(seed)
    left = pandas.DataFrame(
        {
            "key": rng.integers(0, rows // 8, rows),
            "group": rng.integers(0, 1000, rows),
            "value": rng.integers(0, 1 << 20, rows),
        }
    )
    right = pandas.DataFrame({"key": numpy.arange(rows // 8), "weight": rng.integers(0, 100, rows // 8)})
    return left, right


def groupby(clock: Clock, size: int, seed: int) -> str:
    with clock("groupby"):
        left, _ = _frames(size, seed)
        found = left.groupby("key").agg({"value": ["sum", "max"], "group": "nunique"})
    return digest(found.to_numpy().copy().data)


def merge(clock: Clock, size: int, seed: int) -> str:
    with clock("merge"):
        left, right = _frames(size, seed)
        found = left.merge(right, on="key")
        total = (found["value"] * found["weight"]).groupby(found["group"]).sum()
    return digest(total.to_numpy().copy().data)


def sklearn(clock: Clock, size: int, seed: int) -> str:
    """K-means: passes over all of the data."""
    import numpy
    from sklearn.cluster import MiniBatchKMeans

    with clock("sklearn"):
        data = numpy.random.default_rng(seed).random((size * MIB // (64 * 8), 64))
        model = MiniBatchKMeans(8, batch_size=16384, max_iter=2, n_init=1, random_state=seed)
        labels = model.fit_predict(data)
    return digest(numpy.bincount(labels).data)


def sqlite(clock: Clock, size: int, seed: int) -> str:
    """In memory: rows, an index, reads at random, a group."""
    import sqlite3

    rows = size * MIB // 150
    rng = random.Random(seed)
    base = sqlite3.connect(":memory:")
    with clock("sqlite"):
        base.execute("create table t (id integer primary key, key integer, text blob)")
        made = ((at, rng.getrandbits(40), rng.randbytes(100)) for at in range(rows))
        base.executemany("insert into t values (?, ?, ?)", made)
        base.execute("create index by_key on t (key)")
        total = 0
        for _ in range(rows // 16):
            (found,) = base.execute("select key from t where id = ?", (rng.randrange(rows),)).fetchone()
            total += found
        (groups,) = base.execute("select count(distinct key % 65536) from t").fetchone()
    return f"{total} {groups}"


def duckdb(clock: Clock, size: int, seed: int) -> str:
    import duckdb

    rows = size * MIB // 32
    base = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": "64GB"})
    with clock("duckdb"):
        base.execute(
            f"create table t as select range as id, hash(range + {seed}) % {rows // 4} as key, "
            f"hash(range * 7 + {seed}) % 1000000 as value from range({rows})"
        )
        (groups,) = base.execute(
            "select sum(s * key % 1000003) from (select key, sum(value) as s from t group by key)"
        ).fetchone()
        (joined,) = base.execute(
            "select sum(a.value % 7 * b.value) from t a join t b on a.key = b.id where b.id % 4 = 0"
        ).fetchone()
    return f"{groups} {joined}"


def redis(clock: Clock, size: int, seed: int) -> str:
    """Filled, then asked at random: requests a second, and their 99th percentile as a time."""
    keys = size * MIB // 1200
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis"
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--daemonize", "no"],
            stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not Path(path).exists():
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.01)

            def ask(*words: str) -> list[dict[str, str]]:
                common = ["redis-benchmark", "-s", path, "--csv", "-d", "1000", "-r", str(keys)]
                done = subprocess.run([*common, *words], capture_output=True, text=True, check=True)
                return list(csv.DictReader(done.stdout.splitlines()))

            with clock("redis"):
                ask("-t", "set", "-n", str(keys * 2), "-P", "16")
                (found,) = ask("-t", "get", "-n", str(keys))
            clock.add("p99 of a request", float(found["p99_latency_ms"]) / 1000)
        finally:
            server.terminate()
            server.wait()
    return ""


def gcc(clock: Clock, size: int, seed: int) -> str:
    """One large file, which the compiler keeps in memory as a whole."""
    rng = random.Random(seed)
    functions = size * 10
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "large.c")
        with source.open("w") as file:
            for at in range(functions):
                a, b, c = (rng.randrange(1, 1 << 20) for _ in range(3))
                call = f"f{rng.randrange(at)}(x ^ {c})" if at else "x"
                file.write(
                    f"int f{at}(int x) {{ int s = {a}; for (int i = 0; i < x % 64; i++) "
                    f"{{ s += (x * {b}) ^ (s >> 3); if (s & {c}) s -= i * {a}; else s ^= x + i; }} "
                    f"switch (s & 7) {{ case 0: return {call}; case 3: return s * x; case 5: return s / {a}; "
                    f"default: return s + {b}; }} }}\n"
                )
        with clock("gcc"):
            subprocess.run(["gcc", "-O1", "-S", str(source), "-o", "large.s"], check=True, cwd=folder)
        return digest(memoryview(Path(folder, "large.s").read_bytes()))


def pagerank(clock: Clock, size: int, seed: int) -> str:
    import numpy
    import scipy.sparse

    edges = size * MIB // 24
    nodes = edges // 16
    rng = numpy.random.default_rng(seed)
    with clock("pagerank"):
        targets = rng.integers(0, nodes, edges, dtype=numpy.int32)
        starts = numpy.arange(0, edges + 1, 16, dtype=numpy.int32)[: nodes + 1]
        links = scipy.sparse.csr_matrix((numpy.full(edges, 1 / 16), targets, starts), (nodes, nodes))
        rank = numpy.full(nodes, 1 / nodes)
        for _ in range(10):
            rank = 0.15 / nodes + 0.85 * (links @ rank)
    return f"{float((rank * numpy.arange(nodes)).sum()):.9e}"


def objects(clock: Clock, size: int, seed: int) -> str:
    """Python's own: a graph of small objects, built and walked at random."""
    count = size * MIB // 280
    rng = random.Random(seed)
    with clock("objects"):
        nodes: list[dict[str, Any]] = [{"value": at * 7919 % count + (1 << 40)} for at in range(count)]
        for node in nodes:
            node["next"] = nodes[rng.randrange(count)]
        total = 0
        for first in range(0, count, 8):
            node = nodes[first]
            for _ in range(4):
                total += node["value"]
                node = node["next"]
    return str(total)


PROGRAMS: dict[str, Callable[[Clock, int, int], str]] = {
    "sort": sort,
    "matmul": matmul,
    "matmul_naive": matmul_naive,
    "fft": fft,
    "groupby": groupby,
    "merge": merge,
    "sklearn": sklearn,
    "sqlite": sqlite,
    "duckdb": duckdb,
    "redis": redis,
    "gcc": gcc,
    "pagerank": pagerank,
    "objects": objects,
}


def main() -> None:
    name, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    clock = Clock()
    check = PROGRAMS[name](clock, size, seed)
    print(json.dumps({**clock.phases, "check": check}), flush=True)
    os._exit(0)  # taking objects apart is no part of the program


if __name__ == "__main__":
    main()
