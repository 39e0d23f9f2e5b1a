# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident helper, in real programs of each kind, at whatever they are just doing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import CALLS

door = pytest.importorskip("userswap.inject_door", reason="the data plane is not built")

pytestmark = pytest.mark.root

PROGRAMS = Path(__file__).parent / "programs"
SOURCE = Path(__file__).parent.parent / "src" / "userswap"
PAGE = 4096
NOBODY = 65534
FEATURE_MOVE = 1 << 16
UFFDIO_REGISTER, UFFDIO_COPY, UFFDIO_UNREGISTER = 0xC020AA00, 0xC028AA03, 0x8010AA01
PTRACE_SEIZE = 0x4206
REMOVALS = int(os.environ.get("USERSWAP_REMOVALS", "20"))  # of a helper, from each program


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.001)


class Program:
    """One of tests/programs, started, with a line of its output at a time."""

    def __init__(self, command: list[str], user: int | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, user=user
        )
        self.pid = self.process.pid
        self.ready = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def poke(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("x")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Its last line, once it has ended well."""
        self.poke()
        last = self.line()
        assert self.process.wait(20) == 0, last
        return last

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Program]


@pytest.fixture(scope="session")
def built() -> Iterator[Callable[..., str]]:
    """Build one of tests/programs, once, where any user can run it."""
    with tempfile.TemporaryDirectory(prefix="userswap-inject-") as folder:
        Path(folder).chmod(0o755)

        def build(name: str, *flags: str, compiler: str = "cc") -> str:
            target = Path(folder) / "-".join([name, compiler, *flags]).replace("/", "_")
            source = [str(PROGRAMS / f"{name}.c"), "-O1", "-pthread", *flags]
            command = [compiler, *source, "-o", str(target)]
            if compiler == "go":
                command = ["go", "build", "-o", str(target), str(PROGRAMS / f"{name}.go")]
            if not target.exists():
                subprocess.run(command, check=True, env={**os.environ, "GOFLAGS": "-mod=mod"})
            return str(target)

        yield build


@pytest.fixture
def start(built: Callable[..., str]) -> Iterator[Start]:
    programs: list[Program] = []

    def run(
        name: str,
        *arguments: str,
        flags: tuple[str, ...] = (),
        compiler: str = "cc",
        user: int | None = None,
        under: tuple[str, ...] = (),
    ) -> Program:
        programs.append(Program([*under, built(name, *flags, compiler=compiler), *arguments], user))
        assert programs[-1].ready.startswith("ready")
        return programs[-1]

    yield run
    for program in programs:
        program.close()


@contextlib.contextmanager
def attached(
    pid: int, features: int = FEATURE_MOVE, staging: int = 2 << 20, hold: tuple[int, int] | None = None
) -> Iterator[Any]:
    helper = door.Attached(pid, features, staging, hold)
    try:
        yield helper
    finally:
        helper.end()
        os.close(helper.fields["uffd"])


def cycles(pid: int, count: int) -> None:
    """In each second one a thread is held until the helper is made."""
    for cycle in range(count):
        with attached(pid, hold=(-1, -1) if cycle % 2 else None) as helper:
            helper.call(door.NOTHING)


def status(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split(None, 1)[1].strip() for line in text.splitlines() if line.startswith(field + ":"))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def fds(pid: int) -> list[str]:
    return sorted(os.listdir(f"/proc/{pid}/fd"))


def refusal(pid: int, features: int = 0) -> int:
    """The errno with which an attach fails."""
    before = fds(os.getpid())
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is asked for
        door.Attached(pid, features)
    assert fds(os.getpid()) == before
    assert caught.value.errno is not None
    return caught.value.errno


# ---- programs of each kind ----


@pytest.mark.parametrize("threads", [1, 4])
def test_busy_programs_survive_300_attaches(start: Start, threads: int) -> None:
    program = start("inject_busy", str(threads))
    cycles(program.pid, 300)
    assert program.finish().startswith("good")


def test_what_it_starts_meanwhile_is_not_in_real_time(start: Start) -> None:
    program = start("inject_threads")
    cycles(program.pid, 300)
    assert program.finish().startswith("good")


@pytest.mark.parametrize(
    ("compiler", "flags"), [("cc", ("-static",)), ("musl-gcc", ()), ("musl-gcc", ("-static",)), ("go", ())]
)
def test_static_musl_and_go_programs(start: Start, compiler: str, flags: tuple[str, ...]) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    program = start("inject_busy", "4", flags=flags, compiler=compiler)
    cycles(program.pid, 100)
    assert program.finish().startswith("good")


@pytest.mark.parametrize("call", CALLS)
def test_a_call_under_way_goes_on(start: Start, call: str) -> None:
    program = start("inject_calls", call)
    until(lambda: state(program.pid) == "S")
    cycles(program.pid, 50)
    assert program.finish().startswith("rounds")


@pytest.mark.parametrize("way", ["fork", "vfork"])
def test_a_program_that_makes_children_all_the_time(start: Start, way: str) -> None:
    program = start("inject_forks", way)
    cycles(program.pid, 100)
    assert program.finish().startswith("good")


def test_a_storm_of_signals(start: Start) -> None:
    program = start("inject_storm")
    cycles(program.pid, 100)
    assert program.finish().startswith("good")


def test_a_stopped_program_stays_stopped(start: Start) -> None:
    program = start("inject_busy", "4")
    os.kill(program.pid, signal.SIGSTOP)
    until(lambda: state(program.pid) == "T")
    cycles(program.pid, 20)
    until(lambda: {state(int(t)) for t in os.listdir(f"/proc/{program.pid}/task")} == {"T"})
    os.kill(program.pid, signal.SIGCONT)
    assert program.finish().startswith("good")


def test_stopping_and_continuing_in_the_meantime(start: Start) -> None:
    program = start("inject_busy", "1")
    storm = subprocess.Popen(
        ["sh", "-c", "while kill -STOP $0 && kill -CONT $0; do :; done 2>/dev/null", str(program.pid)]
    )
    try:
        cycles(program.pid, 100)
    finally:
        storm.kill()
        storm.wait()
        os.kill(program.pid, signal.SIGCONT)
    assert program.finish().startswith("good")


def test_the_first_thread_may_have_ended(start: Start) -> None:
    program = start("inject_odd", "headless")
    until(lambda: state(program.pid) == "Z")
    cycles(program.pid, 20)
    assert program.finish() == "good"


def test_a_thread_that_can_not_be_stopped_is_let_go(start: Start) -> None:
    """Its only thread is in vfork: the answer comes in time, and the program is none the worse for it."""
    program = start("inject_odd", "waiting")
    until(lambda: state(program.pid) == "D")
    before = time.monotonic()
    assert refusal(program.pid) == errno.EAGAIN
    assert time.monotonic() - before < 5
    assert status(program.pid, "TracerPid") == "0"
    assert program.finish() == "good"


def test_a_program_that_execs_all_the_time(start: Start) -> None:
    program = start("inject_odd", "execs")
    for _ in range(100):
        with contextlib.suppress(OSError), attached(program.pid):
            pass
    assert program.finish() == "good"


def test_a_child_of_ours_that_ends_in_the_meantime_keeps_its_exit_status() -> None:
    for _ in range(100):
        process = subprocess.Popen(["sh", "-c", "exit 7"])
        with contextlib.suppress(OSError), attached(process.pid):
            pass
        assert process.wait() == 7


@pytest.mark.parametrize(
    ("mode", "refused"), [("open", None), ("closed", errno.EACCES), ("strict", errno.EACCES)]
)
def test_a_sandboxed_program_is_not_killed(start: Start, mode: str, refused: int | None) -> None:
    program = start("inject_sandbox", mode)
    if refused:
        assert refusal(program.pid) == refused
    else:
        cycles(program.pid, 10)
    assert program.finish() == "good 1"


# ---- one that is held meanwhile ----


def test_a_held_program_waits(start: Start) -> None:
    program = start("inject_memory")
    told, tell = os.pipe()
    wait, go = os.pipe()
    helpers: list[Any] = []
    attaching = threading.Thread(
        target=lambda: helpers.append(door.Attached(program.pid, FEATURE_MOVE, 2 << 20, (tell, wait)))
    )
    attaching.start()
    assert os.read(told, 1) == b"\0"
    assert state(program.pid) == "t"
    assert status(program.pid, "SigBlk") == "0" * 16
    os.write(go, b"\0")
    attaching.join()
    assert status(program.pid, "TracerPid") == "0"
    for helper in helpers:
        helper.end()
        os.close(helper.fields["uffd"])
    assert len(helpers) == 1
    for fd in (told, tell, wait, go):
        os.close(fd)
    program.poke()
    assert program.line() == "good"


@pytest.mark.parametrize("name", ["inject_busy 1", "inject_storm"])
def test_whoever_holds_it_is_killed(start: Start, name: str) -> None:
    """It goes on as it was."""
    program = start(*name.split())
    for _ in range(20):
        told, tell = os.pipe()
        holder = os.fork()
        if holder == 0:
            door.Attached(program.pid, FEATURE_MOVE, 2 << 20, (tell, os.pipe()[0]))
            os._exit(1)
        os.close(tell)
        assert os.read(told, 1) == b"\0"
        os.close(told)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        until(lambda: status(program.pid, "TracerPid") == "0")
        for child in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    assert program.finish().startswith("good")


# ---- what is left behind ----


def test_nothing_is_added_to_the_program(start: Start) -> None:
    program = start("inject_busy", "2")
    until(lambda: len(os.listdir(f"/proc/{program.pid}/task")) == 3)
    before = fds(program.pid)
    with attached(program.pid) as helper:
        pid = helper.fields["pid"]
        assert fds(program.pid) == before
        assert len(os.listdir(f"/proc/{program.pid}/task")) == 3
        assert status(program.pid, "TracerPid") == status(pid, "TracerPid") == "0"
        assert status(pid, "Name") == "userswap-helper"
        assert fds(pid) == ["3", "4"]
        assert int(status(pid, "SigBlk"), 16) | 0x40100 == 0xFFFFFFFFFFFFFFFF  # all but KILL and STOP
        assert os.getsid(pid) == pid
    assert fds(program.pid) == before
    assert len(os.listdir(f"/proc/{program.pid}/task")) == 3
    until(lambda: status(pid, "State").startswith("Z") if os.path.exists(f"/proc/{pid}") else True)
    assert program.finish().startswith("good")


def test_no_part_of_the_region_can_be_written_and_run(start: Start) -> None:
    program = start("inject_busy", "1")
    with attached(program.pid) as helper:
        low, high = helper.fields["own"]
        ours = []
        for line in Path(f"/proc/{program.pid}/maps").read_text().splitlines():
            first, last = (int(word, 16) for word in line.split()[0].split("-"))
            if first < high and last > low:
                assert low <= first
                assert last <= high
                ours.append(line.split()[1])
    assert ours[0] == ours[-1] == "---p"
    assert sorted(ours[1:-1]) == ["r-xp", "rw-p", "rw-p", "rw-s"]


def test_the_region_is_not_for_children(start: Start) -> None:
    program = start("inject_forks", "fork")
    with attached(program.pid) as helper:
        low, _ = helper.fields["own"]
        flags = Path(f"/proc/{program.pid}/smaps").read_text().split(f"{low:x}-")[1].split("VmFlags:")[1]
        assert " dc " in flags.splitlines()[0] + " "
    assert program.finish().startswith("good")


# ---- refusals ----


def test_refused_features_leave_the_program_as_it_was(start: Start) -> None:
    program = start("inject_busy", "2")
    for _ in range(20):
        assert refusal(program.pid, 1 << 60) == errno.EINVAL
    assert "rw-s" not in Path(f"/proc/{program.pid}/maps").read_text()  # as our mailbox is
    assert status(program.pid, "TracerPid") == "0"
    assert program.finish().startswith("good")


def test_a_process_that_is_gone_or_a_zombie() -> None:
    process = subprocess.Popen(["true"])
    until(lambda: state(process.pid) == "Z")
    assert refusal(process.pid) == errno.ESRCH
    process.wait()
    assert refusal(process.pid) == errno.ESRCH


def test_a_traced_process(start: Start) -> None:
    program = start("inject_busy", "1")
    assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, program.pid, None, None) == 0
    assert refusal(program.pid) == errno.EBUSY


def test_code_of_32_bits(start: Start) -> None:
    program = start("inject_code32")
    until(lambda: state(program.pid) == "R")
    assert refusal(program.pid) in (errno.ENOEXEC,)
    assert status(program.pid, "TracerPid") == "0"
    assert state(program.pid) == "R"


def refusal_to_nobody(pid: int) -> int:
    """As refusal, for an engine without any privilege."""
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            door.Attached(pid)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_another_users_process(start: Start) -> None:
    program = start("inject_busy", "1")
    assert refusal_to_nobody(program.pid) == errno.EPERM
    assert program.finish().startswith("good")


def test_a_sandbox_that_can_not_be_suspended(start: Start) -> None:
    program = start("inject_sandbox", "closed", user=NOBODY)
    before = status(program.pid, "SigBlk")
    for _ in range(10):
        assert refusal_to_nobody(program.pid) == errno.EACCES
    assert status(program.pid, "SigBlk") == before
    assert program.finish() == "good 1"


def test_a_process_that_may_not_open_a_userfaultfd_itself(start: Start) -> None:
    """It gets one by the device, on the engine's right to it."""
    program = start("inject_busy", "1", user=NOBODY)
    with attached(program.pid) as helper:
        assert helper.call(door.NOTHING) == []
        assert fds(helper.fields["pid"]) == ["3", "4"]
    assert program.finish().startswith("good")


def test_no_more_processes_allowed(start: Start) -> None:
    program = start("inject_busy", "1", user=NOBODY, under=("prlimit", "--nproc=1"))
    assert refusal(program.pid) == errno.EAGAIN
    assert program.finish().startswith("good")


def test_an_engine_without_a_right_to_a_userfaultfd(start: Start) -> None:
    program = start("inject_busy", "1", user=NOBODY)
    assert refusal_to_nobody(program.pid) == errno.EPERM
    assert "rw-s" not in Path(f"/proc/{program.pid}/maps").read_text()
    assert program.finish().startswith("good")


# ---- what the helper does ----


def register(uffd: int, start_: int, length: int) -> None:
    fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("QQQQ", start_, length, 1, 0))


