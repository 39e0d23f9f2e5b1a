# SPDX-License-Identifier: GPL-2.0-or-later
"""What is run on every side: `micro.c`, and the programs of `programs.py`."""

import subprocess
import sys
from pathlib import Path

from bench.workloads import programs

HERE = Path(__file__).parent
MICRO_SOURCE = HERE / "micro.c"
MICRO = {"micro": 1, "micro_packable": 4}  # how often the same comes in a page
OPS_PER_MIB = 32  # of the random phases of MICRO


def compiled(source: Path, folder: Path) -> Path:
    """The program that a C file is, in `folder`."""
    binary = folder / source.stem
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", str(source)]
    subprocess.run([*command, "-o", str(binary), "-lm"], check=True)
    return binary


NAMES = (*MICRO, *programs.PROGRAMS)


def command(name: str, size: int, seed: int, folder: Path) -> list[str]:
    """Of one of NAMES, about `size` MiB large; what has to be compiled lies in `folder` afterwards.

    It prints, as JSON, each phase with its seconds and units; and as `check`, if there is one, a value that
    has to be the same on each side."""
    if name in MICRO:
        return [str(compiled(MICRO_SOURCE, folder)), *map(str, (size, OPS_PER_MIB * size, seed, MICRO[name]))]
    return [sys.executable, str(HERE / "programs.py"), name, str(size), str(seed)]
