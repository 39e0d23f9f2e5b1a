# SPDX-License-Identifier: GPL-2.0-or-later
"""`--encrypt`: what lies in a swap area says nothing, and comes back as it was, whatever is done to it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import (
    EXIT_OWN_ERROR,
    MIB,
    PLUGINS_ENV,
    Programs,
    Runner,
    Verbs,
    end_by_signal,
    engine_of,
    wait_until,
)
from userswap import tests_door as door

RAM = 96 * MIB
PAGE = 4096
BLOCK_BYTES = 2 * MIB
CHECKED = {"USERSWAP_CHECK": "1"}
# Of every 4 KiB the first bytes are these; the rest cannot be packed.
SECRET = b"nobody is to read this "
HOLDER = f"""
import os, sys
held = bytearray(160 << 20)
for at in range(0, len(held), {PAGE}):
    held[at : at + {PAGE}] = {SECRET!r} + os.urandom({PAGE} - {len(SECRET)})
print("ready", flush=True)
sys.stdin.readline()
for at in range(0, len(held), {PAGE}):
    assert held[at : at + {len(SECRET)}] == {SECRET!r}, "WRONG"
print("ok")
"""


@pytest.fixture
def area(disk: Path) -> Path:
    """A file that stays, so that it can be read."""
    return disk / "area"


def secrets_in(file: Path) -> int:
    return file.read_bytes().count(SECRET)


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("packing", ["1", "0"])
def test_nothing_can_be_read(userswap: Runner, area: Path, encrypted: bool, packing: str) -> None:
    options = ["--quiet", "--encrypt"] if encrypted else ["--quiet"]
    environment = {**CHECKED, "USERSWAP_PACK": packing}
    command = [sys.executable, "-c", HOLDER]
    with userswap.start(
        command, RAM, swap=[f"{area}:400M"], options=options, env=environment, stdin=subprocess.PIPE
    ) as live:
        live.wait_for_line("ready", 60)
        found = secrets_in(area)
        assert live.process.stdin is not None
        live.process.stdin.write(b"\n")
        live.process.stdin.flush()
        run = live.finish(60)
    assert (run.returncode, run.stdout[-3:]) == (0, b"ok\n"), run.describe()
    assert run.stats["store_bytes_written"] > 32 * MIB
    assert found == 0 if encrypted else found > 1000, found


def test_areas_come_and_go_and_engines_too(
    userswap: Runner, programs: Programs, verbs: Verbs, disk: Path, tmp_path: Path
) -> None:
    """Blocks move from one area to another, which changes how they are encrypted; a store of Python gets no
    more to see than a disk; and the next engine has the same key."""
    (disk / "second").mkdir()
    environment = {**PLUGINS_ENV, **CHECKED, **verbs.env}
    swap, options = [f"{disk}/first:400M"], ["--quiet", "--encrypt"]
    command = [programs("loop_verify"), "160"]
    with userswap.start(command, RAM, swap=swap, options=options, env=environment) as live:
        live.wait_for_line("ready", 60)
        verbs("swapon", f"folder://{disk}/second:400M")
        verbs("swapoff", f"{disk}/first")
        os.kill(engine_of(live.pid), signal.SIGKILL)
        wait_until(lambda: verbs.takeovers() == 1, 10, "another engine has taken over")
        verbs("upgrade")
        verbs("swapon", f"{disk}/third:400M")
        verbs("swapoff", f"folder://{disk}/second")
        run = end_by_signal(live, "loop_verify-gcc")
    assert run.stderr == b"", run.describe()
    assert run.stats["takeovers"] == 2


def test_torture(userswap: Runner, programs: Programs) -> None:
    command = [programs("torture"), "5", "160", "4", "2", "11"]
    options = ["--quiet", "--encrypt"]
    run = userswap(command, 64 * MIB, timeout=120, options=options, env=CHECKED, tolerance=1.2)
    assert run.stdout.endswith(b"ok\n"), run.describe()
    assert run.stats["store_bytes_read"] > 0


def test_what_is_damaged_is_noticed(userswap: Runner, programs: Programs) -> None:
    """On the medium, that is: behind the encryption."""
    options, environment = ["--quiet", "--encrypt"], {"USERSWAP_FAULTY": "read:flip:1"}
    run = userswap(
        [programs("loop_verify"), "160"], RAM, status=EXIT_OWN_ERROR, options=options, env=environment
    )
    assert re.search(
        rb"^userswap: swapped memory came back damaged, in swap area .* at byte \d+$", run.stderr
    ), run.describe()
    assert b"WRONG" not in run.stderr
    once = {**CHECKED, "USERSWAP_FAULTY": "read:flip:40"}
    command = [programs("torture"), "3", "160", "2", "1", "3"]
    run = userswap(command, RAM, options=options, env=once, tolerance=1.2)
    assert run.stats["reads_repeated"] > 0


def test_equal_pages_look_different(disk: Path) -> None:
    """In each place of a medium, and with each key."""
    seen: set[bytes] = set()
    for turn in range(2):
        path = disk / f"medium{turn}"
        with path.open("wb") as file:
            file.truncate(4 * BLOCK_BYTES)
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        medium = door.Medium(fd, 4 * BLOCK_BYTES, key=bytes(range(turn, 64 + turn)))
        for slot in range(4):
            medium.write(slot, bytes(BLOCK_BYTES))
            assert medium.read(slot, 0, BLOCK_BYTES) == bytes(BLOCK_BYTES)
        del medium
        os.close(fd)
        data = path.read_bytes()
        seen |= {data[at : at + 16] for at in range(0, len(data), 16)}
    assert len(seen) == 2 * 4 * BLOCK_BYTES // 16


@pytest.mark.root
def test_without_the_library(programs: Programs) -> None:
    """It is refused, and nothing is run unencrypted."""
    libraries = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = [line.split(" => ")[1] for line in libraries.splitlines() if "libcrypto.so.3 " in line]
    assert found
    hide = "".join(f"mount --bind /dev/null {path} && " for path in found)
    own = f"{sys.executable} -m userswap run --ram 64M --encrypt -- echo ran"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide + own], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == EXIT_OWN_ERROR, done
    assert done.stderr == "userswap: --encrypt: no libcrypto.so.3: install OpenSSL 3: package libssl3\n"
    assert done.stdout == ""