def read_memory(pid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), length, address)


def serve(uffd: int, low: int, kept: bytes) -> None:
    """One fault, if there is one, from the bytes that were taken out."""
    try:
        message = os.read(uffd, 32)
    except BlockingIOError:
        return
    address = struct.unpack_from("Q", message, 16)[0] & -PAGE
    page = ctypes.create_string_buffer(kept[address - low : address - low + PAGE], PAGE)
    fcntl.ioctl(uffd, UFFDIO_COPY, struct.pack("QQQQq", address, ctypes.addressof(page), PAGE, 0, 0))


@pytest.mark.parametrize("lock_all", [False, True])
def test_pages_go_out_and_come_back(start: Start, lock_all: bool) -> None:
    pages = 64
    program = start("inject_memory", str(pages), *(["lock"] if lock_all else []))
    low = int(program.ready.split()[1], 16)
    with attached(program.pid) as helper:
        uffd, staging = helper.fields["uffd"], helper.fields["staging"]
        register(uffd, low, pages * PAGE)
        for _ in range(3):
            before = read_memory(program.pid, low, pages * PAGE)
            until(lambda: state(program.pid) == "S")
            assert helper.call(door.MOVE, [(staging, low, pages * PAGE)]) == [(pages * PAGE, 0)]
            kept = read_memory(program.pid, staging, pages * PAGE)
            assert kept == before
            assert helper.call(door.DROP, [(0, staging, pages * PAGE)]) == [(0, 0)]
            program.poke()
            os.set_blocking(program.process.stdout.fileno(), False)  # type: ignore[union-attr]
            line = ""
            while not line:
                serve(uffd, low, kept)
                line = program.line()
            os.set_blocking(program.process.stdout.fileno(), True)  # type: ignore[union-attr]
            assert line == "good"
        fcntl.ioctl(uffd, UFFDIO_UNREGISTER, struct.pack("QQ", low, pages * PAGE))
    assert program.process.poll() is None


