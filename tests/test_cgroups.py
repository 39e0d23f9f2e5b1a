# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what is wasted of a CPU would be taken from the program (memory limits: test_ram.py)."""

from pathlib import Path

import pytest

from userswap import cgroups


def hierarchy(root: Path, group: str, kind: str) -> Path:
    """A /proc/self with one hierarchy; returns where that is mounted."""
    top = root / "top"
    (top / group.strip("/")).mkdir(parents=True)
    controllers = "cpu,cpuacct" if kind == "cgroup" else ""
    (root / "cgroup").write_text(f"{3 if controllers else 0}:{controllers}:{group}\n")
    (root / "mountinfo").write_text(f"30 25 0:26 / {top} rw - {kind} {kind} rw,{controllers}\n")
    return top


@pytest.mark.parametrize("where", ["a", "a/b"])
@pytest.mark.parametrize(
    ("kind", "name", "value", "limited"),
    [
        ("cgroup2", "cpu.max", "max 100000", False),
        ("cgroup2", "cpu.max", "150000 100000", True),
        ("cgroup", "cpu.cfs_quota_us", "-1", False),
        ("cgroup", "cpu.cfs_quota_us", "50000", True),
    ],
)
def test_a_quota_on_the_way_up(
    tmp_path: Path, where: str, kind: str, name: str, value: str, limited: bool
) -> None:
    top = hierarchy(tmp_path, "/a/b", kind)
    (top / where / name).write_text(value + "\n")
    assert cgroups.cpu_is_limited(str(tmp_path)) is limited


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert not cgroups.cpu_is_limited(str(tmp_path))
