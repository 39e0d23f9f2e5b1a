# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine for the tests: QEMU, a kernel from /boot, and guest_init.c as its only process."""

import json
import lzma
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any, TextIO

import pytest

from support import MIB, Live, Programs, Run, Runner, Verbs, privileged, send, wait_until

GUEST_MIB = 512
RAM = GUEST_MIB // 4 * MIB
# What the guest fills, gives back and keeps, in pages of 4 KiB.
AREA_MIB = 352
AREA_PAGES = AREA_MIB * MIB // 4096
GIVEN_PAGES = AREA_PAGES - AREA_PAGES // 16
DRIVERS = ("virtio_pci", "virtio_balloon")

Counts = dict[str, Any]


# ---- what it boots


def kernel() -> Path:
    """The newest kernel in /boot that has its modules. A lack fails where everything has to run."""
    found = [path for path in Path("/boot").glob("vmlinuz-*") if modules_of(path).is_dir()]
    if found and shutil.which("qemu-system-x86_64"):
        return max(found, key=lambda path: path.stat().st_mtime)
    message = "needs packages: qemu-system-x86, and a kernel such as linux-image-cloud-amd64"
    if privileged():
        pytest.fail(message)
    pytest.skip(message)


def modules_of(image: Path) -> Path:
    return Path("/lib/modules") / image.name.removeprefix("vmlinuz-") / "kernel/drivers"


def drivers(image: Path) -> list[bytes]:
    """The modules of DRIVERS and what they need, in the order of loading. What is not there is built in."""
    loaded: dict[str, bytes] = {}

    def add(name: str) -> None:
        for path in modules_of(image).glob(f"virtio/{name}.ko*"):
            module = unpacked(path)
            needs = re.search(rb"\0depends=([^\0]*)\0", module)
            for needed in needs[1].decode().split(",") if needs and needs[1] else []:
                if needed not in loaded:
                    add(needed)
            loaded[name] = module

    for name in DRIVERS:
        add(name)
    return list(loaded.values())


def unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def member(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of an initramfs: of a cpio archive of the format that Linux' usr/gen_init_cpio.c writes."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return b"".join(part + bytes(-len(part) % 4) for part in (head, content))


def initramfs(init: Path, modules: Sequence[bytes]) -> bytes:
    files = [
        member("dev", stat.S_IFDIR | 0o755),
        member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        member("dev/ttyS0", stat.S_IFCHR | 0o600, device=(4, 64)),
        member("init", stat.S_IFREG | 0o755, init.read_bytes()),
        member("modules", stat.S_IFDIR | 0o755),
    ]
    files += [member(f"modules/{at}", stat.S_IFREG | 0o644, module) for at, module in enumerate(modules)]
    return b"".join([*files, member("TRAILER!!!", 0)])


def machine(programs: Programs, folder: Path, devices: Sequence[str]) -> list[str]:
    """The command: a machine of few parts, its serial line on standard input and output."""
    image = kernel()
    init = Path(programs("guest_init", ("musl-gcc", "-O2", "-Wall", "-Wextra", "-Werror"), ["-static"]))
    (folder / "initramfs").write_bytes(initramfs(init, drivers(image)))
    # init_on_alloc: Debian's kernel writes zeros to all that it hands out, to its balloon too.
    append = f"console=ttyS0 quiet panic=-1 init_on_alloc=0 GUEST_MIB={AREA_MIB}"
    command = ["qemu-system-x86_64", "-accel", "tcg,tb-size=16", "-m", str(GUEST_MIB), "-display", "none"]
    command += ["-nodefaults", "-no-reboot", "-serial", "stdio", "-append", append]
    command += ["-kernel", str(image), "-initrd", str(folder / "initramfs")]
    command += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
    return [*command, *(word for device in devices for word in ("-device", device))]


# ---- what is said to it


class Guest:
    """A machine that has booted."""

    def __init__(self, live: Live, verbs: Verbs, folder: Path) -> None:
        self._live = live
        self._verbs = verbs
        self._folder = folder
        self._answers = 0
        self._await("ready")

    def _await(self, answer: str) -> None:
        self._answers += 1
        self._live.wait_for_line(f"{self._answers} {answer}", 60)

    def order(self, word: str, answer: str) -> None:
        send(self._live.process, word.encode() + b"\n")
        self._await(answer)

    def counts(self) -> Counts:
        return self._verbs.engine()

    def settled(self) -> Counts:
        return self._verbs.settled()

    def balloon(self, mib: int) -> None:
        """Has the guest's balloon leave it `mib` of memory, and waits until it does."""
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(str(self._folder / "qmp"))
            with one.makefile("rw") as lines:
                assert "QMP" in json.loads(lines.readline())
                ask(lines, "qmp_capabilities")
                ask(lines, "balloon", value=mib * MIB)
                wait_until(
                    lambda: ask(lines, "query-balloon")["actual"] == mib * MIB, 60, f"the guest has {mib} MiB"
                )

    def off(self) -> Run:
        """Has the guest check all that it holds and turn the machine off."""
        self.order("off", "ok")
        assert self._live.process.stdin
        self._live.process.stdin.close()
        run = self._live.finish(60)
        assert run.returncode == 0, run.describe()
        return run


def ask(lines: TextIO, execute: str, **arguments: object) -> dict[str, Any]:
    """One command of QEMU's monitor protocol. What it tells unasked is passed over."""
    lines.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
    lines.flush()
    while "return" not in (answer := json.loads(lines.readline())):
        assert "event" in answer, answer
    result: dict[str, Any] = answer["return"]
    return result


@contextmanager
def booted(
    userswap: Runner, programs: Programs, verbs: Verbs, folder: Path, devices: Sequence[str] = ()
) -> Iterator[Guest]:
    """A guest of GUEST_MIB under `userswap run --ram RAM`."""
    command = machine(programs, folder, devices)
    with userswap.start(command, RAM, env=verbs.env, stdin=PIPE) as live:
        yield Guest(live, verbs, folder)
