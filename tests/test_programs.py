# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs give the same results to the last bit in a quarter of the memory that they took."""

import hashlib
import math
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redis_client import Redis, server_options
from support import MIB, PROGRAMS, Live, Programs, Runner, wait_until

STATIC = ("-static",)
MUSL = ("musl-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


def script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(PROGRAMS / name), *map(str, arguments)]


def program(name: str) -> str:
    """A program of the system. What the tests need has to be there: its absence is a failure."""
    path = shutil.which(name)
    assert path, f"{name} is not installed"
    return path


@pytest.mark.parametrize(("job", "size"), [("sort", 240), ("cumsum", 200), ("matmul", 96)])
def test_numpy(userswap: Runner, job: str, size: int) -> None:
    userswap.quarter(script("numpy_jobs.py", job, size))


def test_malloc_in_four_threads(userswap: Runner, programs: Programs) -> None:
    userswap.quarter([programs("malloc_check"), "420"])


def test_static_program(userswap: Runner, programs: Programs) -> None:
    userswap.quarter([programs("static_sum", flags=STATIC), "270"])


def test_musl_program(userswap: Runner, programs: Programs) -> None:
    userswap.quarter([programs("malloc_check", compiler=MUSL, flags=STATIC), "350"])


def test_go_program(userswap: Runner, programs: Programs) -> None:
    userswap.quarter([programs.go("words"), "60000"])


def test_large_dict(userswap: Runner) -> None:
    userswap.quarter(script("walk_dict.py", 320_000))


def test_sqlite_in_memory(userswap: Runner) -> None:
    userswap.quarter(script("sqlite_memory.py", 260_000))


def test_script_of_several_processes(userswap: Runner) -> None:
    userswap.quarter([str(PROGRAMS / "several.sh"), sys.executable, str(PROGRAMS), "320000"])


def test_gnu_sort_of_a_file_larger_than_the_limit(userswap: Runner, tmp_path: Path) -> None:
    # Long lines: sort compares them by pointers, so that it is the number of lines that costs.
    lines = tmp_path / "lines"
    rng = random.Random(1)
    with lines.open("wb") as file:
        for _ in range(72_000):
            file.write(rng.randbytes(2000).hex().encode() + b"\n")
    command = [program("sort"), "-S", "1G", "--parallel=2", str(lines)]
    _, swapped = userswap.quarter(command, env={"LC_ALL": "C"})
    assert lines.stat().st_size > swapped.stats["ram_limit_bytes"]


@pytest.mark.parametrize(
    ("method", "advice"), [("all", "nohugepage"), ("all", "random"), ("fwdrev", "random")]
)
def test_stress_ng_verifies_its_memory(userswap: Runner, tmp_path: Path, method: str, advice: str) -> None:
    """Whatever advice it is told to give, it gives MADV_POPULATE_WRITE too, which nobody can stop halfway:
    here bytes count, not the limit."""
    command = [program("stress-ng"), "--vm", "2", "--vm-bytes", "512M", "--vm-method", method, "--verify"]
    command += ["--vm-madvise", advice] if advice != "random" else []
    command += ["--timeout", "8", "--temp-path", str(tmp_path)]
    swapped = userswap(command, 128 * MIB, tolerance=math.inf)
    assert swapped.stats["pages_evicted"] > 50_000, swapped.describe()
    assert b"fail" not in swapped.stderr, swapped.describe()


# ---- redis: a server that forks to save while it goes on being written to

KEYS = 20_000


def value(key: int, generation: int) -> bytes:
    """8 KiB that follow from key and generation, half of it incompressible."""
    seed = hashlib.blake2b(b"%d %d" % (key, generation)).digest()
    return random.Random(seed).randbytes(4096) + seed * 64


@contextmanager
def redis_folder() -> Iterator[Path]:
    """A folder whose name is short enough for a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def redis_command(folder: Path) -> list[str]:
    return [program("redis-server"), *server_options(folder)]


def connect(live: Live, folder: Path) -> Redis:
    def answers() -> bool:
        assert live.process.poll() is None, (folder / "log").read_text()
        try:
            with Redis(folder / "socket") as redis:
                return redis.info("persistence", "loading") == "0"
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    wait_until(answers, 60, "redis answers")
    return Redis(folder / "socket")


def set_all(redis: Redis, keys: range, generation: int) -> None:
    for reply in redis.pipeline(("SET", f"key {key}", value(key, generation)) for key in keys):
        assert reply == b"OK"


def first_difference(redis: Redis, generations: list[int]) -> int | None:
    """The first key that does not hold its value of that generation."""
    replies = redis.pipeline(("GET", f"key {key}") for key in range(KEYS))
    for key, reply in enumerate(replies):
        if reply != value(key, generations[key]):
            return key
    return None


def save_under_load(redis: Redis) -> list[int]:
    """Save in the background and overwrite meanwhile; returns each key's generation afterwards."""
    set_all(redis, range(KEYS), 0)
    generations = [0] * KEYS
    # Some keys are newer when the save begins: what is saved must be these and no later ones.
    set_all(redis, range(100), 1)
    generations[:100] = [1] * 100
    assert redis.command("BGSAVE") == b"Background saving started"
    at = 100
    while redis.info("persistence", "rdb_bgsave_in_progress") == "1":
        keys = range(at % KEYS, min(at % KEYS + 500, KEYS))
        set_all(redis, keys, 2)
        generations[keys.start : keys.stop] = [2] * len(keys)
        at += len(keys)
    assert redis.info("persistence", "rdb_last_bgsave_status") == "ok"
    assert at > 100, "nothing was written while it saved"
    return generations


def serve(live: Live, folder: Path) -> None:
    with connect(live, folder) as redis:
        generations = save_under_load(redis)
        assert first_difference(redis, generations) is None
        redis.send("SHUTDOWN", "NOSAVE")


def test_redis_saves_in_the_background_under_load(userswap: Runner) -> None:
    with redis_folder() as folder:
        with userswap.start(redis_command(folder)) as live:
            serve(live, folder)
            native = live.finish(30)
        assert native.returncode == 0, native.describe()
        (folder / "dump.rdb").unlink()
        ram = max(native.sampled.peak_bytes // 4, 64 * MIB)
        with userswap.start(redis_command(folder), ram) as live:
            serve(live, folder)
            swapped = live.finish(30)
        assert swapped.returncode == 0, swapped.describe()
        assert swapped.stats["pages_evicted"] > 0
        # Another server, without userswap, finds in the file what there was when the save began.
        with userswap.start(redis_command(folder)) as live:
            with connect(live, folder) as redis:
                assert redis.command("DBSIZE") == KEYS
                assert first_difference(redis, [1] * 100 + [0] * (KEYS - 100)) is None
                redis.send("SHUTDOWN", "NOSAVE")
            assert live.finish(30).returncode == 0


def test_the_programs_are_built_as_they_say(programs: Programs) -> None:
    """Static means static: no interpreter in the binary."""
    for binary in (
        programs("static_sum", flags=STATIC),
        programs("malloc_check", compiler=MUSL, flags=STATIC),
        programs.go("words"),
    ):
        headers = subprocess.run(["readelf", "-l", binary], check=True, capture_output=True, text=True).stdout
        assert "INTERP" not in headers
