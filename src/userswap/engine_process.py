# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine process: home of the data plane, child of the keeper.

It has a session of its own and no child. What concerns processes (starting, reaping, tracing, ending them)
is the keeper's; here are the engine, its control socket and its counts. What they say to each other, in
words:

    to the keeper    ready FD FD               all is set up; the files that it lies in
                     watching                  the program may start, or goes on
                     failed TEXT               it cannot, or not go on: TEXT is for the user
                     reported                  the summary is printed, the counts are written
                     open {key, spec}          a swap area is wanted: answered by `area` or `refused`
                     unwanted KEY              ... or not any more
                     emptied FD                a swap area is not used any more
                     attached [TEXT]           all that were to be are entered, but for those in TEXT
                     entered PID, left PID     of processes that the keeper has not started: they depend on us
                     detached PID              it is not to be attached to again
                     upgrade {key, command}    another version is to go on
                     over                      all is put away
    from the keeper  program PID               it is about to run
                     watch                     it is to be watched from now on
                     started SINCE             it runs, since when (monotonic time)
                     area {key, ...}, refused {key, why}
                     released FD               the area is closed
                     upgraded KEY [TEXT]       the last upgrade is done, or cannot be, since TEXT
                     own PID, disown PID       a process of ours has come, or gone
                     ended                     the program has ended: to be reported
                     let-go                    nothing is to be kept busy any more, not even standard error
                     childless                 nothing is left of the tree
                     give-up                   nobody waits any more for what was to be attached

Both have one table of files, so a number is enough to hand over an open file; and neither notices by a
channel's end that the other one has died. The keeper is told by the kernel; here a pidfd tells."""

import errno
import os
import resource
import select
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from userswap import background, cgroups, launch, libc, statistics, tree
from userswap.areas import Area
from userswap.channel import Channel
from userswap.control import Control
from userswap.errors import EXIT_OWN_ERROR, UserswapError, reason
from userswap.front import complain
from userswap.policies import AGES, BEHIND
from userswap.store_process import END_SECONDS

ATTACHING_MS = 2.0
ATTACHED_MS = 500.0

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from userswap.engine import Engine


def entry_error(error: OSError) -> str:
    """Why a process cannot be entered, in words for the user."""
    if error.errno == errno.ESRCH:
        return "it has ended"
    if error.errno == errno.EPERM:
        return "it is another user's, or may not be traced (see userswap doctor)"
    if error.errno == errno.EBUSY:
        return "it is being traced already"
    if error.errno == errno.ENOEXEC:
        return "it does not run 64-bit code"
    if error.errno == errno.EACCES:
        return "a sandbox forbids it"
    return reason(error)


def _is_still(pid: int, started: int) -> bool:
    """Whether it is the process that was started then."""
    process = tree.look_at(pid)
    return process is not None and process.started == started


