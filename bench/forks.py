# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fork takes: natively, where the kernel tells the engine of it, and where it is caught.

`python -m bench.forks`, as root: of a process that is not entered, and of one that is, half of whose memory
is swapped. The rounds alternate; the medians and the slowest tenth are printed, in microseconds."""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.workloads import compiled

RAM = "96M"
COUNT = 100
HERE = Path(__file__).parent
RUN = (sys.executable, "-m", "userswap", "run", "--quiet", "--ram", RAM, "--")
WAYS: dict[str, tuple[str, ...]] = {
    "native": (),
    "told": RUN,
    "caught": ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", *RUN),
    "caught, an ordinary user": (str(HERE.parent / "tests" / "as_user.sh"), *RUN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="userswap-bench-") as folder:
        Path(folder).chmod(0o755)
        binary = compiled(HERE / "forks.c", Path(folder))
        for mib in (8, 128):
            taken: dict[str, list[int]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, prefix in WAYS.items():
                    command = [*prefix, str(binary), str(mib), str(COUNT)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    taken[way] += map(int, out.split())
            for way, times in taken.items():
                slow = statistics.quantiles(times, n=10)[-1]
                print(f"{mib:4} MiB  {way:<26} {statistics.median(times):8.0f} {slow:8.0f}", flush=True)


if __name__ == "__main__":
    main()
