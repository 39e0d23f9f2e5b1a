# SPDX-License-Identifier: GPL-2.0-or-later
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from userswap import cgroups, ram
from userswap.errors import UserswapError

MIB = 1 << 20


def test_size_percentage_and_auto() -> None:
    total = ram.memory_total()
    assert ram.parse_ram("512M") == 512 * MIB
    assert ram.parse_ram("50%") == total // 2
    assert ram.parse_ram("12.5%") == total // 8
    assert 0 < ram.parse_ram("auto") < total


@pytest.mark.parametrize(
    "text", ["0%", "-5%", "101%", "x%", "%", "nan%", "inf%", "0", "-1M", "", "automatic"]
)
def test_refused(text: str) -> None:
    with pytest.raises(UserswapError, match="--ram"):
        ram.parse_ram(text)


class Hierarchy:
    """A /proc/self and cgroup mounts made of files."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.proc.mkdir()
        self.v1 = root / "memory v1"
        self.v2 = root / "unified"

    def describe(self, *, v1: str = "", v2: str = "", root: str = "/") -> None:
        lines = ["5:cpu,cpuacct:/elsewhere"]
        mounts = ["25 1 0:23 / /sys rw - sysfs sysfs rw"]
        if v1:
            lines.append(f"4:hugetlb,memory:{v1}")
            top = str(self.v1).replace(" ", "\\040")
            mounts.append(f"31 30 0:27 {root} {top} rw,relatime shared:9 - cgroup cgroup rw,hugetlb,memory")
        if v2:
            lines.append(f"0::{v2}")
            mounts.append(f"30 25 0:26 {root} {self.v2} rw - cgroup2 cgroup2 rw,nsdelegate")
        (self.proc / "cgroup").write_text("\n".join(lines) + "\n")
        (self.proc / "mountinfo").write_text("\n".join(mounts) + "\n")

    def limit(self, group: Path, name: str, value: str) -> None:
        group.mkdir(parents=True, exist_ok=True)
        (group / name).write_text(value + "\n")

    def read(self) -> int | None:
        return ram.cgroup_limit(str(self.proc))


@pytest.fixture
def hierarchy(tmp_path: Path) -> Hierarchy:
    return Hierarchy(tmp_path)


def test_v2_takes_the_least_on_the_way_up(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v2="/slice/service/leaf")
    hierarchy.limit(hierarchy.v2 / "slice", "memory.max", str(100 * MIB))
    hierarchy.limit(hierarchy.v2 / "slice/service", "memory.max", "max")
    hierarchy.limit(hierarchy.v2 / "slice/service/leaf", "memory.max", str(300 * MIB))
    assert hierarchy.read() == 100 * MIB
    hierarchy.limit(hierarchy.v2 / "slice/service", "memory.high", str(90 * MIB))
    assert hierarchy.read() == 90 * MIB


def test_v2_limit_of_the_mounted_group_itself_in_a_container(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v2="/")
    hierarchy.limit(hierarchy.v2, "memory.max", str(64 * MIB))
    assert hierarchy.read() == 64 * MIB


def test_v1_with_a_blank_in_its_mount_point(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v1="/docker/abc")
    hierarchy.limit(hierarchy.v1 / "docker/abc", "memory.limit_in_bytes", "9223372036854771712")
    assert hierarchy.read() is None
    hierarchy.limit(hierarchy.v1 / "docker", "memory.limit_in_bytes", str(77 * MIB))
    assert hierarchy.read() == 77 * MIB


def test_v1_whose_own_group_is_the_mount(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v1="/docker/abc", root="/docker/abc")
    hierarchy.limit(hierarchy.v1, "memory.limit_in_bytes", str(50 * MIB))
    assert hierarchy.read() == 50 * MIB


def test_v1_limit_above_what_is_mounted(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v1="/../other")
    hierarchy.limit(
        hierarchy.v1, "memory.stat", f"cache 0\nhierarchical_memory_limit {40 * MIB}\ntotal_rss 1"
    )
    assert hierarchy.read() == 40 * MIB


def test_both_versions_at_once(hierarchy: Hierarchy) -> None:
    hierarchy.describe(v1="/a", v2="/b")
    hierarchy.limit(hierarchy.v1 / "a", "memory.limit_in_bytes", str(80 * MIB))
    hierarchy.limit(hierarchy.v2 / "b", "memory.max", str(60 * MIB))
    assert hierarchy.read() == 60 * MIB


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert ram.cgroup_limit(str(tmp_path)) is None


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A real group of this machine with a limit of 200 MiB, two levels above the group that is returned."""
    mounts = cgroups.mounts("memory", "/proc/self")
    kind = "cgroup" if "cgroup" in mounts else "cgroup2"
    top = Path(mounts[kind][0]) / f"userswap-test-{os.getpid()}"
    if kind == "cgroup2":
        (top.parent / "cgroup.subtree_control").write_text("+memory")
    (top / "inner").mkdir(parents=True)
    (top / ("memory.limit_in_bytes" if kind == "cgroup" else "memory.max")).write_text(str(200 * MIB))
    yield top / "inner"
    (top / "inner").rmdir()
    top.rmdir()


@pytest.mark.root
def test_real_group(limited_group: Path) -> None:
    code = "from userswap import ram; print(ram.cgroup_limit(), ram.parse_ram('auto'))"
    enter = f"echo $$ > '{limited_group}/cgroup.procs' && exec \"$@\""
    command = ["sh", "-c", enter, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(200 * MIB), str(160 * MIB)]
