# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of store keeps the same contract; what stores of Python do besides.

The contract is that of stores.pxd. Compressed memory is not behind a store: test_pack.py has it.
"""

import errno
import os
import random
import re
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support import (
    MIB,
    PLUGINS,
    name_of,
    stat_of,
    wait_until,
)
from test_areas import loop_device
from test_log import fails
from userswap import areas
from userswap import tests_door as door
from userswap.areas import Area
from userswap.errors import UserswapError
from userswap.store_process import StoreProcess

PAGE = 4096
BLOCK_BYTES = 2 * MIB
SLOTS = 8
KEY = bytes(range(64))


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store's process finds what we find."""
    monkeypatch.syspath_prepend(PLUGINS)


@contextmanager
def started(spec: str) -> Iterator[Area]:
    """A swap area; of a store, with its process."""
    (area,) = areas.open_areas([spec])
    try:
        if area.process is not None:
            area.process.start()
            area.process.await_ready()
        assert area.ready()
        yield area
    finally:
        end(area)


def end(area: Area) -> None:
    area.close()
    if area.process is not None:
        with suppress(ChildProcessError):
            os.waitpid(area.process.pid, 0)
        area.process.disconnect()


def process_of(area: Area) -> StoreProcess:
    assert area.process is not None
    return area.process


@contextmanager
def medium_of(spec: str, key: bytes | None = None) -> Iterator[tuple[door.Medium, Area]]:
    with started(spec) as area:
        yield door.Medium(area.fd, area.size_bytes, area.memory, key), area


@pytest.fixture(
    params=[
        "file",
        pytest.param("device", marks=pytest.mark.root),
        "dict",
        "folder",
        "plain",
        "encrypted file",
        "encrypted dict",
    ]
)
def medium(request: pytest.FixtureRequest, disk: Path) -> Iterator[door.Medium]:
    """Of SLOTS blocks, of each kind."""
    size = f"{SLOTS * 2}M"
    if request.param == "device":
        with loop_device(disk / "image", SLOTS * BLOCK_BYTES) as device, medium_of(device) as (made, _):
            yield made
        return
    kind = request.param.removeprefix("encrypted ")
    key = None if kind == request.param else KEY
    specs = {"file": f"{disk}:{size}", "folder": f"folder://{disk}:{size}"}
    with medium_of(specs.get(kind, f"{kind}://:{size}"), key) as (made, _):
        yield made


def blocks(seed: int, count: int = SLOTS) -> list[bytes]:
    return [random.Random(seed * 1000 + slot).randbytes(BLOCK_BYTES) for slot in range(count)]


def filled(medium: door.Medium, seed: int = 1) -> list[bytes]:
    """Written in random order."""
    kept = blocks(seed)
    for slot in random.Random(seed).sample(range(SLOTS), SLOTS):
        medium.write(slot, kept[slot])
    return kept


