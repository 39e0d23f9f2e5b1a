# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine process: home of the data plane, child of the keeper.

It has a session of its own and no child. What concerns processes (starting, reaping, tracing, ending them)
is the keeper's; here are the engine, its control socket and its counts. What they say to each other, in
words:

    to the keeper    ready FD FD               the program may start, or go on; the files that it lies in
                     failed TEXT               it cannot, or not go on: TEXT is for the user
                     reported                  the summary is printed, the counts are written
                     open {key, spec}          a swap area is wanted: answered by `area` or `refused`
                     unwanted KEY              ... or not any more
                     emptied FD                a swap area is not used any more
                     over                      all is put away
    from the keeper  watch SINCE               the program runs, since when (monotonic time)
                     area {key, ...}, refused {key, why}
                     released FD               the area is closed
                     own PID, disown PID       a process of ours has come, or gone
                     ended                     the program has ended: to be reported
                     let-go                    nothing is to be kept busy any more, not even standard error
                     childless                 nothing is left of the tree

Both have one table of files, so a number is enough to hand over an open file; and neither notices by a
channel's end that the other one has died. The keeper is told by the kernel; here a pidfd tells."""

import os
import resource
import select
import signal
import time
from collections.abc import Sequence

from userswap import background, cgroups, launch, libc, statistics, tree
from userswap.areas import Area
from userswap.channel import Channel
from userswap.control import Control
from userswap.errors import EXIT_OWN_ERROR, UserswapError
from userswap.front import complain
from userswap.store_process import END_SECONDS

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from userswap.engine import Engine


class Options:
    """What was asked for on the command line, of the engine."""

    __slots__ = ("entry_bits", "quiet", "ram_limit_bytes", "stats_path")

    def __init__(self, ram_limit_bytes: int, stats_path: str | None, quiet: bool, entry_bits: int) -> None:
        self.ram_limit_bytes = ram_limit_bytes
        self.stats_path = stats_path
        self.quiet = quiet
        self.entry_bits = entry_bits


class Left:
    """What an engine that died has left. The new one takes that over, and has the same table of files."""

    __slots__ = ("areas", "files", "strays")

    def __init__(self, files: tuple[int, int], areas: list[tuple[int, int, int]], strays: set[int]) -> None:
        self.files = files  # Engine.files()
        self.areas = areas  # of each its descriptor then, and those of now
        self.strays = strays  # what it had open, of which some is not used any more


class EngineProcess:
    def __init__(
        self, keeper: Channel, areas: Sequence[Area], options: Options, left: Left | None = None
    ) -> None:
        self._left = left
        self._keeper = keeper
        self._keeper_pid = os.getppid()
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
        keeper = os.pidfd_open(self._keeper_pid)
        self._poller.register(keeper, select.POLLIN)
        if os.getppid() != self._keeper_pid:
            self._lose_keeper(engine)
        while True:
            engine.control()
            self._hear_keeper(engine)
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

    def _patience_ms(self) -> float | None:
        """How long to wait yet for a store that stalls, and so may keep an address space from being left.
        Whoever asks for the status meanwhile does not prolong it."""
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
        if word == "watch":
            self._started = float(rest[0])
            self._watching = True
            if self._left is not None:  # before their numbers are used again
                for fd in self._left.strays - engine.open_files():
                    os.close(fd)
            engine.watch()
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
        elif word == "ended":
            self._ended = True
            self._report(engine)
            self._keeper.send("reported")
        elif word == "let-go":
            self._told = True
        elif word == "childless":
            self._childless = True

    def _lose_keeper(self, engine: "Engine") -> "NoReturn":
        """Nobody ends the tree any more, unless the front process does: so it is done here."""
        known = engine.processes()
        for pid in known + [one.pid for root in known for one in tree.descendants(root)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        background.log("the keeper died: the program was stopped")
        self._close_control()
        os._exit(EXIT_OWN_ERROR)

    def _fail(self, text: str) -> None:
        self._close_control()
        if self._engine is not None and self._watching and not self._told:
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
        programs = tree.programs(self._keeper_pid, engine.own_processes())
        named = [{"pid": one.pid, "name": one.name} for one in programs]
        return {"pid": self._keeper_pid, "programs": named, **self._counts(engine)}

    def _report(self, engine: "Engine") -> None:
        if not self._options.quiet:
            complain(statistics.summary(self._counts(engine), engine.left_alone()))
        self._write_stats(engine)

    def _counts(self, engine: "Engine") -> dict[str, int | float]:
        return {**engine.statistics(), "wall_seconds": time.monotonic() - self._started}

    def _write_stats(self, engine: "Engine") -> None:
        if self._options.stats_path is None:
            return
        try:
            statistics.write(self._options.stats_path, self._counts(engine), engine.left_alone())
        except UserswapError as error:
            complain(str(error))