def test_items_after_a_failed_one_are_left_alone(start: Start) -> None:
    program = start("inject_memory", "8")
    low = int(program.ready.split()[1], 16)
    with attached(program.pid) as helper:
        staging = helper.fields["staging"]
        items = [
            (staging, low, PAGE),
            (staging + PAGE, low + 1, PAGE),
            (staging + 2 * PAGE, low + PAGE, PAGE),
        ]
        assert helper.call(door.MOVE, items) == [
            (PAGE, 0),
            (-errno.EINVAL, errno.EINVAL),
            (-errno.ECANCELED, errno.ECANCELED),
        ]
        assert helper.call(door.MOVE, [(staging, low + PAGE, PAGE)])[0] == (-errno.EEXIST, errno.EEXIST)


def test_a_full_mailbox(start: Start) -> None:
    program = start("inject_memory", "128")
    low = int(program.ready.split()[1], 16)
    with attached(program.pid) as helper:
        staging = helper.fields["staging"]
        before = read_memory(program.pid, low, 128 * PAGE)
        out = [(staging + i * PAGE, low + (127 - i) * PAGE, PAGE) for i in range(128)]
        assert helper.call(door.MOVE, out) == [(PAGE, 0)] * 128
        assert read_memory(program.pid, staging, PAGE) == before[-PAGE:]
        register(helper.fields["uffd"], low, 128 * PAGE)
        assert helper.call(door.MOVE, [(src, dst, n) for dst, src, n in out]) == [(PAGE, 0)] * 128
        assert read_memory(program.pid, low, 128 * PAGE) == before


