# SPDX-License-Identifier: GPL-2.0-or-later
"""`--swap PATH[:SIZE][:POLICY]`: opening the swap areas, and refusing what is not ours to write to.

`--swap NAME://TEXT[:SIZE]` is a store of Python (store_process.py); whoever opened the area has to start it.

A regular file that userswap made is recognised by its trailer: a block of 4 KiB after the last whole
2 MiB of the area. The engine writes below it only. A trailer, and not an extended attribute, since
every file system keeps it, and so does a copy of the file. While an area is in use its file is locked
(flock), a device is open with O_EXCL: a second user of either is refused.
"""

import errno
import fcntl
import mmap
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence

from userswap import libc
from userswap.devices import device_size, refuse_device, signature_name
from userswap.errors import UserswapError, reason
from userswap.sizes import GIB, MIB, format_size, parse_size
from userswap.store_process import StoreProcess

BLOCK_BYTES = 2 * MIB
KEEP, FREE = "keep", "free"  # the policies
LEAST_DEFAULT_BYTES = 64 * MIB
KEEP_FREE_BYTES = GIB
TRAILER_BYTES = 4096
TRAILER = b"userswap swap area, made by userswap: it may be overwritten. Format 1\n"
# What a device's signatures can lie in: wiped after a run if swapped pages happen to look like one.
DEVICE_HEAD_BYTES = 128 << 10

