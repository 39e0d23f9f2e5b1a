# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap run`: refuse what cannot be done, open the swap areas, split into front process and keeper."""

import os

from userswap import areas, doctor, front, keeper, launch, libc, statistics, traces
from userswap.channel import Channel, channel_pair
from userswap.engine_process import Options
from userswap.errors import EXIT_OWN_ERROR
from userswap.ram import parse_ram


class Request:
    """A command line of `run`, as typed."""

    __slots__ = ("command", "encrypt", "entry_bits", "policy", "quiet", "ram", "stats", "swap", "trace")

    def __init__(
        self,
        ram: str,
        swap: list[str],
        stats: str | None,
        quiet: bool,
        entry_bits: int,
        encrypt: bool,
        policy: str,
        trace: str | None,
        command: list[str],
    ) -> None:
        self.ram = ram
        self.swap = swap
        self.stats = stats
        self.quiet = quiet
        self.entry_bits = entry_bits
        self.encrypt = encrypt
        self.policy = policy
        self.trace = trace
        self.command = command


def run(request: Request) -> int:
    """Returns the exit status. Raises UserswapError for refusals, with nothing left behind."""
    inherited = launch.Inherited()
    doctor.refuse_unfit_machine()
    if request.encrypt:
        doctor.refuse_without_encryption()
    ram_limit_bytes = parse_ram(request.ram)
    stats_path = None if request.stats is None else statistics.check_writable(request.stats)
    opened = areas.open_areas(request.swap)
    trace = traces.create(request.trace, opened)
    libc.become_subreaper()
    options = Options(ram_limit_bytes, stats_path, request.quiet, request.entry_bits, request.encrypt)
    options.policy = request.policy
    options.trace = trace
    options.catches = not doctor.forks_are_told()
    front_end, keeper_end = channel_pair()
    pid = keeper.fork_keeper(opened)
    if pid == 0:
        front_end.close()
        _keep(keeper_end, opened, options, inherited, request.command)
    keeper_end.close()
    for area in opened:
        area.close()
    inherited.detach()
    return front.Front(pid, front_end).serve()


def _keep(
    channel: Channel,
    opened: list[areas.Area],
    options: Options,
    inherited: launch.Inherited,
    command: list[str],
) -> None:
    """Never returns."""
    try:
        keeper.Keeper(channel, opened, options).run(command, inherited)
    finally:
        os._exit(EXIT_OWN_ERROR)