def test_madvise_and_populate(start: Start) -> None:
    program = start("inject_memory", "8")
    low = int(program.ready.split()[1], 16)
    with attached(program.pid) as helper:
        assert helper.call(door.MADVISE, [(4, low, 8 * PAGE)]) == [(0, 0)]  # MADV_DONTNEED
        assert helper.call(door.POPULATE_WRITE, [(0, low, 8 * PAGE)]) == [(0, 0)]
        assert read_memory(program.pid, low, 8 * PAGE) == bytes(8 * PAGE)
        assert helper.call(door.MADVISE, [(4, 1, PAGE)]) == [(-errno.EINVAL, errno.EINVAL)]


def test_a_helper_that_ends_is_noticed(start: Start) -> None:
    program = start("inject_busy", "1")
    with attached(program.pid) as helper:
        assert helper.call(door.EXIT) == []
        until(lambda: state(helper.fields["pid"]) == "Z")
        with pytest.raises(ProcessLookupError):
            helper.call(door.NOTHING)
    with attached(program.pid) as helper:
        os.kill(helper.fields["pid"], signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            helper.call(door.NOTHING)


def test_the_helper_outlives_the_program_and_the_memory_is_kept(start: Start) -> None:
    program = start("inject_memory", "8")
    low = int(program.ready.split()[1], 16)
    with attached(program.pid) as helper:
        before = read_memory(program.pid, low, PAGE)
        program.close()
        assert helper.call(door.NOTHING) == []
        assert read_memory(helper.fields["pid"], low, PAGE) == before


# ---- the code that is copied ----


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os"])
@pytest.mark.parametrize(
    "extra", ["-fstack-protector-all", "-fcf-protection=full", "-march=x86-64-v3", "-fPIE"]
)
def test_the_copied_code_stands_alone(tmp_path: Path, level: str, extra: str) -> None:
    made = tmp_path / "helper.o"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-fPIC", level, extra]
    subprocess.run(["cc", *flags, "-c", str(SOURCE / "helper.c"), "-o", str(made)], check=True)
    relocations = subprocess.run(
        ["objdump", "-r", "-j", "userswap_helper", str(made)], check=True, capture_output=True, text=True
    ).stdout
    assert "R_X86_64" not in relocations
    sections = subprocess.run(["size", "-A", str(made)], check=True, capture_output=True, text=True).stdout
    sizes = {
        line.split()[0]: int(line.split()[1])
        for line in sections.splitlines()
        if line.count(" ") and line[0] in ".u"
    }
    assert 0 < sizes["userswap_helper"] <= PAGE
    assert not any(name.startswith((".rodata", ".data.rel")) and size for name, size in sizes.items())


# ---- removing it again ----


def mappings(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def overlap(pid: int, low: int, high: int) -> list[str]:
    """Mappings of a process that lie in [low, high) in part."""
    found = []
    for line in mappings(pid):
        first, last = (int(word, 16) for word in line.split()[0].split("-"))
        if first < high and last > low:
            found.append(line)
    return found


def children(pid: int) -> list[int]:
    """Zombies included."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def open_files(pid: int) -> list[str]:
    found = []
    for fd in fds(pid):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def is_helper(pid: int) -> bool:
    with contextlib.suppress(OSError, StopIteration):
        return status(pid, "Name") == "userswap-helper"
    return False


def remove_again_and_again(pid: int, count: int = REMOVALS) -> None:
    """Nothing of ours is left, each time: no mapping, process, zombie or file, and nobody traces it."""
    for _ in range(count):
        helper = door.Attached(pid, FEATURE_MOVE)
        helper.call(door.NOTHING)
        low, high = helper.fields["own"]
        assert [line for line in overlap(pid, low, high) if "memfd:userswap" in line]
        helper.remove()
        os.close(helper.fields["uffd"])
        assert not any("memfd:userswap" in line for line in mappings(pid))
        assert not any(is_helper(child) for child in children(pid))
        assert status(pid, "TracerPid") == "0"
        assert not any("userfaultfd" in name or "memfd:userswap" in name for name in open_files(pid))


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [("cc", ()), ("cc", ("-static",)), ("musl-gcc", ()), ("musl-gcc", ("-static",)), ("go", ())],
)
def test_removed_from_busy_programs(start: Start, compiler: str, flags: tuple[str, ...]) -> None:
    program = start("inject_busy", "4", flags=flags, compiler=compiler)
    remove_again_and_again(program.pid)
    assert program.finish().startswith("good")


def test_where_a_program_maps_anew_what_it_has_unmapped(start: Start) -> None:
    """Its address space has a hole for a moment, just where the kernel would put the next mapping."""
    program = start("inject_holes")
    remove_again_and_again(program.pid, 50)
    for _ in range(50):
        assert refusal(program.pid, 1 << 60) == errno.EINVAL
    assert program.finish().startswith("good")


@pytest.mark.parametrize("call", CALLS)
def test_removed_amid_a_call(start: Start, call: str) -> None:
    program = start("inject_calls", call)
    until(lambda: state(program.pid) == "S")
    remove_again_and_again(program.pid)
    assert program.finish().startswith("rounds")


@pytest.mark.parametrize("way", ["fork", "vfork"])
def test_removed_from_a_program_that_waits_for_any_child(start: Start, way: str) -> None:
    program = start("inject_forks", way)
    remove_again_and_again(program.pid)
    assert program.finish().startswith("good")


def test_removed_in_a_storm_of_signals(start: Start) -> None:
    program = start("inject_storm")
    remove_again_and_again(program.pid)
    assert program.finish().startswith("good")


def test_a_stopped_program_is_as_it_was(start: Start) -> None:
    """To the last mapping."""
    program = start("inject_busy", "4")
    os.kill(program.pid, signal.SIGSTOP)
    until(lambda: {state(int(t)) for t in os.listdir(f"/proc/{program.pid}/task")} == {"T"})
    before = (mappings(program.pid), fds(program.pid), os.listdir(f"/proc/{program.pid}/task"))
    remove_again_and_again(program.pid)
    assert (mappings(program.pid), fds(program.pid), os.listdir(f"/proc/{program.pid}/task")) == before
    assert {state(int(t)) for t in os.listdir(f"/proc/{program.pid}/task")} == {"T"}
    os.kill(program.pid, signal.SIGCONT)
    assert program.finish().startswith("good")


def test_removed_when_the_first_thread_has_ended(start: Start) -> None:
    program = start("inject_odd", "headless")
    until(lambda: state(program.pid) == "Z")
    for _ in range(REMOVALS):
        helper = door.Attached(program.pid, FEATURE_MOVE)
        helper.remove()
        os.close(helper.fields["uffd"])
    assert program.finish() == "good"


def test_removed_when_the_program_has_ended(start: Start) -> None:
    program = start("inject_busy", "1")
    helper = door.Attached(program.pid, FEATURE_MOVE)
    program.close()
    helper.remove()
    os.close(helper.fields["uffd"])
