# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap` with a stand-in for the engine: what the processes around it do, without any swap.

Run as a script it takes the arguments of userswap. USERSWAP_STANDIN says what the engine does:
nothing (the default); `refuse` to start; `fail` once the file in USERSWAP_TRIGGER exists; `hold` many files.
"""

import os
import select
import sys
import threading
import types
from collections.abc import Sequence


class EngineError(Exception):
    pass


class Engine:
    def __init__(
        self,
        ram_limit_bytes: int,
        keeper_pid: int,
        own_pids: Sequence[int],
        desk: int,
        may_spin: bool,
        entry_bits: int = 64,
        left: tuple[int, int, Sequence[tuple[int, int, int]]] | None = None,
        encrypt: bool = False,
        drops_behind: bool = False,
        trace: int = -1,
    ) -> None:
        self._mode = os.environ.get("USERSWAP_STANDIN", "")
        self._trigger = os.environ.get("USERSWAP_TRIGGER", "")
        self._limit = ram_limit_bytes
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._keeper = keeper_pid
        self._own = list(own_pids)
        self._seen: list[int] = []
        self._areas = [fd for _, fd, _ in left[2]] if left is not None else []
        if self._mode == "refuse":
            raise EngineError(f"--ram {ram_limit_bytes} is too small: 8 MiB is the least")
        assert os.getppid() == keeper_pid
        assert {os.getpid(), keeper_pid} < {*own_pids}

    def swapon(self, fd: int, size: int, priority: int, frees: bool, shared: int = -1) -> int:
        assert size % (2 << 20) == 0
        assert os.fstat(fd)
        self._areas.append(fd)
        return len(self._areas) - 1

    def files(self) -> tuple[int, int]:
        return self._event, self._event

    def open_files(self) -> set[int]:
        return {self._event, *self._areas}

    def flush_trace(self) -> None:
        pass

    def area_files(self) -> dict[int, int]:
        return {fd: number for number, fd in enumerate(self._areas)}

    def watch(self) -> None:
        if self._mode == "fail":
            threading.Thread(target=self._wait_for_trigger, daemon=True).start()
        if self._mode == "hold":
            self._held = [os.dup(self._event) for _ in range(2000)]

    def _wait_for_trigger(self) -> None:
        while not os.path.exists(self._trigger):
            select.select([], [], [], 0.005)
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def control(self) -> None:
        from userswap import tree

        self._seen += [process.pid for process in tree.programs(self._keeper, self._own)]
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        raise EngineError("swap is exhausted: the program was stopped")

    def processes(self) -> list[int]:
        return self._seen

    def parents(self) -> dict[int, int]:
        return dict.fromkeys(self._seen, 0)

    def own_processes(self) -> list[int]:
        return self._own

    def tree_alive(self) -> bool:
        return False

    def end_waits(self) -> None:
        pass

    def statistics(self) -> dict[str, int | float]:
        return {"ram_limit_bytes": self._limit, "peak_resident_bytes": 1 << 20}

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
