# SPDX-License-Identifier: GPL-2.0-or-later
"""Real files, real loop devices, real mounts, real swap. As root nothing here is skipped."""

import fcntl
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from userswap import areas
from userswap.errors import UserswapError

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a file system that takes O_DIRECT."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture
def opened() -> Iterator[Callable[..., list[areas.Area]]]:
    made: list[areas.Area] = []

    def open_areas(*specs: object) -> list[areas.Area]:
        new = areas.open_areas([str(spec) for spec in specs])
        made.extend(new)
        return new

    yield open_areas
    for area in made:
        with suppress(OSError):  # a test closed it
            os.close(area.fd)


def run(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout.strip()


@contextmanager
def loop_device(image: Path, size: int) -> Iterator[str]:
    """Of a new file of `size` bytes."""
    with image.open("wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@pytest.fixture
def loop(disk: Path) -> Iterator[Path]:
    """A loop device of 64 MiB and a bit."""
    with loop_device(disk / "image", 64 * MIB + 12288) as device:
        yield Path(device)


def refusal(*specs: object) -> str:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UserswapError) as refused:
        areas.open_areas([str(spec) for spec in specs])
    assert set(os.listdir("/proc/self/fd")) == before, "a refusal left something open"
    assert "\n" not in str(refused.value)
    return str(refused.value)


Opened = Callable[..., list[areas.Area]]


def test_directory_gets_an_unlinked_file(disk: Path, opened: Opened) -> None:
    (area,) = opened(f"{disk}:64M")
    found = os.fstat(area.fd)
    assert (area.kind, area.size_bytes) == ("file", 64 * MIB)
    assert (found.st_nlink, found.st_size, found.st_blocks) == (0, 64 * MIB, 0)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert list(disk.iterdir()) == []
    flags = fcntl.fcntl(area.fd, fcntl.F_GETFL)
    assert flags & os.O_DIRECT
    assert flags & os.O_ACCMODE == os.O_RDWR
    assert not os.get_inheritable(area.fd)


def test_size_is_rounded_down_to_blocks(disk: Path, opened: Opened) -> None:
    assert opened(f"{disk}:7M")[0].size_bytes == 6 * MIB


def test_default_is_half_of_the_free_space(
    disk: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(disk))
    free = areas.free_space(str(disk))
    (area,) = opened()
    assert area.size_bytes == pytest.approx(areas.default_size(free), rel=0.05)
    assert area.size_bytes <= free // 2


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (0, 0),
        (GIB, 0),
        (GIB + 64 * MIB - 1, 0),
        (GIB + 64 * MIB, 64 * MIB),
        (2 * GIB, GIB),
        (2 * GIB + 2 * MIB, GIB),
        (100 * GIB, 50 * GIB),
    ],
)
def test_default_size(free: int, size: int) -> None:
    assert areas.default_size(free) == size


def test_defaults_on_one_file_system_share_it(disk: Path, opened: Opened) -> None:
    free = areas.free_space(str(disk))
    first, second = opened(disk, disk)
    assert first.size_bytes + second.size_bytes <= free - GIB
    assert second.size_bytes == pytest.approx(first.size_bytes / 2, rel=0.05)


def test_regular_file_is_made_sparse_and_private(disk: Path, opened: Opened) -> None:
    path = disk / "swap"
    old = os.umask(0)
    try:
        (area,) = opened(f"{path}:32M")
    finally:
        os.umask(old)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert area.size_bytes == 32 * MIB
    assert found.st_blocks * 512 <= MIB


def test_own_file_is_used_again_and_holds_nothing_old(disk: Path, opened: Opened) -> None:
    path = disk / "swap"
    (area,) = opened(f"{path}:32M")
    write_block(area)
    os.close(area.fd)  # as if killed
    (again,) = opened(path)
    assert again.size_bytes == 32 * MIB
    assert path.read_bytes()[: 2 * MIB] == bytes(2 * MIB)
    os.close(again.fd)
    assert opened(f"{path}:16M")[0].size_bytes == 16 * MIB


