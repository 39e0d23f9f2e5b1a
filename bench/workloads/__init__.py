# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run on every side: `micro.c`, and the programs of `programs.py`."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from bench.workloads import programs

HERE = Path(__file__).parent
MICRO = {"micro": 1, "micro_packable": 4}  # how often the same comes in a page
OPS_PER_MIB = 32  # of the random phases of MICRO


@dataclasses.dataclass(frozen=True)
class Workload:
    """Prints, as JSON, each phase with its seconds and units; and as `check`, if there is one, a value that
    has to be the same on each side."""

    name: str
    command: tuple[str, ...]  # followed by the size in MiB and a seed

    def line(self, size: int, seed: int) -> list[str]:
        if self.name in MICRO:
            ops, fold = OPS_PER_MIB * size, MICRO[self.name]
            return [*self.command, str(size), str(ops), str(seed), str(fold)]
        return [*self.command, str(size), str(seed)]


def compile_micro(folder: Path) -> Path:
    binary = folder / "micro"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", str(HERE / "micro.c")]
    subprocess.run([*command, "-o", str(binary), "-lm"], check=True)
    return binary


NAMES = (*MICRO, *programs.PROGRAMS)


def workload(name: str, folder: Path) -> Workload:
    """One of NAMES; what has to be compiled lies in `folder`."""
    if name in MICRO:
        return Workload(name, (str(compile_micro(folder)),))
    return Workload(name, (sys.executable, str(HERE / "programs.py"), name))