def _signal_all(pids: set[int], number: int) -> None:
    """What has ended is left out, and what is another user's: nothing of that is swapped."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Options:
    """What was asked for on the command line, of the engine."""

    __slots__ = (
        "attach",
        "attaches",
        "catches",
        "encrypt",
        "entry_bits",
        "leave_out",
        "policy",
        "quiet",
        "ram_limit_bytes",
        "stats_path",
        "trace",
    )

    def __init__(
        self, ram_limit_bytes: int, stats_path: str | None, quiet: bool, entry_bits: int, encrypt: bool
    ) -> None:
        self.ram_limit_bytes = ram_limit_bytes
        self.stats_path = stats_path
        self.quiet = quiet
        self.entry_bits = entry_bits
        self.encrypt = encrypt
        self.policy = AGES
        self.trace = -1  # a file that what happens to pages is recorded in
        self.attaches = False  # to processes that run already; else the keeper starts a program
        self.attach: tuple[int, ...] = ()  # ... these
        self.catches = False  # the kernel does not tell of forks: they are caught
        self.leave_out: tuple[int, ...] = ()  # children of these that are not meant


class Left:
    """What an engine that died has left. The new one takes that over, and has the same table of files."""

    __slots__ = ("areas", "attached", "files", "pids", "strays")

    def __init__(
        self,
        files: tuple[int, int],
        areas: list[tuple[int, int, int]],
        strays: set[int],
        attached: bool,
        pids: set[int],
    ) -> None:
        self.files = files  # Engine.files()
        self.areas = areas  # of each its descriptor then, and those of now
        self.strays = strays  # what it had open, of which some is not used any more
        self.attached = attached  # it had entered all that it was to attach
        self.pids = pids  # of the program, or of what it had entered


class EngineProcess:
    def __init__(
        self,
        keeper: Channel,
        keeper_pid: int,
        areas: Sequence[Area],
        options: Options,
        left: Left | None = None,
    ) -> None:
        self._left = left
        self._keeper = keeper
        self._keeper_pid = keeper_pid
        self._known: dict[int, int] = {}  # until the sampler knows them: of each pid when it was started
        self._know(map(tree.look_at, left.pids if left is not None else ()))
        self._areas = list(areas)
        self._options = options
        self._poller = select.poll()
        self._control: Control | None = None
        self._engine: Engine | None = None
        self._started = 0.0
        self._watching = False
        self._ended = False  # the program has
        self._told = False  # ... and nobody waits for us any more
        self._childless = False
        self._attaching = list(options.attach)  # processes that are still to be entered
        self._not_attached: list[str] = []  # why some could not be, in words for the user
        self._entered: set[int] = set()  # those that the keeper knows to depend on us
        self._patient_until: float | None = None  # a time

    def run(self, desk: int, own: Sequence[int]) -> "NoReturn":
        """`desk` is where requests to the tracer are left, `own` are the processes that are ours besides
        this one."""
        try:
            self._run(desk, own)
        except Exception as error:
            # EngineError, and any mistake of ours: the tree must not go on without its engine.
            known = type(error).__name__ == "EngineError" or isinstance(error, UserswapError)
            self._fail(str(error) if known else f"internal error: {type(error).__name__}: {error}")
        finally:
            os._exit(EXIT_OWN_ERROR)

    def _run(self, desk: int, own: Sequence[int]) -> None:
        self._leave_terminal()
        engine = self._engine = self._make_engine(desk, own)
        self._keeper.send("ready {} {}".format(*engine.files()))
        self._serve(engine)

    def _leave_terminal(self) -> None:
        os.setsid()
        libc.set_name("userswap-engine")
        for number in launch.FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        # A file for every process of the tree.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def _make_engine(self, desk: int, own: Sequence[int]) -> "Engine":
        from userswap.engine import Engine

        engine = Engine(
            self._options.ram_limit_bytes,
            self._keeper_pid,
            [*own, os.getpid()],
            desk,
            not cgroups.cpu_is_limited(),
            self._options.entry_bits,
            (*self._left.files, self._left.areas) if self._left is not None else None,
            self._options.encrypt,
            self._options.policy == BEHIND,
            self._options.trace,
        )
        numbered: dict[int, Area] = {}
        known = engine.area_files()
        for area in self._areas:
            if self._left is None:
                numbered[engine.swapon(area.fd, area.size_bytes, 0, area.frees, area.memory)] = area
            elif area.fd in known:
                numbered[known[area.fd]] = area
            else:  # opened for an engine that died before it used it
                self._keeper.send(f"emptied {area.fd}")
        self._control = Control(
            engine, numbered, self._poller, lambda: self._describe(engine), self._keeper.send
        )
        return engine

    def _serve(self, engine: "Engine") -> None:
        self._poller.register(engine.fileno(), select.POLLIN)
        self._poller.register(self._keeper, select.POLLIN)
        keeper = os.pidfd_open(self._keeper_pid)  # if it is gone already, _fail sees that
        self._poller.register(keeper, select.POLLIN)
        if self._keeper_is_gone():
            self._lose_keeper(engine)
        while True:
            engine.control()
            self._hear_keeper(engine)
            self._tell_entered(engine)
            self._look_at_attached(engine)
            if self._control is not None and self._watching:
                self._control.serve()
            if self._childless and not engine.tree_alive():
                self._end_well(engine)
            if keeper in [fd for fd, _ in self._poller.poll(self._patience_ms())]:
                self._lose_keeper(engine)
            if self._patience_ms() == 0:
                self._patient_until = None
                if self._childless:
                    engine.end_waits()

    # ---- processes that ran already

    def _begin_attaching(self, engine: "Engine") -> None:
        for pid in self._options.leave_out:
            engine.leave_out(pid)
        for pid in self._options.attach:
            engine.attach(pid)

    def _tell_entered(self, engine: "Engine") -> None:
        """The keeper ends them if nobody can serve them any more."""
        if self._options.attaches:
            now = set(engine.dependent_processes())
            for pid in now - self._entered:
                self._keeper.send(f"entered {pid}")
            for pid in self._entered - now:
                self._keeper.send(f"left {pid}")
            self._entered = now

    def _look_at_attached(self, engine: "Engine") -> None:
        if not self._options.attaches or not self._watching:
            return
        while self._attaching and self._is_attached(engine, self._attaching[0]):
            if len(self._attaching) == 1:
                self._keeper.send(f"attached {'; '.join(self._not_attached)}")
            del self._attaching[0]
        if not self._attaching and not engine.processes():
            self._childless = True

    def _is_attached(self, engine: "Engine", pid: int) -> bool:
        """Or cannot be, if it is not the one that was asked for. Raises UserswapError."""
        process = tree.look_at(pid)
        try:
            if process is None or not tree.is_program(process):
                raise ProcessLookupError(errno.ESRCH, "it has ended")
            return engine.attached(pid) is True
        except OSError as error:
            if pid != self._options.attach[0]:
                if error.errno != errno.ESRCH and process is not None:
                    self._not_attached.append(f"{process.name} ({pid}): {entry_error(error)}")
                return True
            self._detach_all(engine)
            raise UserswapError(f"process {pid} cannot be entered: {entry_error(error)}") from error

    def _detach_all(self, engine: "Engine") -> None:
        """What was attached so far. It has hardly swapped anything."""
        done: set[int] = set()
        while left := set(engine.processes()) - done:
            for pid in left:
                with suppress(OSError):
                    engine.detach(pid)
            done |= left
        self._tell_entered(engine)

    def _patience_ms(self) -> float | None:
        """How long to wait at most: for a process that is being entered, for the end of those that others
        wait for, for a store that stalls, and so may keep an address space from being left. Whoever asks for
        the status meanwhile does not prolong it."""
        if self._attaching:
            return ATTACHING_MS
        if self._options.attaches and not self._childless:
            return ATTACHED_MS
        if not self._ended or self._control is None or not self._control.has_stores():
            return None
        if self._patient_until is None:
            self._patient_until = time.monotonic() + END_SECONDS
        return max(0.0, (self._patient_until - time.monotonic()) * 1000)

    # ---- the keeper

    def _hear_keeper(self, engine: "Engine") -> None:
        self._keeper.flush()
        while (message := self._keeper.receive()) is not None:
            self._heed(engine, message[0][0], message[0][1:])
        waiting = select.POLLOUT if self._keeper.waiting else 0
        self._poller.register(self._keeper, select.POLLIN | waiting)

    def _heed(self, engine: "Engine", word: str, rest: Sequence[str]) -> None:
        if word == "program":
            self._know([tree.look_at(int(rest[0]))])
        elif word == "watch":
            self._watch(engine)
            self._keeper.send("watching")
        elif word == "started":
            self._started = float(rest[0])
            if self._control is not None:
                self._control.listen()
        elif word == "own":
            engine.add_own(int(rest[0]))
        elif word == "disown":
            engine.remove_own(int(rest[0]))
        elif word in ("area", "refused"):
            assert self._control is not None
            self._control.opened(word == "area", rest[0])
        elif word == "released":
            if self._control is not None:
                self._control.released(int(rest[0]))
        elif word == "upgraded":
            if self._control is not None:
                self._control.upgraded(rest[0], " ".join(rest[1:]))
        elif word == "ended":
            self._ended = True
            self._know(tree.programs(self._keeper_pid, engine.own_processes()))
            self._report(engine)
            self._keeper.send("reported")
        elif word == "let-go":
            self._told = True
        elif word == "childless":
            self._childless = True
        elif word == "give-up":
            self._detach_all(engine)
            raise UserswapError("given up")

    def _watch(self, engine: "Engine") -> None:
        self._watching = True
        self._begin_attaching(engine)
        if self._left is not None:
            self._attaching = [pid for pid in self._attaching if not self._left.attached]
            # Before their numbers are used again.
            for fd in self._left.strays - engine.open_files():
                os.close(fd)
        engine.watch()

    def _keeper_is_gone(self) -> bool:
        return os.getppid() != self._keeper_pid

    def _lose_keeper(self, engine: "Engine | None") -> "NoReturn":
        """Nobody ends the tree any more, unless the front process does: so it is done here. All of it is
        stopped before any of it is ended: nobody's child can be told from a child of what has ended."""
        while (message := self._keeper.receive()) is not None:
            if message[0][0] == "program":
                self._know([tree.look_at(int(message[0][1]))])
        stopped: set[int] = set()
        while found := self._tree(engine) - stopped:
            _signal_all(found, signal.SIGSTOP)
            stopped |= found
        _signal_all(stopped | set(engine.processes() if engine is not None else ()), signal.SIGKILL)
        background.log("the keeper died: the program was stopped")
        self._close_control()
        os._exit(EXIT_OWN_ERROR)

    def _know(self, found: "Iterable[tree.Process | None]") -> None:
        self._known = {one.pid: one.started for one in found if one is not None}

    def _tree(self, engine: "Engine | None") -> set[int]:
        """The processes that depend on us, as far as they can be found without the keeper. No helpers: who is
        amid a fork may wait for one."""
        known = {pid for pid, started in self._known.items() if _is_still(pid, started)}
        known |= set(engine.parents() if engine is not None else ())
        if not self._options.attaches:
            known |= {one.pid for root in known for one in tree.programs(root)}
        return known

    def _fail(self, text: str) -> None:
        if self._keeper_is_gone():
            self._lose_keeper(self._engine)
        if self._control is not None:
            text = self._control.name_areas(text)
        self._close_control()
        if self._engine is not None and self._started:
            self._tell_entered(self._engine)
            if not self._told:
                self._write_stats(self._engine)
        self._keeper.send(f"failed {text}")
        while self._keeper.waiting:
            select.select([], [self._keeper], [])
            self._keeper.flush()

    def _end_well(self, engine: "Engine") -> "NoReturn":
        if self._control is not None and self._control.has_stores():
            engine.end_waits()
        self._close_control()
        engine.close()
        self._keeper.send("over")
        while self._keeper.waiting:
            select.select([], [self._keeper], [])
            self._keeper.flush()
        os._exit(0)

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    # ---- counts

    def _describe(self, engine: "Engine") -> dict[str, object]:
        """What `status` tells of this engine, but for its areas."""
        if self._options.attaches:
            found = [tree.look_at(pid) for pid in engine.processes()]
            programs = [one for one in found if one is not None and tree.is_program(one)]
        else:
            programs = tree.programs(self._keeper_pid, engine.own_processes())
        named = [{"pid": one.pid, "name": one.name} for one in programs]
        return {"pid": self._keeper_pid, "programs": named, **self._counts(engine)}

    def _report(self, engine: "Engine") -> None:
        if not self._options.quiet:
            complain(statistics.summary(self._counts(engine), engine.left_alone()))
        self._write_stats(engine)
        try:
            engine.flush_trace()
        except OSError as error:
            complain(f"--trace: it ends early: {reason(error)}")

    def _counts(self, engine: "Engine") -> dict[str, int | float]:
        return {**engine.statistics(), "wall_seconds": time.monotonic() - self._started}

    def _write_stats(self, engine: "Engine") -> None:
        if self._options.stats_path is None:
            return
        try:
            statistics.write(self._options.stats_path, self._counts(engine), engine.left_alone())
        except UserswapError as error:
            complain(str(error))
