# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: parent of the program and of the engine.

    shell -> front process -> keeper -> program -> ...
                                |-----> engine process
                                '-----> stores of Python

It has a session of its own, so that no key stops or kills it, and yet it is the program's parent. The
program was forked before that and stays in the session and process group of the front process. As a
subreaper, the keeper has a living child as long as any process of the tree lives; so it knows when it may
go.

It does little, so that it lives: what the engine does by ptrace it does for it (tracer.pyx), as a program
whose tracer dies amid a step would be lost; it opens swap areas, and starts stores. It and the engine have
one table of files, so that whatever the engine has open stays open."""

import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from userswap import background, launch, libc, tree
from userswap.areas import Area, abandon_areas, open_areas, release_areas
from userswap.channel import Channel, channel_pair
from userswap.control import as_word, is_of_control
from userswap.engine_process import EngineProcess, Left, Options
from userswap.errors import EXIT_OWN_ERROR, UserswapError
from userswap.front import complain, describe
from userswap.store_process import END_SECONDS, StoreProcess

TRIES = 3  # engines that do not come to work before the program is given up
SOON_SECONDS = 10.0  # ... or that die of themselves so soon after each other
TRACER_BUSY_MS = 20  # children are looked for again, which cannot be done while it traces
END_PATIENCE_SECONDS = 0.5  # of the front process, once nothing but the engine is left

# Of the keeper of another version, which goes on: what it takes as it is.
_HANDED_OVER = (
    "_attached",
    "_childless",
    "_died",
    "_files",
    "_listener",
    "_program",
    "_reported",
    "_started",
    "_status",
    "_told",
    "_upgraded",
)

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def fork_keeper(areas: Sequence[Area]) -> int:
    """As os.fork(). Raises UserswapError, with nothing left of the areas that were opened for it."""
    try:
        return os.fork()
    except OSError as error:
        abandon_areas(areas)
        raise UserswapError(launch.NO_PROCESS) from error


class Keeper:
    """Runs in the keeper's process, its signals blocked, until the last process of the tree has ended."""

    def __init__(self, front: Channel | None, areas: Sequence[Area], options: Options) -> None:
        from userswap.tracer import Tracer

        self._front = front
        self._areas = list(areas)
        self._options = options
        self._stores: dict[int, Area] = {}  # by the pid of their process
        self._asked: dict[str, Area] = {}  # stores that swapon waits for, by the key of the request
        self._tracer = Tracer(options.catches)
        self._listener = -1  # where forks are told of that are caught
        self._engine = 0  # its pid
        self._engine_status: int | None = None  # how it ended, where that is still to be seen to
        self._files = (-1, -1)  # what its state lies in
        self._started = 0.0  # when the program was
        self._died: list[float] = []  # when engines did, but those that somebody killed
        self._to_engine: Channel | None = None
        self._engines_end: Channel | None = None  # not ours, but closing it would close it for the engine
        self._program = 0
        self._status: int | None = None  # the program's exit status, once it has ended
        self._reported = 0.0  # when the engine had told what happened until then; 0: not yet
        self._told = False  # the front process knows the status
        self._childless = False  # the engine knows that no program is left
        self._failure: str | None = None  # what the engine said last
        self._entered: dict[int, int] = {}  # pidfds of processes that we have not started
        self._attached = False
        self._over = False  # the engine has put everything away
        self._ending = False  # whatever dies now, it is meant to
        self._upgrade: tuple[str, list[str]] | None = None  # that is asked for: its key, and what to become
        self._upgraded: tuple[str, str] | None = None  # the last one: its key, and why it could not be done
        self._poller = select.poll()
        self._signals = -1

    def run(self, command: list[str], inherited: launch.Inherited) -> None:
        """Whatever happens, the front process is told an exit status, and nothing of the tree is left."""
        self._guarded(lambda: self._run(command, inherited))

    def attach(self) -> None:
        """Instead of run(): to processes that run already, as the options say. The front process is told
        `attached`, and ends."""
        self._guarded(self._attach)

    @classmethod
    def restored(cls, state: "Mapping[str, Any]") -> "Keeper":
        """From what another version has handed over (handover.py). Then go_on()."""
        from userswap import handover

        areas = [handover.area_of(area) for area in state["areas"]]
        front = handover.channel_of(state["front"])
        keeper = cls(front, [areas[at] for at in state["used"]], handover.options_of(state["options"]))
        for name in _HANDED_OVER:
            setattr(keeper, name, state[name])
        keeper._stores = {areas[at].process.pid: areas[at] for at in state["stores"]}
        keeper._entered = {int(pid): fd for pid, fd in state["entered"].items()}
        return keeper

    def go_on(self) -> None:
        """Instead of run(), in the place of the keeper that has handed over. There is no engine now."""
        self._guarded(self._go_on)

    def _go_on(self) -> None:
        libc.set_name("userswap-keeper")
        for pid, area in self._stores.items():
            self._tracer.spare(pid)
            if area.process is not None and area.process.connected:
                self._poller.register(area.process, select.POLLIN)
        self._tracer.start(self._listener)
        self._replace_engine()
        self._serve()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except launch.Failure as failure:
            self._end(str(failure), failure.status)
        except UserswapError as error:
            self._end(str(error), EXIT_OWN_ERROR)
        except BlockingIOError:  # of a fork, or the tracer's start
            self._end(launch.NO_PROCESS, EXIT_OWN_ERROR)
        except Exception as error:  # any mistake of ours: the tree must not go on without its engine
            self._end(f"internal error: {type(error).__name__}: {error}", EXIT_OWN_ERROR)

    def _attach(self) -> None:
        libc.become_subreaper()
        self._start_stores()
        self._leave_terminal()
        self._start_engine()
        self._files = self._await_ready()
        self._begin_to_watch()
        self._started = time.monotonic()
        self._send_engine(f"started {self._started}")
        self._serve()

    def _run(self, command: list[str], inherited: launch.Inherited) -> None:
        libc.become_subreaper()
        self._start_stores()
        self._start_engine()
        self._files = self._await_ready()
        program = launch.Program(command, inherited, self._options.catches)
        self._program = program.pid
        self._send_engine(f"program {self._program}")
        self._leave_terminal()
        inherited.detach()
        self._listener = program.await_ready()
        self._begin_to_watch()
        self._await_engine("watching")
        self._started = time.monotonic()
        program.go()
        for area in self._areas:
            area.created_path = None
        self._introduce_program()
        self._send_engine(f"started {self._started}")
        self._serve()

    def _begin_to_watch(self) -> None:
        self._tracer.start(self._listener)
        self._send_engine("watch")

    # ---- the engine

    def _start_engine(self, left: Left | None = None) -> None:
        self._to_engine, self._engines_end = channel_pair()
        front, keeper = os.getppid(), os.getpid()
        pid = libc.fork_sharing_files()
        if pid == 0:
            process = EngineProcess(self._engines_end, keeper, self._areas, self._options, left)
            process.run(self._tracer.desk, [front, keeper, *self._stores])
        self._engine = pid

    def _await_ready(self) -> tuple[int, int]:
        """Returns what its state lies in. Raises UserswapError."""
        first, second = self._await_engine("ready")
        return int(first), int(second)

    def _await_engine(self, word: str) -> list[str]:
        """Until it says this. Returns what follows. Raises UserswapError."""
        assert self._to_engine is not None
        poller = select.poll()
        pidfd = os.pidfd_open(self._engine)
        poller.register(pidfd, select.POLLIN)
        poller.register(self._to_engine, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in poller.poll()]
                message = self._to_engine.receive()
                if message is not None:
                    said, *rest = message[0]
                    if said == "failed":
                        raise UserswapError(" ".join(rest))
                    if said == word:
                        return rest
                    self._heed(said, " ".join(rest))
                elif pidfd in ready:
                    status = os.waitpid(self._engine, 0)[1]
                    self._engine = 0
                    raise UserswapError(f"the engine died before it was ready ({describe(status)})")
        finally:
            os.close(pidfd)

    def _replace_engine(self) -> None:
        """Another one takes over from one that died. Raises UserswapError if none can."""
        for turn in range(TRIES):
            try:
                self._start_another_engine()
                self._files = self._await_ready()
                break
            except UserswapError:
                if self._engine:
                    os.waitpid(self._engine, 0)
                    self._engine = 0
                if turn == TRIES - 1:
                    raise
        self._send_engine("watch")
        self._send_engine(f"started {self._started}")
        if self._upgraded is not None:
            self._send_engine("upgraded {} {}".format(*self._upgraded))
        if self._status is not None and not self._reported:
            self._send_engine("ended")
        if self._told:
            self._send_engine("let-go")
        if self._childless:
            self._send_engine("childless")

    def _start_another_engine(self) -> None:
        """The tracer may wait for a thread which waits for an answer of the engine: it is not waited for."""
        self._tracer.pause()
        try:
            idle = self._tracer.try_hold()
            try:
                if idle:
                    self._tracer.void()
                self._start_engine(self._what_is_left(idle))
            finally:
                if idle:
                    self._tracer.release()
        finally:
            self._tracer.go_on()

    def _what_is_left(self, idle: bool) -> Left:
        """Where the tracer is not idle, what is open and nobody's is left to the next engine; but not what
        others talk to, as they would wait there for an answer."""
        then = {area: area.fd for area in self._areas}
        self._close_ends()
        for area in self._areas:
            if area.process is not None:
                area.process.serve_again()
                area.ready()
        areas = [(fd, area.fd, area.memory) for area, fd in then.items()]
        strays = self._strays()
        if not idle:
            strays = {fd for fd in strays if is_of_control(fd, os.getpid())}
        pids = {self._program} if self._program and self._status is None else set(self._entered)
        return Left(self._files, areas, strays, self._attached, pids)

    def _close_ends(self) -> None:
        """Of the channel to an engine that has died."""
        for end in (self._to_engine, self._engines_end):
            if end is not None:
                with suppress(KeyError):  # that of an engine which did not come to work
                    self._poller.unregister(end)
                end.close()
        self._to_engine = self._engines_end = None

    def _strays(self) -> set[int]:
        """What is open and not ours."""
        ours = {0, 1, 2, self._signals, self._listener}
        ours |= {self._front.fileno()} if self._front is not None else set()
        ours |= set(self._entered.values())
        for area in [*self._areas, *self._asked.values()]:
            ours |= {area.fd, *area.files()}
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if libc.is_open(fd)} - ours

    def _send_engine(self, words: str) -> None:
        """Nothing, where it has ended: that is told elsewhere."""
        if self._to_engine is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._to_engine.send(words)
            self._watch(self._to_engine)

    def _hear_engine(self) -> None:
        if self._to_engine is None:
            return
        self._to_engine.flush()
        while (message := self._to_engine.receive()) is not None:
            self._heed(message[0][0], " ".join(message[0][1:]))
        self._watch(self._to_engine)

    def _heed(self, word: str, text: str) -> None:
        if word == "failed":
            self._failure = text
        elif word == "reported":
            self._reported = time.monotonic()
        elif word == "over":
            self._over = True
        elif word == "attached":
            self._attached = True
            self._send_front(f"attached {text}")
            self._let_go()
        elif word == "entered":
            with suppress(ProcessLookupError):
                self._entered[int(text)] = os.pidfd_open(int(text))
        elif word == "left":
            if int(text) in self._entered:
                os.close(self._entered.pop(int(text)))
        elif word == "detached":
            options = self._options
            options.attach = tuple(pid for pid in options.attach if pid != int(text))
            options.leave_out = (*options.leave_out, int(text))
        elif word == "open":
            import json  # costs memory, and few engines are ever talked to

            self._open(**json.loads(text))
        elif word == "upgrade":
            import json

            asked = json.loads(text)
            self._upgrade = (asked["key"], asked["command"])
        elif word == "unwanted":
            if text in self._asked:
                self._refuse(text, UserswapError("nobody waits for it any more"))
        elif word == "emptied":
            area = next(area for area in self._areas if area.fd == int(text))
            self._areas.remove(area)
            release_areas([area])
            self._send_engine(f"released {text}")

    def _engine_ended(self, status: int) -> None:
        """Raises UserswapError, unless it was done."""
        self._hear_engine()
        self._engine = 0
        self._engine_status = None
        if self._over or self._ending:
            return
        if self._failure is not None:
            raise UserswapError(self._failure)
        how = f"the engine died ({describe(status)})"
        if not self._started or self._is_hopeless(status):
            raise UserswapError(f"{how}: the program was stopped, since its memory could not be served")
        try:
            self._replace_engine()
        except UserswapError as error:
            raise UserswapError(f"{how}, and no other one could take over: {error}") from error

    def _is_hopeless(self, status: int) -> bool:
        """Whether engines die of themselves all the time."""
        now = time.monotonic()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return False
        self._died = [then for then in self._died if now - then < SOON_SECONDS] + [now]
        return len(self._died) > TRIES

    # ---- another version

    def _upgrade_if_due(self) -> None:
        """Once no area or process is on its way in, and nothing is traced. Does not return where it can be
        done. Raises UserswapError as _engine_ended()."""
        attaching = self._options.attaches and not self._attached
        if (
            self._upgrade is None
            or self._asked
            or attaching
            or not self._engine
            or not self._tracer.try_still()
        ):
            return
        (key, command), self._upgrade = self._upgrade, None
        try:
            os.kill(self._engine, signal.SIGKILL)
            status = os.waitpid(self._engine, 0)[1]
            self._hear_engine()
            if self._asked:  # a store was, at the last moment: later
                self._upgrade = (key, command)
            elif not self._over and self._failure is None:
                self._upgraded = (key, self._become(key, command))
        finally:
            self._tracer.go()
        self._engine_ended(status)

    def _become(self, key: str, command: list[str]) -> str:
        """Returns why that could not be done."""
        from userswap import handover

        self._close_ends()
        areas = [*self._areas, *(area for area in self._stores.values() if area not in self._areas)]
        state = {
            **{name: getattr(self, name) for name in _HANDED_OVER},
            "_upgraded": (key, ""),
            "areas": [handover.describe_area(area) for area in areas],
            "used": list(range(len(self._areas))),
            "stores": [areas.index(area) for area in self._stores.values()],
            "front": handover.describe_channel(self._front),
            "options": handover.describe_options(self._options),
            "entered": self._entered,
        }
        try:
            handover.hand_over(command, state, [self._signals])
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        return ""

    # ---- swap areas that are asked for later

    def _open(self, key: str, spec: str) -> None:
        """Answers `area KEY` with its description, or `refused KEY` with why."""
        try:
            area = open_areas([spec], [*self._areas, *self._asked.values()])[0]
            if area.process is not None:
                self._asked[key] = area
                self._start_store(area)
                return
        except UserswapError as error:
            self._refuse(key, error)
            return
        except Exception as error:  # whatever is asked for, the program goes on: a path with a NUL, say
            self._refuse(key, UserswapError(f"{spec!r}: {error}"))
            return
        self._hand_over(key, area)

    def _hand_over(self, key: str, area: Area) -> None:
        self._areas.append(area)
        self._send_engine(f"area {as_word({'key': key, **area.describe()})}")

    def _refuse(self, key: str, error: UserswapError) -> None:
        area = self._asked.pop(key, None)
        if area is not None:
            area.close()
            if area.process is not None and area.process.connected:
                self._poller.unregister(area.process)
                area.process.disconnect()
        self._send_engine(f"refused {as_word({'key': key, 'why': str(error)})}")

    # ---- stores of Python

    def _start_stores(self) -> None:
        """Those of the command line, all at the same time."""
        for area in self._areas:
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
        assert area.process is not None
        self._tracer.pause()
        try:
            area.process.start()
            self._tracer.spare(area.process.pid)
        finally:
            self._tracer.go_on()
        self._stores[area.process.pid] = area
        self._poller.register(area.process, select.POLLIN)
        self._send_engine(f"own {area.process.pid}")

    def _hear_stores(self) -> None:
        for key, area in list(self._asked.items()):
            try:
                if area.ready():
                    del self._asked[key]
                    self._hand_over(key, area)
            except UserswapError as error:
                self._refuse(key, error)
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
        self._send_engine(f"disown {pid}")
        if process.starting:  # whoever waits for it is told by the channel
            return
        self._hear(process, last=True)
        if not process.ending and not self._childless:  # from then on the engine does not want it any more
            self._say(f"{process.what}: its process ended ({describe(status)}): what it holds is lost")

    def _hear_last(self) -> None:
        """Why the run cannot go on they may have said, and how they ended the kernel will."""
        if self._program:
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

    # ---- the life of the run

    def _say(self, line: str) -> None:
        if self._told:
            background.log(line)
        else:
            complain(line)

    def _leave_terminal(self) -> None:
        os.setsid()
        libc.set_name("userswap-keeper")
        for number in launch.FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})

    def _introduce_program(self) -> None:
        fd = os.pidfd_open(self._program)
        self._send_front(f"program {self._program}", [fd])
        os.close(fd)

    def _serve(self) -> None:
        self._signals = libc.signalfd({signal.SIGCHLD})
        self._poller.register(self._signals, select.POLLIN)
        self._watch_front()
        while True:
            _drain(self._signals)
            reaped = self._reap()
            self._hear_engine()
            self._hear_front()
            self._hear_stores()
            self._upgrade_if_due()
            if self._status is not None:
                self._see_to_the_end(self._status)
            if self._over and not self._engine:
                self._end_well(self._status or 0)
                return
            waits = not reaped or self._upgrade is not None
            self._poller.poll(TRACER_BUSY_MS if waits else self._patience_ms())

    def _patience_ms(self) -> float | None:
        """How long the front process is to wait yet, once it can be told and nothing else is left."""
        if not self._reported or self._told:
            return None
        return max(0.0, (self._reported + END_PATIENCE_SECONDS - time.monotonic()) * 1000)

    def _see_to_the_end(self, status: int) -> None:
        """The program has ended; children of it may live on, or a store stall."""
        if not self._childless and self._programs_are_over():
            self._childless = True
            self._send_engine("childless")
        if self._reported and not self._told and (not self._childless or self._patience_ms() == 0):
            self._send_front(f"exit {status} staying")
            self._let_go()

    def _let_go(self) -> None:
        """Nobody waits for us any more."""
        self._told = True
        background.let_go_of_everything()
        self._send_engine("let-go")
        for area in self._stores.values():
            area.let_go()

    def _reap(self) -> bool:
        """All that can be reaped. False where children have to wait, as the tracer is at work."""
        self._reap_engine()
        if not self._tracer.try_hold():
            return False
        try:
            while (changed := tree.reap(os.WUNTRACED | os.WCONTINUED)) is not None:
                self._note(*changed)
        finally:
            self._tracer.release()
        if self._engine_status is not None:
            self._engine_ended(self._engine_status)
        return True

    def _reap_engine(self) -> None:
        """By its number, which can be done at any time: it is never traced by us."""
        if self._engine and (found := os.waitpid(self._engine, os.WNOHANG)) != (0, 0):
            self._engine_ended(found[1])

    def _note(self, pid: int, status: int) -> None:
        if pid == self._engine:
            if not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
                self._engine_status = status
        elif pid in self._stores:
            self._note_store(pid, status)
        elif pid == self._program:
            self._note_program(status)

    def _note_program(self, status: int) -> None:
        if os.WIFSTOPPED(status):
            if status >> 16 == 0:  # a real stop, not one of ptrace
                self._send_front(f"stopped {os.WSTOPSIG(status)}")
        elif os.WIFCONTINUED(status):
            self._send_front("continued")
            self._continue_front()
        else:
            code = os.waitstatus_to_exitcode(status)
            self._status = code if code >= 0 else 128 - code
            self._send_engine("ended")

    def _continue_front(self) -> None:
        """The front process stopped with the program; who continued the program may not have told it."""
        if self._front is not None and not self._told:
            front = tree.look_at(os.getppid())
            if front is not None and front.state == "T":
                os.kill(front.pid, signal.SIGCONT)

    def _programs_are_over(self) -> bool:
        return not tree.programs(os.getpid(), {self._engine, *self._stores})

    def _end_well(self, status: int) -> None:
        self._end_stores()
        tree.kill_descendants()  # helpers that outlived their processes
        release_areas(self._areas)
        self._send_front("over" if self._told else f"exit {status} over")
        self._flush_at_end()

    def _end(self, line: str, status: int) -> None:
        """End in failure, with the tree."""
        self._ending = True
        self._hear_last()
        for fd in self._entered.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        tree.kill_descendants()
        self._say(line)
        if any(area.created_path is not None for area in self._areas):
            abandon_areas(self._areas)
        else:
            release_areas(self._areas)
        self._send_front("over" if self._told else f"exit {status} over")
        self._flush_at_end()

    # ---- the front process

    def _send_front(self, words: str, fds: Sequence[int] = ()) -> None:
        if self._front is None:
            return
        try:
            self._front.send(words, fds)
        except (BrokenPipeError, ConnectionResetError):
            self._lose_front()
        else:
            self._watch_front()

    def _hear_front(self) -> None:
        if self._front is None:
            return
        try:
            self._front.flush()
        except (BrokenPipeError, ConnectionResetError):
            self._lose_front()
            return
        message = self._front.receive()
        if message is not None and not message[0]:
            self._lose_front()
        else:
            self._watch_front()

    def _watch_front(self) -> None:
        if self._front is not None:
            self._watch(self._front)

    def _watch(self, channel: Channel) -> None:
        self._poller.register(channel, select.POLLIN | (select.POLLOUT if channel.waiting else 0))

    def _lose_front(self) -> None:
        """The front process is gone: killed, or done. The program goes on without it."""
        if self._front is not None:
            self._poller.unregister(self._front)
            self._front.close()
            self._front = None
            if self._options.attaches and not self._attached:
                self._send_engine("give-up")

    def _flush_at_end(self) -> None:
        while self._front is not None and self._front.waiting:
            self._hear_front()
            if self._front is not None and self._front.waiting:
                self._poller.poll()


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 16 * libc.SIGNALFD_RECORD_BYTES):
            pass
    except BlockingIOError:
        pass