def test_release_empties_a_file_that_stays(disk: Path) -> None:
    path = disk / "swap"
    opened = areas.open_areas([f"{path}:32M"])
    write_block(opened[0])
    areas.release_areas(opened)
    assert path.stat().st_blocks * 512 <= MIB
    areas.release_areas(areas.open_areas([str(path)]))


def test_foreign_file_is_never_overwritten(disk: Path) -> None:
    path = disk / "thesis"
    for content in (b"", b"words" * 1000, bytes(2 * MIB), bytes(2 * MIB + 4096)):
        path.write_bytes(content)
        assert "was not made by userswap" in refusal(path)
        assert "was not made by userswap" in refusal(f"{path}:16M")
        assert path.read_bytes() == content


def test_own_file_of_another_kind_of_size_is_foreign(disk: Path) -> None:
    path = disk / "swap"
    areas.release_areas(areas.open_areas([f"{path}:4M"]))
    with path.open("ab") as file:
        file.write(b"more")
    assert "was not made by userswap" in refusal(path)


def test_second_use_is_refused(disk: Path, opened: Opened) -> None:
    path = disk / "swap"
    opened(f"{path}:4M")
    assert "in use by another userswap" in refusal(path)


def test_same_file_twice_is_refused(disk: Path) -> None:
    path = disk / "swap"
    (disk / "link").symlink_to("swap")
    assert "the same area as" in refusal(f"{path}:4M", disk / "link")
    assert not path.exists(), "a refused command left its new file behind"


def test_refusal_removes_only_new_files(disk: Path) -> None:
    areas.release_areas(areas.open_areas([f"{disk}/old:4M"]))
    refusal(f"{disk}/old", f"{disk}/new:4M", "/proc/version")
    assert sorted(path.name for path in disk.iterdir()) == ["old"]


def test_policy(disk: Path, opened: Opened) -> None:
    named = disk / "swap:free"
    named.mkdir()
    specs = [f"{disk}:64M", f"{disk}:64M:free", f"{disk}:64M:keep", f"{disk}/file:64M:free", f"{named}:64M"]
    got = [(area.path, area.size_bytes, area.frees) for area in opened(*specs)]
    frees = [False, True, False, True, False]
    paths = [f"{disk}", f"{disk}", f"{disk}", f"{disk}/file", f"{named}"]
    assert got == [(path, 64 * MIB, free) for path, free in zip(paths, frees, strict=True)]
    (area,) = opened(f"{disk}:free")
    assert (area.path, area.frees) == (str(disk), True)
    assert "64X" in refusal(f"{disk}:64X:free")
    assert "perhaps" in refusal(f"{disk}:64M:perhaps")


def test_path_with_colons(disk: Path, opened: Opened) -> None:
    directory = disk / "a:b"
    directory.mkdir()
    assert opened(f"{directory}:4M")[0].size_bytes == 4 * MIB
    assert opened(directory)[0].size_bytes > 4 * MIB
    assert "is not a size" in refusal(f"{disk}/c:d")


def test_unreadable_and_wrong_sizes(disk: Path) -> None:
    assert "is zero" in refusal(f"{disk}:0")
    assert "is negative" in refusal(f"{disk}:-1G")
    assert "is not a size" in refusal(f"{disk}:much")
    assert "missing" in refusal(f"{disk}:")
    assert "path is missing" in refusal(":1G")
    assert "path is missing" in refusal("")
    assert "the least size is 2.0 MiB" in refusal(f"{disk}:1M")
    assert "only" in refusal(f"{disk}:1000T")
    assert list(disk.iterdir()) == []


def test_impossible_paths(disk: Path) -> None:
    assert "No such file or directory" in refusal(f"{disk}/none/swap:4M")
    assert "neither" in refusal("/dev/null")
    os.mkfifo(disk / "fifo")
    assert "neither" in refusal(disk / "fifo")
    (disk / "dangling").symlink_to("nowhere")
    assert "File exists" in refusal(f"{disk}/dangling:4M")
    assert "swap" in refusal("/proc/version")


