# SPDX-License-Identifier: GPL-2.0-or-later
"""What `run` and `attach` are asked for in the same words."""

from userswap import doctor, statistics, traces
from userswap.areas import Area, open_areas
from userswap.engine_process import Options

TYPE_CHECKING = False  # typing costs a megabyte of memory, which counts
if TYPE_CHECKING:
    import argparse


class Request:
    """The options of an engine, as typed."""

    __slots__ = ("encrypt", "entry_bits", "policy", "quiet", "ram", "stats", "swap", "trace")

    def __init__(self, chosen: "argparse.Namespace", quiet: bool) -> None:
        self.ram: str = chosen.ram
        self.swap: list[str] = chosen.swap
        self.stats: str | None = chosen.stats
        self.quiet = quiet
        self.entry_bits: int = chosen.entry_bits
        self.encrypt: bool = chosen.encrypt
        self.policy: str = chosen.policy
        self.trace: str | None = chosen.trace

    def refuse_unfit_machine(self) -> None:
        """Raises UserswapError where it cannot be done here."""
        doctor.refuse_unfit_machine()
        if self.encrypt:
            doctor.refuse_without_encryption()

    def open(self, ram_limit_bytes: int) -> tuple[list[Area], Options]:
        """The swap areas, and the options of the engine that is to use them. Raises UserswapError, with
        nothing left behind."""
        stats_path = None if self.stats is None else statistics.check_writable(self.stats)
        opened = open_areas(self.swap)
        trace = traces.create(self.trace, opened)
        options = Options(ram_limit_bytes, stats_path, self.quiet, self.entry_bits, self.encrypt)
        options.policy = self.policy
        options.trace = trace
        return opened, options
