# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine process: parent of the program, home of the engine.

    shell -> front process -> engine process -> program -> ...

It has a session of its own, so that no key stops or kills it, and yet it is the program's parent, which the
narrower ptrace scope asks for. The program was forked before that and stays in the session and
process group of the front process. As a subreaper, the engine process has a living child as long as
any process of the tree lives; so it knows when it may go.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from userswap import cgroups, guard, launch, libc, statistics, tree
from userswap.areas import Area, abandon_areas, release_areas
from userswap.channel import Channel
from userswap.control import Control
from userswap.errors import EXIT_OWN_ERROR, UserswapError, reason
from userswap.front import complain, describe
from userswap.store_process import END_SECONDS, StoreProcess

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from userswap.engine import Engine

HELPER_NAME = "userswap-helper"


class Supervisor:
    """Runs in the engine process, its signals blocked, until the last process of the tree has ended."""

    def __init__(
        self, channel: Channel, areas: Sequence[Area], stats_path: str | None, quiet: bool, entry_bits: int
    ) -> None:
        self._channel: Channel | None = channel
        self._areas = dict(enumerate(areas))  # by their number in the engine
        self._stores: dict[int, Area] = {}  # those of Python, by the pid of their process
        self._control: Control | None = None
        self._stats_path = stats_path
        self._quiet = quiet
        self._entry_bits = entry_bits
        self._engine: Engine | None = None
        self._program = 0
        self._started = 0.0
        self._status: int | None = None  # the program's exit status, once it has ended
        self._told = False  # the front process knows it
        self._patient_until: float | None = None  # a time
        self._poller = select.poll()

    def run(self, ram_limit_bytes: int, command: list[str], inherited: launch.Inherited) -> None:
        """Whatever happens, the front process is told an exit status, and nothing of the tree is left."""
        try:
            self._run(ram_limit_bytes, command, inherited)
        except launch.Failure as failure:
            self._end(str(failure), failure.status)
        except Exception as error:
            # EngineError, and any mistake of ours: the tree must not go on without its engine.
            own = type(error).__name__ == "EngineError" or isinstance(error, UserswapError)
            self._end(
                str(error) if own else f"internal error: {type(error).__name__}: {error}", EXIT_OWN_ERROR
            )

    def _run(self, ram_limit_bytes: int, command: list[str], inherited: launch.Inherited) -> None:
        libc.become_subreaper()
        self._start_stores()
        engine = self._engine = self._make_engine(ram_limit_bytes)
        for pid in self._stores:
            engine.add_own(pid)
        self._started = time.monotonic()
        self._program, pipe = launch.fork_program(command, inherited)
        self._leave_terminal()
        inherited.detach()
        launch.await_exec(command[0], pipe)
        for area in self._areas.values():
            area.created_path = None
        self._introduce_program()
        engine.watch(self._program)
        self._control = Control(
            engine, self._areas, self._poller, lambda: self._describe(engine), self._start_store
        )
        self._serve(engine)

    def _make_engine(self, ram_limit_bytes: int) -> "Engine":
        from userswap.engine import Engine

        return Engine(
            ram_limit_bytes,
            [(area.fd, area.size_bytes, area.frees, area.shared) for area in self._areas.values()],
            os.getppid(),
            not cgroups.cpu_is_limited(),
            self._entry_bits,
        )

    # ---- stores of Python

    def _start_stores(self) -> None:
        """Those of the command line, all at the same time."""
        for area in self._areas.values():
            if area.process is not None:
                area.process.start()
                self._stores[area.process.pid] = area
        for area in self._stores.values():
            assert area.process is not None
            area.process.await_ready()
            area.ready()
            self._poller.register(area.process, select.POLLIN)

    def _start_store(self, area: Area) -> None:
        """One that was asked for later. Raises UserswapError."""
        assert self._engine is not None
        assert area.process is not None
        self._engine.hold_entering()
        try:
            area.process.start()
            self._stores[area.process.pid] = area
            self._poller.register(area.process, select.POLLIN)
            self._engine.add_own(area.process.pid)
        except OSError as error:
            area.close()
            raise UserswapError(f"{area.process.what}: {reason(error)}") from error
        finally:
            self._engine.release_entering()

    def _hear_stores(self) -> None:
        for area in self._stores.values():
            if area.process is not None and not area.process.starting:
                self._hear(area.process)

    def _hear(self, process: StoreProcess, last: bool = False) -> None:
        for line in process.said():
            self._say(line)
        if process.connected and (process.over or last):
            self._poller.unregister(process)
            process.disconnect()

    def _note_store(self, pid: int, status: int) -> None:
        """The process of a store has changed. What is left of what it started ends with it."""
        process = self._stores[pid].process
        assert process is not None
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        del self._stores[pid]
        process.pid = 0
        if self._engine is not None:
            self._engine.remove_own(pid)
        if process.starting:  # whoever waits for it is told by the channel
            return
        self._hear(process, last=True)
        if not process.ending:
            self._say(f"{process.what}: its process ended ({describe(status)}): what it holds is lost")

    def _hear_last(self) -> None:
        """Why the run cannot go on they may have said, and how they ended the kernel will."""
        if self._engine is not None:
            self._hear_stores()
            self._await_ends(lambda process: process.over)

    def _end_stores(self) -> None:
        """A moment for them to end as they like."""
        for area in self._stores.values():
            area.close()
        self._await_ends(lambda process: True)

    def _await_ends(self, of: Callable[[StoreProcess], bool]) -> None:
        def any_left() -> bool:
            return any(area.process is not None and of(area.process) for area in self._stores.values())

        until = time.monotonic() + END_SECONDS
        while any_left():
            self._reap()
            left = until - time.monotonic()
            if left <= 0 or not any_left():
                return
            signal.sigtimedwait({signal.SIGCHLD}, left)

    def _say(self, line: str) -> None:
        if self._told:
            guard.log(line)
        else:
            complain(line)

    # ---- the life of the run

    def _leave_terminal(self) -> None:
        os.setsid()
        libc.set_name("userswap-engine")
        for number in launch.FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})

    def _introduce_program(self) -> None:
        fd = os.pidfd_open(self._program)
        self._send(f"program {self._program}", [fd])
        os.close(fd)

    def _serve(self, engine: "Engine") -> None:
        signals = libc.signalfd({signal.SIGCHLD})
        self._poller.register(engine.fileno(), select.POLLIN)
        self._poller.register(signals, select.POLLIN)
        self._watch_channel()
        while True:
            _drain(signals)
            engine.control()
            self._pass_on_keeps(engine)
            engine.hold_entering()
            self._reap()
            engine.release_entering()
            self._read_channel()
            self._hear_stores()
            if self._control is not None:
                self._control.serve()
            if self._status is not None:
                if self._tree_is_over(engine):
                    self._end_well(engine)
                    return
                if not self._told:
                    self._report(engine)
                    self._send(f"exit {self._status} staying")
                    self._told = True
                    guard.let_go_of_everything()
                    for area in self._stores.values():
                        area.let_go()
            self._poller.poll(self._patience_ms())
            if self._patience_ms() == 0:
                self._patient_until = None
                if self._programs_are_over():
                    engine.end_waits()

    def _patience_ms(self) -> float | None:
        """How long to wait yet for a store that stalls, and so may keep an address space from being left.
        Whoever asks for the status meanwhile does not prolong it."""
        if not self._stores or self._status is None:
            return None
        if self._patient_until is None:
            self._patient_until = time.monotonic() + END_SECONDS
        return max(0.0, (self._patient_until - time.monotonic()) * 1000)

    def _pass_on_keeps(self, engine: "Engine") -> None:
        for key, fd in engine.keep():
            self._send(f"hold {key}", [fd])
        for key in engine.dropped():
            self._send(f"release {key}")

    def _reap(self) -> None:
        while True:
            changed = tree.reap(os.WUNTRACED | os.WCONTINUED)
            if changed is None:
                return
            pid, status = changed
            if pid in self._stores:
                self._note_store(pid, status)
            elif pid == self._program:
                self._note_program(status)

    def _note_program(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            if status >> 16 == 0:  # a real stop, not one of ptrace
                self._send(f"stopped {os.WSTOPSIG(status)}")
        elif os.WIFCONTINUED(status):
            self._send("continued")
            self._continue_front()
        else:
            code = os.waitstatus_to_exitcode(status)
            self._status = code if code >= 0 else 128 - code

    def _continue_front(self) -> None:
        """The front process stopped with the program; who continued the program may not have told it."""
        if self._channel is not None and not self._told:
            front = tree.look_at(os.getppid())
            if front is not None and front.state == "T":
                os.kill(front.pid, signal.SIGCONT)

    def _tree_is_over(self, engine: "Engine") -> bool:
        return not engine.tree_alive() and self._programs_are_over()

    def _programs_are_over(self) -> bool:
        alive = [process for process in tree.descendants(os.getpid(), self._stores) if process.state != "Z"]
        return all(process.name == HELPER_NAME for process in alive)

    def _end_well(self, engine: "Engine") -> None:
        if not self._told:
            self._report(engine)
        if self._stores:
            engine.end_waits()
        self._close_control()
        engine.close()
        self._end_stores()
        tree.kill_descendants()  # helpers that outlived their processes
        release_areas(list(self._areas.values()))
        self._send("over" if self._told else f"exit {self._status} over")
        self._flush_at_end()

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _describe(self, engine: "Engine") -> dict[str, object]:
        """What `status` tells of this engine, but for its areas."""
        alive = [process for process in tree.descendants(os.getpid(), self._stores) if process.state != "Z"]
        programs = [{"pid": one.pid, "name": one.name} for one in alive if one.name != HELPER_NAME]
        return {"pid": os.getpid(), "programs": programs, **self._counts(engine)}

    def _report(self, engine: "Engine") -> None:
        if not self._quiet:
            complain(statistics.summary(self._counts(engine), engine.left_alone()))
        self._write_stats(engine)

    def _counts(self, engine: "Engine") -> dict[str, int | float]:
        return {**engine.statistics(), "wall_seconds": time.monotonic() - self._started}

    def _write_stats(self, engine: "Engine") -> None:
        if self._stats_path is None:
            return
        try:
            statistics.write(self._stats_path, self._counts(engine), engine.left_alone())
        except UserswapError as error:
            complain(str(error))

    def _end(self, line: str, status: int) -> None:
        """End in failure, with the tree."""
        self._hear_last()
        tree.kill_descendants()
        self._close_control()
        self._say(line)
        if self._told:
            self._send("over")
        else:
            if self._engine is not None and self._program:
                self._write_stats(self._engine)
            if self._status is None and self._areas:
                _clear(list(self._areas.values()))
            self._send(f"exit {status} over")
        self._flush_at_end()

    def _send(self, words: str, fds: Sequence[int] = ()) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(words, fds)
        except (BrokenPipeError, ConnectionResetError):
            self._lose_front()
        else:
            self._watch_channel()

    def _read_channel(self) -> None:
        if self._channel is None:
            return
        try:
            self._channel.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._lose_front()
            return
        message = self._channel.receive()
        if message is not None and not message[0]:
            self._lose_front()
        else:
            self._watch_channel()

    def _watch_channel(self) -> None:
        if self._channel is not None:
            writing = select.POLLOUT if self._channel.waiting else 0
            self._poller.register(self._channel, select.POLLIN | writing)

    def _lose_front(self) -> None:
        """The front process is gone: killed, or done. The program goes on without it."""
        if self._channel is not None:
            self._poller.unregister(self._channel)
            self._channel.close()
            self._channel = None

    def _flush_at_end(self) -> None:
        while self._channel is not None and self._channel.waiting:
            self._read_channel()
            if self._channel is not None and self._channel.waiting:
                self._poller.poll()


def _clear(areas: Sequence[Area]) -> None:
    if any(area.created_path is not None for area in areas):
        abandon_areas(areas)
    else:
        release_areas(areas)


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 16 * libc.SIGNALFD_RECORD_BYTES):
            pass
    except BlockingIOError:
        pass