# What begins so is a store of Python, whatever files there are: a path that looks like it is written
# ./NAME://...
_STORE = re.compile(r"([a-z][a-z0-9_.-]*)://(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
# With a unit, so that the port of an address is not taken for a size.
_STORE_SIZE = re.compile(r"(.*):([0-9.]+[KMGT](?:IB)?)", re.ASCII | re.IGNORECASE | re.DOTALL)

_OPEN_FLAGS = os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC | os.O_NOCTTY


_DESCRIBED = ("name", "kind", "fd", "size_bytes", "path", "frees", "memory")


class Area:
    """An open swap area. Its bytes 0 to size_bytes - 1, a multiple of 2 MiB, belong to the engine."""

    __slots__ = (
        "created_path",
        "fd",
        "frees",
        "identity",
        "kind",
        "memory",
        "name",
        "named",
        "path",
        "process",
        "size_bytes",
    )

    def __init__(self, name: str, kind: str, fd: int, identity: tuple[str | int, ...]) -> None:
        self.name = name  # as given
        self.kind = kind  # "file", "device" or "store"
        self.fd = fd  # O_RDWR | O_DIRECT | O_CLOEXEC; of a store the socket, -1 before it is ready
        self.identity = identity
        self.size_bytes = 0
        self.path = name  # ... without size and policy
        self.frees = False  # what comes in gives up its copy at once
        self.created_path: str | None = None  # made by this run: removed if the run is refused
        self.named = False  # a file that stays after the run
        self.process: StoreProcess | None = None  # of a store: not started yet
        self.memory = -1  # ... that it has in common with the engine, once it is ready

    def describe(self) -> dict[str, object]:
        """What the engine process has to know of it: `described` makes an area of that."""
        return {name: getattr(self, name) for name in _DESCRIBED}

    @classmethod
    def described(cls, text: Mapping[str, object]) -> "Area":
        """As the engine process knows it. It is not to be closed there."""
        area = cls("", "", -1, ())
        for name in _DESCRIBED:
            setattr(area, name, text[name])
        return area

    def ready(self) -> bool:
        """Whether the engine can have it; False as long as its store is not ready. Raises UserswapError."""
        if self.process is not None and self.process.ready() and self.process.data is not None:
            self.fd = self.process.data.fileno()
            self.memory = self.process.memory
            self.size_bytes = self.process.size_bytes
        return self.fd >= 0

    def files(self) -> list[int]:
        """What is open for it besides `fd`."""
        return [] if self.process is None else self.process.files()

    def let_go(self) -> None:
        """No terminal, pipe or folder is kept busy any more."""
        if self.process is not None:
            self.process.let_go()

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
        elif self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __repr__(self) -> str:
        return f"Area({self.name!r}, {self.kind!r}, fd={self.fd}, size_bytes={self.size_bytes})"


def open_areas(specs: Sequence[str], earlier: Sequence[Area] = ()) -> list[Area]:
    """Open the areas in their order, or one default area; `earlier` ones are in use already.

    Raises UserswapError and leaves nothing behind."""
    areas: list[Area] = []
    try:
        for spec in specs or [default_directory()]:
            areas.append(_open_spec(spec, [*earlier, *areas]))
    except BaseException:
        abandon_areas(areas)
        raise
    return areas


def abandon_areas(areas: Sequence[Area]) -> None:
    """Close areas that no engine has used, and remove the files made for them."""
    for area in areas:
        if area.created_path is not None:
            os.unlink(area.created_path)
        area.close()


def release_areas(areas: Sequence[Area]) -> None:
    """After a run: drop what was swapped from files that stay, and close. Never raises."""
    for area in areas:
        try:
            if area.named:
                _make_empty(area.fd, area.size_bytes)
            elif area.kind == "device" and signature_name(area.fd, area.size_bytes):
                os.pwrite(area.fd, mmap.mmap(-1, DEVICE_HEAD_BYTES), 0)
        except OSError:
            pass
        area.close()


def default_directory() -> str:
    """$TMPDIR unless it is unset or lies in memory, else /var/tmp."""
    directory = os.environ.get("TMPDIR")
    if directory:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UserswapError(f"TMPDIR {directory}: {reason(error)}") from error
        try:
            if libc.memory_file_system(fd) is None:
                return directory
        finally:
            os.close(fd)
    return "/var/tmp"


def default_size(free_bytes: int) -> int:
    """Bytes for an area without SIZE: half of what is free, and 1 GiB stays free. 0 if that is too little."""
    size = min(free_bytes // 2, free_bytes - KEEP_FREE_BYTES) // BLOCK_BYTES * BLOCK_BYTES
    return size if size >= LEAST_DEFAULT_BYTES else 0


def free_space(path_or_fd: str | int) -> int:
    """Bytes that this user may still write to a file system."""
    space = os.statvfs(path_or_fd)
    return space.f_bavail * space.f_frsize


def _split_policy(spec: str) -> tuple[str, bool]:
    """What stands before POLICY, and whether that is to free."""
    rest, colon, policy = spec.rpartition(":")
    if colon and policy in (KEEP, FREE) and not os.path.lexists(spec):
        return rest, policy == FREE
    return spec, False


def _split(spec: str) -> tuple[str, int | None]:
    """PATH and SIZE. A path that exists may hold colons itself, as names of devices do."""
    path, colon, size = spec.rpartition(":")
    if not colon or os.path.lexists(spec):
        path, size = spec, ""
    elif not size:
        raise UserswapError(f"--swap {spec}: the size after the colon is missing")
    if not path:
        raise UserswapError(f"--swap {spec!r}: the path is missing")
    if not size:
        return path, None
    return path, _whole_blocks(spec, size, path)


def is_store(spec: str) -> bool:
    """Whether a specification names a store of Python, not a path."""
    return _STORE.fullmatch(spec) is not None


def _store_area(spec: str, name: str, text: str, earlier: Sequence[Area]) -> Area:
    size = 0
    sized = _STORE_SIZE.fullmatch(text)
    if sized is not None:
        text = sized[1]
        size = _whole_blocks(spec, sized[2], f"{name}://{text}")
    area = Area(spec, "store", -1, ("store", name, text))
    area.path = f"{name}://{text}"
    _refuse_twice(spec, area.identity, earlier)
    area.process = StoreProcess(f"--swap {spec}", name, text, size)
    return area


def _whole_blocks(spec: str, size: str, place: str) -> int:
    size_bytes = parse_size(size, f"--swap {place}: size") // BLOCK_BYTES * BLOCK_BYTES
    if size_bytes == 0:
        raise UserswapError(f"--swap {spec}: the least size is {format_size(BLOCK_BYTES)}")
    return size_bytes


def _open_spec(spec: str, earlier: Sequence[Area]) -> Area:
    rest, frees = _split_policy(spec)
    store = _STORE.fullmatch(rest)
    if store is not None:
        area = _store_area(spec, store[1], store[2], earlier)
        area.frees = frees
        return area
    path, size = _split(rest)
    try:
        area = _open_path(spec, path, size, earlier)
    except OSError as error:
        raise UserswapError(f"--swap {spec}: {reason(error)}") from error
    area.path, area.frees = path, frees
    return area


def _open_path(spec: str, path: str, size: int | None, earlier: Sequence[Area]) -> Area:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return _create_file(spec, path, size, earlier)
    if stat.S_ISDIR(mode):
        return _open_in_directory(spec, path, size, earlier)
    if stat.S_ISREG(mode):
        return _open_own_file(spec, path, size, earlier)
    if stat.S_ISBLK(mode):
        return _open_device(spec, path, size, earlier)
    raise UserswapError(f"--swap {spec}: neither a directory nor a regular file nor a block device")


def _open_in_directory(spec: str, path: str, size: int | None, earlier: Sequence[Area]) -> Area:
    fd = _open(spec, lambda: _open_unlinked(path))
    return _sized_file(spec, fd, size, earlier)


def _open_unlinked(directory: str) -> int:
    try:
        return os.open(directory, _OPEN_FLAGS | os.O_TMPFILE | os.O_EXCL, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    name = os.path.join(directory, f".userswap-{os.urandom(8).hex()}")
    fd = os.open(name, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return fd


def _create_file(spec: str, path: str, size: int | None, earlier: Sequence[Area]) -> Area:
    # A file system that refuses O_DIRECT does so after it has made the file.
    made: list[str] = []

    def create() -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made.append(os.path.realpath(path))
        os.close(fd)
        return os.open(path, _OPEN_FLAGS | os.O_NOFOLLOW)

    try:
        fd = _open(spec, create)
        area = _sized_file(spec, fd, size, earlier, named=True)
    except BaseException:
        for name in made:
            os.unlink(name)
        raise
    area.created_path = made[0]
    return area


def _open_own_file(spec: str, path: str, size: int | None, earlier: Sequence[Area]) -> Area:
    fd = _open(spec, lambda: os.open(path, _OPEN_FLAGS))
    try:
        found = os.fstat(fd)
        _refuse_twice(spec, ("file", found.st_dev, found.st_ino), earlier)
        _lock(spec, fd)
        own_size = _trailer_position(fd)
        if own_size is None:
            raise UserswapError(f"--swap {spec}: exists and was not made by userswap: it is left as it is")
        os.ftruncate(fd, 0)  # nothing of an earlier run can be read again, and its space counts as free
    except BaseException:
        os.close(fd)
        raise
    return _sized_file(spec, fd, size or own_size, earlier, named=True)


def _sized_file(
    spec: str, fd: int, size: int | None, earlier: Sequence[Area], *, named: bool = False
) -> Area:
    """The area on an empty file that is open and ours. Closes fd if it fails."""
    try:
        found = os.fstat(fd)
        area = Area(spec, "file", fd, ("file", found.st_dev, found.st_ino))
        area.named = named
        area.size_bytes = _granted(spec, fd, size, earlier)
        _lock(spec, fd)
        if named:
            _make_empty(fd, area.size_bytes)
        else:
            os.ftruncate(fd, area.size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return area


def _granted(spec: str, fd: int, size: int | None, earlier: Sequence[Area]) -> int:
    """How large the area may be, with earlier areas on the same file system taken as full."""
    device = os.fstat(fd).st_dev
    promised = sum(area.size_bytes for area in earlier if area.identity[:2] == ("file", device))
    free = max(0, free_space(fd) - promised)
    if size is None:
        size = default_size(free)
        if size == 0:
            least = format_size(LEAST_DEFAULT_BYTES + KEEP_FREE_BYTES)
            raise UserswapError(
                f"--swap {spec}: {format_size(free)} free, {least} needed: give a SIZE, or another place"
            )
    elif size > free:
        raise UserswapError(f"--swap {spec}: {format_size(size)} asked, only {format_size(free)} free")
    return size


def _open_device(spec: str, path: str, size: int | None, earlier: Sequence[Area]) -> Area:
    number = os.stat(path).st_rdev
    identity = ("device", os.major(number), os.minor(number))
    _refuse_twice(spec, identity, earlier)
    refuse_device(spec, path, number)
    fd = _open(spec, lambda: os.open(path, _OPEN_FLAGS | os.O_EXCL))
    area = Area(spec, "device", fd, identity)
    try:
        whole = device_size(fd)
        name = signature_name(fd, whole)
        if name:
            raise UserswapError(f"--swap {spec}: holds {name}: clear it with wipefs if it is not needed")
        area.size_bytes = (whole if size is None else size) // BLOCK_BYTES * BLOCK_BYTES
        if area.size_bytes > whole:
            raise UserswapError(
                f"--swap {spec}: {format_size(area.size_bytes)} asked, it has {format_size(whole)}"
            )
        if area.size_bytes == 0:
            raise UserswapError(f"--swap {spec}: smaller than {format_size(BLOCK_BYTES)}")
    except BaseException:
        os.close(fd)
        raise
    return area


def _refuse_twice(spec: str, identity: tuple[str | int, ...], earlier: Sequence[Area]) -> None:
    for area in earlier:
        if area.identity == identity:
            raise UserswapError(f"--swap {spec}: the same area as --swap {area.name}")


def _lock(spec: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserswapError(f"--swap {spec}: in use by another userswap") from None


def _trailer_position(fd: int) -> int | None:
    """The size of the area in a file that userswap made, None for any other file."""
    size, rest = divmod(os.fstat(fd).st_size, BLOCK_BYTES)
    if rest != TRAILER_BYTES or size == 0:
        return None
    buffer = mmap.mmap(-1, TRAILER_BYTES)
    os.preadv(fd, [buffer], size * BLOCK_BYTES)
    return size * BLOCK_BYTES if buffer[: len(TRAILER)] == TRAILER else None


def _make_empty(fd: int, size: int) -> None:
    """Sparse again, with nothing in it but the trailer."""
    buffer = mmap.mmap(-1, TRAILER_BYTES)
    buffer[: len(TRAILER)] = TRAILER
    os.ftruncate(fd, 0)
    os.pwrite(fd, buffer, size)


def _open(spec: str, opening: Callable[[], int]) -> int:
    try:
        fd = opening()
    except OSError as error:
        raise UserswapError(f"--swap {spec}: {_why_not_open(error)}") from error
    kind = None if stat.S_ISBLK(os.fstat(fd).st_mode) else libc.memory_file_system(fd)
    if kind is not None:
        os.close(fd)
        raise UserswapError(
            f"--swap {spec}: lies on {kind}, which is memory itself: choose a place on a disk"
        )
    return fd


def _why_not_open(error: OSError) -> str:
    if error.errno == errno.EINVAL:
        return "its file system refuses O_DIRECT: choose another place"
    if error.errno == errno.EBUSY:
        return "in use (mounted, swap, part of another device, or another userswap)"
    return reason(error)