def some_place(rng: random.Random) -> tuple[int, int, int]:
    """Slot, offset and length of some pages of a block."""
    first, end = sorted(rng.sample(range(BLOCK_BYTES // PAGE + 1), 2))
    return rng.randrange(SLOTS), first * PAGE, (end - first) * PAGE


def part(kept: list[bytes], place: tuple[int, int, int]) -> bytes:
    slot, at, length = place
    return kept[slot][at : at + length]


def verify(medium: door.Medium, kept: list[bytes]) -> None:
    for slot, data in enumerate(kept):
        assert medium.read(slot, 0, BLOCK_BYTES) == data, f"slot {slot}"
    assert medium.counts["bad_calls"] == 0


# ---- the contract


def test_what_is_written_is_read_at_any_place(medium: door.Medium) -> None:
    kept = filled(medium)
    verify(medium, kept)
    rng = random.Random(2)
    edges = [(0, 0, PAGE), (SLOTS - 1, BLOCK_BYTES - PAGE, PAGE), (3, PAGE, BLOCK_BYTES - PAGE)]
    for place in edges + [some_place(rng) for _ in range(60)]:
        assert medium.read(*place) == part(kept, place), place
    verify(medium, kept)


def test_reads_that_are_asked_for_together(medium: door.Medium) -> None:
    kept = filled(medium)
    rng = random.Random(3)
    for count in (1, 2, 31, 32):
        places = [some_place(rng) for _ in range(count)]
        assert medium.read_later(places) == [part(kept, place) for place in places]
    assert medium.read_later([]) == []


def test_blocks_do_not_disturb_each_other(medium: door.Medium) -> None:
    kept = filled(medium)
    rng = random.Random(4)
    for turn in range(2 * SLOTS):
        slot = rng.randrange(SLOTS)
        kept[slot] = blocks(100 + turn, 1)[0]
        medium.write(slot, kept[slot])
        verify(medium, kept)


def test_what_was_discarded_is_written_again(medium: door.Medium) -> None:
    kept = filled(medium)
    discarded = [0, 3, SLOTS - 1]
    for slot in discarded:
        medium.discard(slot)
    for slot in set(range(SLOTS)) - set(discarded):
        assert medium.read(slot, 0, BLOCK_BYTES) == kept[slot]
    again = blocks(5)
    for slot in discarded:
        kept[slot] = again[slot]
        medium.write(slot, kept[slot])
    verify(medium, kept)
    assert medium.counts["bytes_discarded"] == len(discarded) * BLOCK_BYTES


def test_counts(medium: door.Medium) -> None:
    assert medium.slots == SLOTS
    assert set(medium.counts.values()) == {0}
    filled(medium)
    medium.write(1, bytes(BLOCK_BYTES))
    places = [some_place(random.Random(6)) for _ in range(5)]
    for place in places:
        medium.read(*place)
    medium.read_later(places)
    counts = medium.counts
    assert (counts["writes"], counts["bytes_written"]) == (SLOTS + 1, (SLOTS + 1) * BLOCK_BYTES)
    assert (counts["reads"], counts["bytes_read"]) == (10, 2 * sum(length for _, _, length in places))
    assert counts["bytes_discarded"] == 0


def test_several_threads_at_once(medium: door.Medium) -> None:
    """Two write, discard and read blocks of their own, three read what stays."""
    kept = filled(medium)

    def work(slots: range, seed: int) -> None:
        rng = random.Random(seed)
        for turn in range(6):
            slot = rng.choice(slots)
            data = blocks(seed * 100 + turn, 1)[0]
            if rng.random() < 0.3:
                medium.discard(slot)
            medium.write(slot, data)
            kept[slot] = data
            _, at, length = some_place(rng)
            assert medium.read(slot, at, length) == data[at : at + length]

    def look(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            places = [(place[0] % 4, place[1], place[2]) for place in (some_place(rng), some_place(rng))]
            assert medium.read_later(places) == [part(kept, place) for place in places]
            assert medium.read(*places[0]) == part(kept, places[0])

    with ThreadPoolExecutor(5) as pool:
        done: list[Future[None]] = [pool.submit(work, range(4, 6), 7), pool.submit(work, range(6, 8), 8)]
        done += [pool.submit(look, seed) for seed in (9, 10, 11)]
        for one in done:
            one.result(60)
    verify(medium, kept)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_errors_pass_through_and_change_nothing(medium: door.Medium, error: int) -> None:
    kept = filled(medium)
    before = medium.counts
    medium.fail_writes(error, 2)
    medium.fail_reads(error, 1)
    medium.delay_writes(1000)
    for _ in range(2):
        with fails(error):
            medium.write(2, bytes(BLOCK_BYTES))
    with fails(error):
        medium.read(2, 0, PAGE)
    assert medium.counts == before
    verify(medium, kept)
    kept[2] = blocks(12, 1)[0]
    medium.write(2, kept[2])
    verify(medium, kept)


@pytest.mark.parametrize("size", [0, BLOCK_BYTES - 1, 1 << 52])
@pytest.mark.parametrize("spec", ["{disk}:4M", "dict://:4M"])
def test_impossible_sizes_are_refused(disk: Path, spec: str, size: int) -> None:
    with started(spec.format(disk=disk)) as area, fails(errno.EINVAL):
        door.Medium(area.fd, size, area.memory)


# ---- stores of Python: what goes wrong


@pytest.fixture
def folder(disk: Path) -> Iterator[tuple[door.Medium, Area, Path]]:
    with medium_of(f"folder://{disk}:{SLOTS * 2}M") as (made, area):
        yield made, area, disk


VERBS = ("write", "read", "discard")


def use(medium: door.Medium, verb: str, slot: int = 1) -> None:
    if verb == "write":
        medium.write(slot, bytes(BLOCK_BYTES))
    elif verb == "read":
        medium.read(slot, 0, 2 * PAGE)
    else:
        medium.discard(slot)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (str(errno.ENOSPC), errno.ENOSPC),
        (str(errno.EPERM), errno.EPERM),
        ("no number", errno.EIO),
        ("5000", errno.EIO),
        # These two mean something else to the engine.
        (str(errno.EAGAIN), errno.EIO),
        (str(errno.ECANCELED), errno.EIO),
    ],
)
def test_what_a_store_raises(
    folder: tuple[door.Medium, Area, Path], verb: str, raised: str, error: int
) -> None:
    medium, area, place = folder
    kept = filled(medium)
    before = medium.counts
    (place / f"fail-{verb}").write_text(raised)
    for _ in range(3):
        with fails(error):
            use(medium, verb)
    assert medium.counts == before
    (line,) = process_of(area).said()
    assert line.startswith(f"--swap folder://{place}:{SLOTS * 2}M: {verb}: "), line
    (place / f"fail-{verb}").write_text("another thing")
    with fails(errno.EIO):
        use(medium, verb)
    assert process_of(area).said() == [f"{process_of(area).what}: {verb}: ValueError: another thing"]
    (place / f"fail-{verb}").unlink()
    verify(medium, kept)


def test_a_store_that_reads_too_little(folder: tuple[door.Medium, Area, Path]) -> None:
    medium, area, place = folder
    kept = filled(medium)
    (place / "short").touch()
    with fails(errno.EIO):
        use(medium, "read")
    with fails(errno.EIO):
        medium.read_later([(0, 0, PAGE)])
    assert "4096 bytes came, 8192 were asked for" in process_of(area).said()[0]
    (place / "short").unlink()
    verify(medium, kept)


def test_a_store_that_keeps_what_it_was_lent_gives_no_other_bytes() -> None:
    with medium_of("keeping://:16M") as (medium, area):
        filled(medium)
        for slot in range(SLOTS):
            with fails(errno.EIO):
                medium.read(slot, 0, PAGE)
        assert "released memoryview" in process_of(area).said()[0]


class Stall:
    """The next call of a folder's verb lasts until it is released."""

    def __init__(self, folder: Path, verb: str) -> None:
        self._pipe = folder / f"stall-{verb}"
        self._sign = folder / "stalled"
        os.mkfifo(self._pipe)

    def wait(self) -> None:
        wait_until(self._sign.exists, 30, "the store stalls")

    def release(self) -> None:
        fd = os.open(self._pipe, os.O_WRONLY)
        self._pipe.unlink()
        os.close(fd)


def test_a_store_that_stalls_is_waited_for(folder: tuple[door.Medium, Area, Path]) -> None:
    medium, _, place = folder
    kept = filled(medium)
    stall = Stall(place, "read")
    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(medium.read, slot, 0, BLOCK_BYTES) for slot in (1, 2)]
        writing = pool.submit(medium.write, 3, kept[3])
        stall.wait()
        assert not any(one.done() for one in reading)
        stall.release()
        assert [one.result(20) for one in reading] == kept[1:3]
        writing.result(20)
    verify(medium, kept)


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_dies_fails_for_good_and_nobody_hangs(
    folder: tuple[door.Medium, Area, Path], verb: str
) -> None:
    medium, area, place = folder
    filled(medium)
    stall = Stall(place, verb)
    pid = int((place / "pid").read_text())
    assert pid == process_of(area).pid
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(use, medium, one) for one in (verb, "read", "write")]
        stall.wait()
        os.kill(pid, signal.SIGKILL)
        failed = [one.exception(20) for one in waiting]
    # The other two may have been quicker.
    assert any(isinstance(one, OSError) and one.errno == errno.EIO for one in failed), failed
    assert all(one is None or isinstance(one, OSError) for one in failed), failed
    for one in VERBS:
        with fails(errno.EIO):
            use(medium, one)
    assert process_of(area).said() == []
    assert process_of(area).over