def test_memory_file_system_is_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "memory itself" in refusal("/dev/shm:4M")
    name = f"/dev/shm/userswap-test-{os.getpid()}"
    assert "memory itself" in refusal(f"{name}:4M")
    assert not os.path.exists(name)
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    assert areas.default_directory() == "/var/tmp"


def test_missing_tmpdir_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert refusal() == "TMPDIR /nowhere: No such file or directory"


@pytest.mark.root
def test_directory_that_cannot_be_written(disk: Path) -> None:
    disk.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            areas.open_areas([f"{disk}:4M"])
        except UserswapError as error:
            os._exit(0 if "Permission denied" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.root
def test_device(loop: Path, opened: Opened) -> None:
    (area,) = opened(loop)
    assert (area.kind, area.size_bytes) == ("device", 64 * MIB)
    write_block(area)
    assert "the same area" in refusal(loop, loop) or "in use" in refusal(loop)
    assert "in use" in refusal(loop)


@pytest.mark.root
def test_same_device_twice(loop: Path) -> None:
    assert "the same area as" in refusal(loop, loop)


@pytest.mark.root
def test_part_of_a_device(loop: Path, opened: Opened) -> None:
    assert "asked, it has 64.0 MiB" in refusal(f"{loop}:1G")
    assert opened(f"{loop}:8M")[0].size_bytes == 8 * MIB


@pytest.mark.root
def test_mounted_device(loop: Path, disk: Path) -> None:
    run("mkfs.ext4", "-q", loop)
    place = disk / "mount point"
    place.mkdir()
    run("mount", loop, place)
    try:
        assert "mounted at" in refusal(loop)
    finally:
        run("umount", place)
    assert "holds ext4" in refusal(loop)


@pytest.mark.root
def test_full_file_system(loop: Path, disk: Path) -> None:
    run("mkfs.ext4", "-q", loop)
    place = disk / "small"
    place.mkdir()
    run("mount", loop, place)
    try:
        assert "needed: give a SIZE" in refusal(place)
        assert "asked, only" in refusal(f"{place}:60M")
        assert "asked, only" in refusal(f"{place}/file:60M")
        assert not (place / "file").exists()
    finally:
        run("umount", place)


@pytest.mark.root
def test_device_with_swap_space(loop: Path) -> None:
    run("mkswap", loop)
    assert "holds swap" in refusal(loop)
    run("swapon", loop)
    try:
        assert "the kernel's swap space" in refusal(loop)
    finally:
        run("swapoff", loop)


@pytest.mark.root
def test_device_under_another(loop: Path) -> None:
    upper = run("losetup", "--find", "--show", loop)
    try:
        areas.abandon_areas(areas.open_areas([upper]))
    finally:
        run("losetup", "--detach", upper)


SIGNATURES = [
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),
    (4086, b"SWAPSPACE2"),
    (0, b"LUKS\xba\xbe"),
    (512, b"LABELONE"),
    (4096, b"\xfc\x4e\x2b\xa9"),
]


@pytest.mark.root
@pytest.mark.parametrize(("offset", "magic"), SIGNATURES)
def test_signatures_are_known_without_blkid(
    loop: Path, offset: int, magic: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userswap.devices.blkid_type", lambda path: None)
    with loop.open("r+b") as file:
        file.seek(offset)
        file.write(magic)
    assert "clear it with wipefs" in refusal(loop)


@pytest.mark.root
def test_release_wipes_what_looks_like_a_signature(loop: Path) -> None:
    opened = areas.open_areas([str(loop)])
    block = bytearray(2 * MIB)
    block[510:512] = b"\x55\xaa"
    write_block(opened[0], bytes(block))
    areas.release_areas(opened)
    areas.abandon_areas(areas.open_areas([str(loop)]))


def write_block(area: areas.Area, content: bytes = b"\x5a" * 2 * MIB) -> None:
    import mmap

    with mmap.mmap(-1, 2 * MIB) as buffer:
        buffer[:] = content
        assert os.pwrite(area.fd, buffer, 0) == 2 * MIB
