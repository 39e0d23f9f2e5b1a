# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap` with a stand-in for the engine: what the processes around it do, without any swap.

Run as a script it takes the arguments of userswap. USERSWAP_STANDIN says what the engine does:
nothing (the default); `refuse` to start; `fail` once the file in USERSWAP_TRIGGER exists; `hold` many files.
"""

import os
import select
import sys
import time
import types
from collections.abc import Sequence


class EngineError(Exception):
    pass


class Engine:
    def __init__(
        self,
        ram_limit_bytes: int,
        areas: Sequence[tuple[int, int, bool, int]],
        front_pid: int,
        may_spin: bool,
        entry_bits: int = 64,
    ) -> None:
        self._mode = os.environ.get("USERSWAP_STANDIN", "")
        self._trigger = os.environ.get("USERSWAP_TRIGGER", "")
        self._limit = ram_limit_bytes
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._started = time.monotonic()
        self._kept = False
        if self._mode == "refuse":
            raise EngineError(f"--ram {ram_limit_bytes} is too small: 8 MiB is the least")
        assert os.getppid() == front_pid
        assert all(size % (2 << 20) == 0 and os.fstat(fd) for fd, size, _, _ in areas)

    def watch(self, root_pid: int) -> None:
        os.kill(root_pid, 0)
        if self._mode == "fail":
            self._wait_for_trigger()

    def _wait_for_trigger(self) -> None:
        while not os.path.exists(self._trigger):
            select.select([], [], [], 0.005)
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def hold_entering(self) -> None:
        pass

    def release_entering(self) -> None:
        pass

    def control(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        raise EngineError("swap is exhausted: the program was stopped")

    def keep(self) -> list[tuple[int, int]]:
        if self._mode != "hold" or self._kept:
            return []
        self._kept = True
        return [(number, self._event) for number in range(1, 2001)]

    def dropped(self) -> list[int]:
        return []

    def tree_alive(self) -> bool:
        return False

    def statistics(self) -> dict[str, int | float]:
        wall = time.monotonic() - self._started
        return {"ram_limit_bytes": self._limit, "peak_resident_bytes": 1 << 20, "wall_seconds": wall}

    def left_alone(self) -> list[tuple[int, str, str]]:
        return []

    def close(self) -> None:
        os.close(self._event)


def main() -> int:
    module = types.ModuleType("userswap.engine")
    module.__dict__.update(Engine=Engine, EngineError=EngineError)
    sys.modules["userswap.engine"] = module
    from userswap.cli import main as userswap_main

    return userswap_main()


if __name__ == "__main__":
    sys.exit(main())
