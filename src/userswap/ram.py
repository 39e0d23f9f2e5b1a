# SPDX-License-Identifier: GPL-2.0-or-later
"""`--ram`: how much memory the program and the engine may have together."""

import os

from userswap import cgroups
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
    limits = [limit for top, group in cgroups.groups("memory", proc) for limit in _limits_upward(top, group)]
    return min(limits, default=None)


def cgroup_room(proc: str) -> int | None:
    """How many bytes more the groups of a process may take before one is at its limit; None without a limit.
    What they have of files can be had for it."""
    rooms = []
    for top, group in cgroups.groups("memory", proc):
        for here in cgroups.upward(top, group):
            limits = [_read_limit(os.path.join(here, name)) for name in _LIMIT_FILES]
            known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES]
            used = [_read_limit(os.path.join(here, name)) for name in _USAGE_FILES]
            taken = next((bytes_ for bytes_ in used if bytes_ is not None), None)
            if known and taken is not None:
                files = _stat_field(here, "inactive_file") + _stat_field(here, "active_file")
                rooms.append(min(known) - taken + files)
    return min(rooms, default=None)


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


def _limits_upward(top: str, group: str) -> list[int]:
    limits = []
    for here in cgroups.upward(top, group):
        limits += [_read_limit(os.path.join(here, name)) for name in _LIMIT_FILES]
        limits.append(_hierarchical_limit(os.path.join(here, "memory.stat")))
    return [limit for limit in limits if limit is not None and limit < _NO_LIMIT_BYTES]


# Above memory.high the kernel slows a group down until it is below again: to us that is a limit too.
_USAGE_FILES = ("memory.current", "memory.usage_in_bytes")
_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")


def _read_limit(path: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:
            return int(file.read())
    except (OSError, ValueError):  # not this version, or "max"
        return None


def _hierarchical_limit(path: str) -> int | None:
    return _stat_line(path, "hierarchical_memory_limit")


def _stat_field(folder: str, name: str) -> int:
    return _stat_line(os.path.join(folder, "memory.stat"), name) or 0


def _stat_line(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(f"{name} "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None
