# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap attach`: swap for processes that run already. A keeper stays with them in the background."""

import os
import select
import signal
from collections.abc import Container

from userswap import areas, doctor, keeper, launch, libc, ram, statistics, traces, tree
from userswap.channel import Channel, channel_pair
from userswap.client import served_processes
from userswap.engine_process import Options
from userswap.errors import EXIT_OWN_ERROR, UserswapError
from userswap.front import complain


class Request:
    """A command line of `attach`, as typed."""

    __slots__ = ("encrypt", "entry_bits", "pid", "policy", "ram", "stats", "swap", "trace", "with_children")

    def __init__(
        self,
        pid: int,
        with_children: bool,
        ram: str,
        swap: list[str],
        stats: str | None,
        entry_bits: int,
        encrypt: bool,
        policy: str,
        trace: str | None,
    ) -> None:
        self.pid = pid
        self.with_children = with_children
        self.ram = ram
        self.swap = swap
        self.stats = stats
        self.entry_bits = entry_bits
        self.encrypt = encrypt
        self.policy = policy
        self.trace = trace


def attach(request: Request) -> int:
    """Returns the exit status, once all processes are entered. Raises UserswapError for refusals, with
    nothing left behind."""
    inherited = launch.Inherited()
    doctor.refuse_unfit_machine()
    doctor.refuse_untold_forks()
    if request.encrypt:
        doctor.refuse_without_encryption()
    served = served_processes()
    _refuse_unfit_process(request.pid, served)
    ram_limit_bytes = _automatic_ram(request.pid) if request.ram == "auto" else ram.parse_ram(request.ram)
    stats_path = None if request.stats is None else statistics.check_writable(request.stats)
    below = [process.pid for process in tree.programs(request.pid)]
    opened = areas.open_areas(request.swap)
    trace = traces.create(request.trace, opened)
    options = Options(ram_limit_bytes, stats_path, True, request.entry_bits, request.encrypt)
    options.policy = request.policy
    options.trace = trace
    options.attaches = True
    options.leave_out = tuple(pid for pid in below if pid in served or not request.with_children)
    options.attach = (request.pid, *(pid for pid in below if pid not in options.leave_out))
    front_end, keeper_end = channel_pair()
    pid = keeper.fork_keeper(opened)
    if pid == 0:
        front_end.close()
        inherited.detach()
        _keep(keeper_end, opened, options)
    keeper_end.close()
    for area in opened:
        area.close()
    return _await_keeper(front_end, pid)


def _refuse_unfit_process(pid: int, served: Container[int]) -> None:
    process = tree.look_at(pid)
    if process is None or process.state in "ZX":
        raise UserswapError(f"there is no process {pid}")
    if process.name.startswith("userswap"):
        raise UserswapError(f"process {pid} is userswap itself")
    if pid == 1:
        raise UserswapError("process 1 is not attached to: all others descend from it")
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        raise UserswapError(f"process {pid} is another user's, or must not be looked at") from None
    except OSError:
        raise UserswapError(f"process {pid} is a thread of the kernel") from None
    if pid in served:
        raise UserswapError(f"process {pid} is served by a userswap already")


def _automatic_ram(pid: int) -> int:
    """80 % of what the process can have: what is available and what it has already, or its cgroup's limit."""
    available = ram.memory_available() + _resident_bytes(pid)
    limit = ram.cgroup_limit(f"/proc/{pid}")
    return (available if limit is None else min(available, limit)) * ram.AUTO_PERCENT // 100


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _keep(channel: Channel, opened: list[areas.Area], options: Options) -> None:
    """Never returns."""
    try:
        keeper.Keeper(channel, opened, options).attach()
    finally:
        os._exit(EXIT_OWN_ERROR)


def _await_keeper(channel: Channel, pid: int) -> int:
    """Until it has entered all processes, or could not. An interrupted one lets go of what it has."""
    stop = libc.signalfd({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(stop, select.POLLIN)
    while True:
        while (message := channel.receive()) is not None:
            words = message[0]
            if not words:  # the keeper has died, or has ended after all
                os.waitpid(pid, 0)
                return EXIT_OWN_ERROR
            if words[0] == "attached":
                if len(words) > 1:
                    complain(f"left alone: {' '.join(words[1:])}")
                return 0
            if words[0] == "exit":
                os.waitpid(pid, 0)
                return int(words[1])
        if stop in [fd for fd, _ in poller.poll()]:
            complain("interrupted: letting go of what is attached so far")
            channel.close()
            os.waitpid(pid, 0)
            return EXIT_OWN_ERROR
