# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap run`: refuse what cannot be done, open the swap areas, split into front process and keeper."""

import os

from userswap import areas, doctor, front, keeper, launch, libc
from userswap.channel import Channel, channel_pair
from userswap.engine_process import Options
from userswap.errors import EXIT_OWN_ERROR
from userswap.ram import parse_ram
from userswap.request import Request


def run(request: Request, command: list[str]) -> int:
    """Returns the exit status. Raises UserswapError for refusals, with nothing left behind."""
    inherited = launch.Inherited()
    request.refuse_unfit_machine()
    opened, options = request.open(parse_ram(request.ram))
    libc.become_subreaper()
    options.catches = not doctor.forks_are_told()
    front_end, keeper_end = channel_pair()
    pid = keeper.fork_keeper(opened)
    if pid == 0:
        front_end.close()
        _keep(keeper_end, opened, options, inherited, command)
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
