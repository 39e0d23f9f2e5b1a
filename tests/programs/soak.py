# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree of all sorts of processes that check what they do, for a while.

soak.py SECONDS MIB PROBE FOLDER

Beside each other, again and again: numpy sorts, redis is written to and saves, a compiler compiles, short
processes come and go, a large dict is built and walked; and PROBE, the program fault_probe, measures. Each of
numpy, redis, the probe and the dict holds MIB. Files are in FOLDER. Prints what the probe says, how often
each was done, and `ok`."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
from redis_client import Redis, server_options

HERE = Path(__file__).parent
SHORT = "i=0; while [ $i -lt 100 ]; do /bin/true || exit 1; i=$((i + 1)); done; echo $i"
VALUE_BYTES = 4096


class Soak:
    def __init__(self, seconds: float, mib: int, probe: str, folder: Path) -> None:
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._mib = mib
        self._probe = probe
        self._folder = folder
        self._done: Counter[str] = Counter()

    def _goes_on(self) -> bool:
        return time.monotonic() < self._until

    async def run(self) -> None:
        interval = max(5, round(self._seconds / 60))
        python = sys.executable
        await asyncio.gather(
            self._again("sorted", python, str(HERE / "numpy_jobs.py"), "sort", str(self._mib)),
            self._again("walked", python, str(HERE / "walk_dict.py"), str(self._mib * 5000)),
            self._again("compiled", "gcc", "-O2", "-S", "-o", "-", str(HERE / "torture.c")),
            self._again("hundred short", "sh", "-c", SHORT),
            self._probed(self._probe, str(self._seconds), str(self._mib), str(interval)),
            asyncio.to_thread(self._redis),
        )
        print(json.dumps(self._done))

    async def _again(self, name: str, *command: str) -> None:
        """It has to say the same each time."""
        first: bytes | None = None
        while self._goes_on():
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            said, _ = await process.communicate()
            assert process.returncode == 0, (name, process.returncode)
            digest = hashlib.sha256(said).digest()
            assert said, name
            assert first in (None, digest), f"WRONG: {name} said something else"
            first = digest
            self._done[name] += 1

    async def _probed(self, *command: str) -> None:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        async for line in process.stdout:
            if line != b"ok\n":
                print(
                    f"{time.monotonic() + self._seconds - self._until:.0f} s: {line.decode()}",
                    end="",
                    flush=True,
                )
        assert await process.wait() == 0, "the probe"

    # ---- redis

    def _redis(self) -> None:
        path = self._folder / "socket"
        with subprocess.Popen(["redis-server", *server_options(self._folder)]) as server:
            try:
                self._serve(path)
            finally:
                server.terminate()

    def _serve(self, path: Path) -> None:
        for _ in range(1000):
            with suppress(FileNotFoundError, ConnectionRefusedError), Redis(path):
                break
            time.sleep(0.05)
        keys = self._mib * (1 << 20) // VALUE_BYTES
        with Redis(path) as redis:
            turn = 0
            self._set(redis, range(keys), turn)
            while self._goes_on():
                turn += 1
                assert redis.command("BGSAVE") == b"Background saving started"
                changed = range(keys * (turn % 8) // 8, keys * (turn % 8 + 1) // 8)
                self._set(redis, changed, turn)
                self._check(redis, changed, turn)
                while redis.info("persistence", "rdb_bgsave_in_progress") == "1":
                    time.sleep(0.05)
                assert redis.info("persistence", "rdb_last_bgsave_status") == "ok"
                self._done["saved"] += 1

    def _set(self, redis: Redis, keys: range, turn: int) -> None:
        for reply in redis.pipeline(("SET", f"key {key}", _value(key, turn)) for key in keys):
            assert reply == b"OK"

    def _check(self, redis: Redis, keys: range, turn: int) -> None:
        for key, reply in zip(keys, redis.pipeline(("GET", f"key {key}") for key in keys), strict=True):
            assert reply == _value(key, turn), f"WRONG: the value of key {key}"


def _value(key: int, turn: int) -> bytes:
    """Half of it random."""
    seed = b"%d %d" % (key, turn)
    return random.Random(seed).randbytes(VALUE_BYTES // 2) + seed.ljust(64, b".") * (VALUE_BYTES // 128)


if __name__ == "__main__":
    asyncio.run(Soak(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])).run())
    print("ok")
    sys.stdout.flush()
    os._exit(0)
