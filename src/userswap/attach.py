# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap attach`: swap for processes that run already. A keeper stays with them in the background."""

import os
import select
import signal
from collections.abc import Container

from userswap import areas, doctor, keeper, launch, libc, ram, tree
from userswap.channel import Channel, channel_pair
from userswap.client import served_processes
from userswap.engine_process import Options
from userswap.errors import EXIT_OWN_ERROR, UserswapError
from userswap.front import complain
from userswap.request import Request


def attach(request: Request, target: int, with_children: bool) -> int:
    """To the process `target`. Returns the exit status, once all processes are entered. Raises UserswapError
    for refusals, with nothing left behind."""
    inherited = launch.Inherited()
    request.refuse_unfit_machine()
    doctor.refuse_untold_forks()
    served = served_processes()
    _refuse_unfit_process(target, served)
    below = [process.pid for process in tree.programs(target)]
    opened, options = request.open(
        _automatic_ram(target) if request.ram == "auto" else ram.parse_ram(request.ram)
    )
    options.attaches = True
    options.leave_out = tuple(pid for pid in below if pid in served or not with_children)
    options.attach = (target, *(pid for pid in below if pid not in options.leave_out))
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
