# SPDX-License-Identifier: GPL-2.0-or-later
"""The control groups that this process is in, both versions of them."""

import os
from collections.abc import Iterator


def cpu_is_limited(proc: str = "/proc/self") -> bool:
    """Whether a group of this process has a quota of CPU time, which what it wastes would be taken from."""
    for top, group in groups("cpu", proc):
        for here in upward(top, group):
            if _first_word(os.path.join(here, "cpu.max")) not in ("", "max"):
                return True
            if _first_word(os.path.join(here, "cpu.cfs_quota_us")) not in ("", "-1"):
                return True
    return False


def upward(top: str, group: str) -> Iterator[str]:
    """The directories of the group and of those above it."""
    while group:
        yield os.path.join(top, group)
        group = group.rpartition("/")[0]
    yield top


def groups(controller: str, proc: str = "/proc/self") -> list[tuple[str, str]]:
    """For each hierarchy that has the controller: its mount point, and this process's group below it."""
    tops = mounts(controller, proc)
    found = []
    try:
        with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            entries = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return []
    for number, controllers, path in entries:
        kind = "cgroup2" if number == "0" else "cgroup" if controller in controllers.split(",") else ""
        if kind in tops:
            top, root = tops[kind]
            found.append((top, _below(path, root)))
    return found


def mounts(controller: str, proc: str) -> dict[str, tuple[str, str]]:
    """File system type (cgroup, cgroup2) -> (mount point, the group that is mounted there)."""
    found: dict[str, tuple[str, str]] = {}
    try:
        with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.rstrip("\n").partition(" - ")
                kind, _, options = after.split(" ", 2)
                if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
                    _, _, _, root, top = before.split(" ")[:5]
                    found[kind] = (_unescape(top), _unescape(root))
    except OSError:
        pass
    return found


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


def _first_word(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split(maxsplit=1)[0]
    except (OSError, IndexError):
        return ""
