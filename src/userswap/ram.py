# SPDX-License-Identifier: GPL-2.0-or-later
"""`--ram`: how much memory the program and the engine may have together."""

import os

from userswap.errors import UserswapError
from userswap.sizes import parse_size

AUTO_PERCENT = 80
# Version 1 of cgroups writes "no limit" as the largest page-aligned number.
_NO_LIMIT_BYTES = 1 << 60


def parse_ram(text: str) -> int:
    """Bytes of `512M`, `50%` (of the machine's memory) or `auto`."""
    text = text.strip()
    if text.lower() == "auto":
        return automatic_ram()
    if text.endswith("%"):
        return _percentage(text)
    return parse_size(text, "--ram")


def automatic_ram() -> int:
    """80 % of the smaller of the cgroup's limit and what is available now."""
    available = memory_available()
    limit = cgroup_limit()
    smaller = available if limit is None else min(available, limit)
    return smaller * AUTO_PERCENT // 100


def memory_total() -> int:
    return _meminfo("MemTotal")


def memory_available() -> int:
    return _meminfo("MemAvailable")


def cgroup_limit(proc: str = "/proc/self") -> int | None:
    """The least memory limit in bytes from this process's cgroup up to the root, both versions of cgroups.

    None without a limit. In a container the groups above its own cannot be read; version 1 gives
    their limit in memory.stat, version 2 does not.
    """
    limits = [limit for top, group in _memory_groups(proc) for limit in _limits_upward(top, group)]
    return min(limits, default=None)


def _percentage(text: str) -> int:
    try:
        percent = float(text[:-1])
    except ValueError:
        raise UserswapError(f"--ram {text!r} is not a percentage") from None
    if not 0 < percent <= 100:
        raise UserswapError(f"--ram {text!r} is not between 0% and 100%")
    return int(memory_total() * percent / 100)


def _meminfo(field: str) -> int:
    with open("/proc/meminfo", encoding="utf-8") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) << 10
    raise UserswapError(f"/proc/meminfo has no {field}")


def _memory_groups(proc: str) -> list[tuple[str, str]]:
    """For each hierarchy that can limit memory: its mount point, and this process's group below it."""
    mounts = _memory_mounts(proc)
    groups = []
    try:
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            entries = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return []
    for number, controllers, path in entries:
        kind = "cgroup2" if number == "0" else "cgroup" if "memory" in controllers.split(",") else ""
        if kind in mounts:
            top, root = mounts[kind]
            groups.append((top, _below(path, root)))
    return groups


def _memory_mounts(proc: str) -> dict[str, tuple[str, str]]:
    """File system type (cgroup, cgroup2) -> (mount point, the group that is mounted there)."""
    mounts: dict[str, tuple[str, str]] = {}
    try:
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.rstrip("\n").partition(" - ")
                kind, _, options = after.split(" ", 2)
                if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                    _, _, _, root, top = before.split(" ")[:5]
                    mounts[kind] = (_unescape(top), _unescape(root))
    except OSError:
        pass
    return mounts


def _unescape(path: str) -> str:
    """mountinfo writes blanks and backslashes in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _below(path: str, root: str) -> str:
    """`path` as seen under a mount of `root`; the mount itself where the group is not below it."""
    if root == "/":
        return "" if path.startswith("/..") else path.strip("/")
    return path[len(root) :].strip("/") if path == root or path.startswith(root + "/") else ""


def _limits_upward(top: str, group: str) -> list[int]:
    limits = []
    while True:
        here = os.path.join(top, group) if group else top
        limits += [_read_limit(os.path.join(here, name)) for name in _LIMIT_FILES]
        limits.append(_hierarchical_limit(os.path.join(here, "memory.stat")))
        if not group:
            return [limit for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES]
        group = group.rpartition("/")[0]


# Above memory.high the kernel slows a group down until it is below again: to us that is a limit too.
_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")


def _read_limit(path: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:
            return int(file.read())
    except (OSError, ValueError):  # not this version, or "max"
        return None


def _hierarchical_limit(path: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("hierarchical_memory_limit "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None
