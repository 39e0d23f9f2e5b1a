# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap run`: refuse what cannot be done, open the swap areas, split into front and engine process."""

import os

from userswap import areas, doctor, front, launch, libc, statistics, supervisor
from userswap.channel import channel_pair
from userswap.errors import EXIT_OWN_ERROR
from userswap.ram import parse_ram


class Request:
    """A command line of `run`, as typed."""

    __slots__ = ("command", "entry_bits", "quiet", "ram", "stats", "swap")

    def __init__(
        self,
        ram: str,
        swap: list[str],
        stats: str | None,
        quiet: bool,
        entry_bits: int,
        command: list[str],
    ) -> None:
        self.ram = ram
        self.swap = swap
        self.stats = stats
        self.quiet = quiet
        self.entry_bits = entry_bits
        self.command = command


def run(request: Request) -> int:
    """Returns the exit status. Raises UserswapError for refusals, with nothing left behind."""
    inherited = launch.Inherited()
    doctor.refuse_unfit_machine()
    ram_limit_bytes = parse_ram(request.ram)
    stats_path = None if request.stats is None else statistics.check_writable(request.stats)
    opened = areas.open_areas(request.swap)
    libc.become_subreaper()
    front_end, engine_end = channel_pair()
    pid = os.fork()
    if pid == 0:
        front_end.close()
        process = supervisor.Supervisor(engine_end, opened, stats_path, request.quiet, request.entry_bits)
        _be_engine(process, ram_limit_bytes, inherited, request)
    engine_end.close()
    for area in opened:
        area.close()
    inherited.detach()
    return front.Front(pid, front_end).serve()


def _be_engine(
    process: supervisor.Supervisor, ram_limit_bytes: int, inherited: launch.Inherited, request: Request
) -> None:
    """Never returns."""
    try:
        process.run(ram_limit_bytes, request.command, inherited)
    finally:
        os._exit(EXIT_OWN_ERROR)