def test_nobody_waits_for_a_store_at_the_end(folder: tuple[door.Medium, Area, Path]) -> None:
    medium, _, place = folder
    filled(medium)
    stall = Stall(place, "read")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(use, medium, "read") for _ in range(2)]
        stall.wait()
        medium.end_waits()
        for one in waiting:
            with fails(errno.ECANCELED):
                one.result(20)
    stall.release()
    with fails(errno.ECANCELED):
        use(medium, "write")


@contextmanager
def stranger(disk: Path) -> Iterator[tuple[door.Medium, socket.socket]]:
    """A store whose process is the test, and the test's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shared = os.open(disk / "memory", os.O_RDWR | os.O_CREAT)
    os.ftruncate(shared, BLOCK_BYTES)
    with ours, theirs:
        yield door.Medium(ours.fileno(), SLOTS * BLOCK_BYTES, shared), theirs
    os.close(shared)


ANSWERS = [b"", b"\0", struct.pack("i", 0) + b"\0", struct.pack("i", 1), struct.pack("i", -5000)]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none_is_an_error(disk: Path, answer: bytes) -> None:
    with stranger(disk) as (medium, theirs), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(use, medium, "read", 5)
        assert struct.unpack("4I", theirs.recv(100)) == (1, 5, 0, 2 * PAGE)
        theirs.send(answer)
        with fails(errno.EIO):
            asking.result(20)


def test_after_an_answer_of_another_length_nothing_is_asked(disk: Path) -> None:
    """What came then might be the answer to what was asked before."""
    with stranger(disk) as (medium, theirs), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(use, medium, "write")
        theirs.recv(100)
        theirs.send(b"12")
        theirs.send(struct.pack("i", 0))
        with fails(errno.EIO):
            asking.result(20)
        with fails(errno.EIO):
            use(medium, "read")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(100)


def test_its_process(folder: tuple[door.Medium, Area, Path]) -> None:
    """Has a session and nothing of ours; and cannot make the memory that we share smaller."""
    medium, area, _ = folder
    use(medium, "write")
    pid = process_of(area).pid
    assert name_of(pid) == "userswap-store"
    stat = stat_of(pid)
    assert stat is not None
    assert stat[:2] == (os.getpid(), pid)
    links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert (links.pop("0"), links.pop("1"), links.pop("2")) == (
        "/dev/null",
        "/dev/null",
        os.readlink("/proc/self/fd/2"),
    )
    kinds = sorted(link.partition(":")[0] for link in links.values())
    assert kinds == ["/memfd", "/memfd", "socket", "socket"], links
    for length in (0, BLOCK_BYTES - PAGE):
        with fails(errno.EPERM):
            os.ftruncate(process_of(area).memory, length)


# ---- stores of Python: what is refused

REFUSED = {
    "nobody://:16M": r"no store of this name is installed \(abstract, dict, .*waiting\)",
    "double://:16M": r"several stores of this name are installed: .*:Dict, .*:Folder",
    "missing-module://:16M": r"cannot be loaded: ModuleNotFoundError: .*userswap_no_such_module",
    "missing-class://:16M": r"cannot be loaded: AttributeError: .*NoSuchClass",
    "refusing://host:80:16M": r"cannot be made: ConnectionRefusedError: no server at host:80 and no .*",
    "exiting://:16M": r"cannot be made: SystemExit: 3",
    "dying://:16M": r"its process ended before it was ready",
    "abstract://:16M": r"cannot be made: TypeError: .*abstract",
    "lacking://:16M": r"userswap_test_stores:Lacking has no method discard",
    "dict://": r"it says no size: give one, as in NAME://TEXT:1G",
    "dict://16M": r"it says no size: give one, as in NAME://TEXT:1G",
    "dict://host:6379": r"it says no size: give one, as in NAME://TEXT:1G",
    "sizeless://:16M": r"its size is not a number of bytes: -1",
    "sized://:66M": r"66.0 MiB asked, it has 64.0 MiB",
    "dict://:5000T": r"5000.0 TiB is not between 2.0 MiB and 4096.0 TiB",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_started_is_refused_in_one_line(spec: str) -> None:
    (area,) = areas.open_areas([spec])
    process = process_of(area)
    process.start()
    with pytest.raises(UserswapError) as refused:
        process.await_ready()
    end(area)
    said = str(refused.value)
    assert said.startswith(f"--swap {spec}: "), said
    assert re.search(REFUSED[spec], said), said
    assert "\n" not in said


def test_what_is_no_size_is_refused_before() -> None:
    for spec, says in {
        "dict://:1K": "the least size is 2.0 MiB",
        "dict://:0M": "is zero",
        "dict://x:1.2.3G": "is not a size",
        "dict://:9999999T": "larger than any machine",
    }.items():
        with pytest.raises(UserswapError, match=re.escape(says)):
            areas.open_areas([spec])
    with pytest.raises(UserswapError, match="the same area as --swap dict://a:16M"):
        areas.open_areas(["dict://a:16M", "dict://b:16M", "dict://a:32M"])


def test_the_size_is_the_stores_where_none_is_given() -> None:
    with started("sized://") as area:
        assert area.size_bytes == 64 * MIB
    with started("sized://x:9M") as area:
        assert area.size_bytes == 8 * MIB


def test_what_looks_like_a_store_is_one_and_no_path(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk)
    (disk / "dict:" / "swap").mkdir(parents=True)
    assert os.path.isdir("dict://swap")
    (area,) = areas.open_areas(["dict://swap:4M"])
    assert (area.kind, area.fd) == ("store", -1)
    with started("./dict://swap:4M") as path:
        assert (path.kind, path.size_bytes) == ("file", 4 * MIB)
    for spec in ("/dict://swap", "dict:/swap", "a/dict://swap", "1dict://swap", "dict", "://swap"):
        assert not areas.is_store(spec), spec
