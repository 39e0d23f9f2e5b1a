# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores for the tests: some that work, some that go wrong on request, some that cannot be started.

Tests put this folder into PYTHONPATH; the folders beside it say which names the stores have.
"""

import atexit
import os
import signal
import sys
import time
import zlib
from pathlib import Path

import userswap

MIB = 1 << 20


class Dict(userswap.Store):
    """In memory, and strict: nothing is read or discarded that was not written, or was discarded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.blocks: dict[int, bytes] = {}

    def write(self, block: int, data: memoryview) -> None:
        assert data.nbytes == 2 * MIB
        assert data.readonly
        self.blocks[block] = bytes(data)

    def read(self, block: int, offset: int, length: int) -> bytes:
        return self.blocks[block][offset : offset + length]

    def discard(self, block: int) -> None:
        del self.blocks[block]


class Packed(Dict):
    """In memory as well, and small."""

    def write(self, block: int, data: memoryview) -> None:
        self.blocks[block] = zlib.compress(data, 1)

    def read(self, block: int, offset: int, length: int) -> bytes:
        return zlib.decompress(self.blocks[block])[offset : offset + length]


class Folder(userswap.Store):
    """TEXT is a folder, each block a file in it. Before a call it does as it is told there: `fail-VERB` holds
    the number of an error, or a text to raise; at a pipe `stall-VERB` it makes a file `stalled` and waits
    for a writer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.folder = Path(text)
        (self.folder / "pid").write_text(str(os.getpid()))

    def _obey(self, verb: str) -> None:
        if (self.folder / f"stall-{verb}").exists():
            (self.folder / "stalled").touch()
            (self.folder / f"stall-{verb}").read_bytes()
        if (self.folder / f"fail-{verb}").exists():
            what = (self.folder / f"fail-{verb}").read_text()
            raise OSError(int(what), os.strerror(int(what))) if what.isdigit() else ValueError(what)

    def write(self, block: int, data: memoryview) -> None:
        self._obey("write")
        (self.folder / str(block)).write_bytes(data)

    def read(self, block: int, offset: int, length: int) -> bytes:
        self._obey("read")
        if (self.folder / "short").exists():
            length //= 2
        with (self.folder / str(block)).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def discard(self, block: int) -> None:
        self._obey("discard")
        (self.folder / str(block)).unlink(missing_ok=True)


class Sized(Dict):
    size = 64 * MIB + 12288


class Plain:
    """Does not derive from userswap.Store, and reads what is no bytes object."""

    def __init__(self, text: str) -> None:
        self.data = bytearray(64 * MIB)

    def write(self, block: int, data: memoryview) -> None:
        self.data[block * 2 * MIB : (block + 1) * 2 * MIB] = data

    def read(self, block: int, offset: int, length: int) -> memoryview:
        at = block * 2 * MIB + offset
        return memoryview(self.data)[at : at + length]

    def discard(self, block: int) -> None:
        pass


class Keeping(Dict):
    """Keeps what it was lent, against the rules: nobody may take another block's bytes for this one's."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kept: dict[int, memoryview] = {}

    def write(self, block: int, data: memoryview) -> None:
        self.kept[block] = data

    def read(self, block: int, offset: int, length: int) -> bytes:
        return bytes(self.kept[block][offset : offset + length])


class Tracked(Dict):
    """Notes in the file TEXT that it came and that it went, and starts a process that would stay."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        child = os.fork()
        if child == 0:
            signal.pause()
        Path(text).write_text(f"{os.getpid()} {child}\n")

        atexit.register(self.end)

    def end(self) -> None:
        time.sleep(0.3)
        with open(self.text, "a") as file:
            file.write("over\n")


class Refusing(Dict):
    def __init__(self, text: str) -> None:
        raise ConnectionRefusedError(f"no server at {text}\nand no other line")


class Exiting(Dict):
    def __init__(self, text: str) -> None:
        sys.exit(3)


class Dying(Dict):
    def __init__(self, text: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Waiting(Dict):
    """Ready once somebody has written to the pipe TEXT."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        Path(text).read_bytes()


class Abstract(userswap.Store):
    def write(self, block: int, data: memoryview) -> None:
        pass


class Lacking:
    def __init__(self, text: str) -> None:
        pass

    def write(self, block: int, data: memoryview) -> None:
        pass

    def read(self, block: int, offset: int, length: int) -> bytes:
        return bytes(length)


class Sizeless(Dict):
    size = -1
