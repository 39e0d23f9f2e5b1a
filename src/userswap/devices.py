# SPDX-License-Identifier: GPL-2.0-or-later
"""Which block devices must not be swapped to."""

import array
import fcntl
import mmap
import os

from userswap.errors import UserswapError

BLKGETSIZE64 = 0x80081272

# (where, what is there, what that is called). Two-byte marks are weak, but a refusal costs little.
_SIGNATURES = (
    (510, b"\x55\xaa", "a partition table or a boot sector"),
    (512, b"EFI PART", "a partition table"),
    (4096, b"EFI PART", "a partition table"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (65526, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xba\xbe", "an encrypted volume"),
    (0x10034, b"ReIsEr", "a ReiserFS file system"),
    (24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (0, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    *((sector * 512, b"LABELONE", "an LVM physical volume") for sector in range(4)),
)
_HEAD_BYTES = 128 << 10


def refuse_device(spec: str, path: str, number: int) -> None:
    """Raise UserswapError if the device is mounted, swap, partitioned, under another, or known to blkid."""
    where = mounted_at(number)
    if where is not None:
        raise UserswapError(f"--swap {spec}: mounted at {where}")
    if is_kernel_swap(number):
        raise UserswapError(f"--swap {spec}: in use as the kernel's swap space")
    if os.path.exists(_sysfs(number, "holders")) and os.listdir(_sysfs(number, "holders")):
        raise UserswapError(f"--swap {spec}: in use by {os.listdir(_sysfs(number, 'holders'))[0]}")
    if any(os.path.exists(_sysfs(number, name, "partition")) for name in os.listdir(_sysfs(number))):
        raise UserswapError(f"--swap {spec}: has partitions: name one of them")
    kind = blkid_type(path)
    if kind:
        raise UserswapError(f"--swap {spec}: holds {kind}: clear it with wipefs if it is not needed")


def mounted_at(number: int) -> str | None:
    """Where a device is mounted in this mount namespace."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            # btrfs and others show a number of their own: then the source names the device.
            source = line.partition(" - ")[2].split(" ")[1]
            if fields[2] == wanted or _number(source) == number:
                return fields[4]
    return None


def is_kernel_swap(number: int) -> bool:
    try:
        with open("/proc/swaps", encoding="utf-8", errors="surrogateescape") as lines:
            return any(_number(line.split()[0]) == number for line in list(lines)[1:])
    except FileNotFoundError:  # a kernel without swap
        return False


def device_size(fd: int) -> int:
    size = array.array("Q", [0])
    fcntl.ioctl(fd, BLKGETSIZE64, size)
    return size[0]


def blkid_type(path: str) -> str | None:
    """What blkid, if it is installed, finds by looking at the device itself."""
    program = next(
        (p for p in ("/usr/sbin/blkid", "/sbin/blkid", "/usr/bin/blkid") if os.access(p, os.X_OK)), None
    )
    if program is None:
        return None
    import subprocess

    done = subprocess.run([program, "-p", "-o", "export", path], capture_output=True, text=True, check=False)
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode == 8:  # more than one: blkid will not choose
        return "several signatures"
    return values.get("TYPE") or values.get("PTTYPE")


def signature_name(fd: int, size: int) -> str | None:
    """The name of a known signature on an open (O_DIRECT) device of `size` bytes."""
    length = min(_HEAD_BYTES, size // 4096 * 4096)
    with mmap.mmap(-1, _HEAD_BYTES) as head:
        os.preadv(fd, [memoryview(head)[:length]], 0)
        for offset, magic, name in _SIGNATURES:
            if head[offset : offset + len(magic)] == magic:
                return name
    return None


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_rdev or None if path.startswith("/") else None
    except OSError:
        return None


def _sysfs(number: int, *names: str) -> str:
    return os.path.join(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", *names)
