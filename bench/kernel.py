# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side: swap file, zram, zswap and memory cgroup, each removed again however the run ends."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "userswap-bench-"
CGROUP_ROOT = Path("/sys/fs/cgroup")
LIMITS = {"memory.limit_in_bytes": "-1", "memory.max": "max"}  # and what lifts each


class Unavailable(Exception):
    """This machine or user cannot run the kernel's side; the text says what is missing."""


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _owner(path: Path) -> int | None:
    """The pid in a name that we gave, if that process has ended."""
    found = re.fullmatch(re.escape(PREFIX) + r"(\d+)((-\d+)?\.swap)?", path.name)
    if not found or _alive(int(found[1])):
        return None
    return int(found[1])


def remove_swap_file(path: Path) -> None:
    """Swapoff if it is on, then unlink: never the other way round, the file would keep its blocks."""
    if str(path) in Path("/proc/swaps").read_text():
        subprocess.run(["swapoff", str(path)], check=True)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def swap_file(directory: Path, size: int, number: int = 0) -> Iterator[Path]:
    """A swap file of `size` bytes, on from here to the end of the block; higher numbers are used later."""
    if os.geteuid():
        raise Unavailable("swapon needs root")
    for stale in directory.glob(f"{PREFIX}*.swap"):
        if _owner(stale):
            remove_swap_file(stale)
    if shutil.disk_usage(directory).free < size + (1 << 30):
        raise Unavailable(f"{directory} has no room for a swap file of {size >> 20} MiB")
    path = directory / f"{PREFIX}{os.getpid()}-{number}.swap"
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            os.posix_fallocate(file.fileno(), 0, size)
        subprocess.run(["mkswap", str(path)], check=True, stdout=subprocess.DEVNULL)
        # Over any other swap of the machine: what is measured must be this file.
        subprocess.run(["swapon", "--priority", str(32767 - number), str(path)], check=True)
        yield path
    finally:
        remove_swap_file(path)


def _controller() -> tuple[Path, int]:
    """The folder under which a memory cgroup can be made, and the cgroup version."""
    v1 = CGROUP_ROOT / "memory"
    if (v1 / "memory.limit_in_bytes").exists() or (v1 / "cgroup.procs").exists():
        return v1, 1
    for root in (CGROUP_ROOT, CGROUP_ROOT / "unified"):
        control = root / "cgroup.subtree_control"
        if control.exists() and "memory" in (root / "cgroup.controllers").read_text().split():
            if "memory" not in control.read_text().split():
                control.write_text("+memory")
            return root, 2
    raise Unavailable("no memory cgroup controller")


def _remove(group: Path) -> None:
    # The kernel lets go of the last task a moment after its parent has reaped it.
    deadline = time.monotonic() + 5
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def memory_cgroup(limit: int, swappiness: int) -> Iterator[Path]:
    """A cgroup with a hard memory limit of `limit` bytes and no limit of swap; yields its folder."""
    root, version = _controller()
    for stale in root.glob(f"{PREFIX}*"):
        if _owner(stale):
            _remove(stale)
    group = root / f"{PREFIX}{os.getpid()}"
    group.mkdir()
    try:
        if version == 1:
            (group / "memory.limit_in_bytes").write_text(str(limit))
            (group / "memory.swappiness").write_text(str(swappiness))
        else:
            (group / "memory.max").write_text(str(limit))
            (group / "memory.swap.max").write_text("max")
        yield group
    finally:
        _remove(group)


def _limit(group: Path) -> Path:
    return next(file for name in LIMITS if (file := group / name).exists())


def lift_limit(group: Path) -> None:
    file = _limit(group)
    file.write_text(LIMITS[file.name])


def enter(group: Path, command: list[str]) -> list[str]:
    """The command that runs `command` inside the group from its first instruction on."""
    return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs"), *command]


@contextlib.contextmanager
def global_swappiness(value: int) -> Iterator[None]:
    """vm.swappiness, for cgroup v2 which has none of its own; put back at the end."""
    setting = Path("/proc/sys/vm/swappiness")
    before = setting.read_text()
    setting.write_text(str(value))
    try:
        yield
    finally:
        setting.write_text(before)


@contextlib.contextmanager
def zram(size: int, algorithm: str = "lz4") -> Iterator[Path]:
    """A new zram device of `size` bytes as swap, on from here to the end of the block; yields its folder in
    /sys/block."""
    control = Path("/sys/class/zram-control")
    if os.geteuid() or not (control / "hot_add").exists():
        raise Unavailable("zram needs root, and the kernel's module")
    number = (control / "hot_add").read_text().strip()
    folder, device = Path(f"/sys/block/zram{number}"), f"/dev/zram{number}"
    try:
        (folder / "comp_algorithm").write_text(algorithm)
        (folder / "disksize").write_text(str(size))
        subprocess.run(["mkswap", device], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["swapon", "--priority", "32767", device], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["swapoff", device], check=True)
    finally:
        (folder / "reset").write_text("1")
        (control / "hot_remove").write_text(number)


def zram_memory(folder: Path) -> int:
    """Bytes of memory that a device has taken at most."""
    return int((folder / "mm_stat").read_text().split()[4])


@contextlib.contextmanager
def zswap(algorithm: str = "lz4") -> Iterator[None]:
    """Compressed pages before any swap device; its memory counts for the group whose pages they are."""
    settings = Path("/sys/module/zswap/parameters")
    wanted = {"compressor": algorithm, "max_pool_percent": "50", "enabled": "Y"}
    if not settings.exists():
        raise Unavailable("this kernel has no zswap")
    before = {name: (settings / name).read_text().strip() for name in wanted}
    try:
        for name, value in wanted.items():
            # Where the kernel lacks the algorithm, with the one that it has chosen.
            with contextlib.suppress(FileNotFoundError):
                (settings / name).write_text(value)
        yield
    finally:
        for name in reversed(wanted):
            (settings / name).write_text(before[name])
