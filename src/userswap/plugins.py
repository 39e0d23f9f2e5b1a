# SPDX-License-Identifier: GPL-2.0-or-later
"""What a store is that is written in Python. Public: `userswap.Store`."""

from abc import ABC, abstractmethod


class Store(ABC):
    """Keeps blocks of swapped memory, of 2 MiB each, numbered from 0. docs/swap-areas.md has an example.

    A class is found by an entry point of the group `userswap.stores`, and `--swap NAME://TEXT:SIZE` makes one
    object of it, in a process of its own. Its methods are called one at a time, by one thread. What they
    raise is an error of the medium: the errno of an OSError, else EIO."""

    size = 0
    """Bytes that it can hold; 0 if that is for SIZE to say."""

    def __init__(self, text: str) -> None:
        self.text = text

    @abstractmethod
    def write(self, block: int, data: memoryview) -> None:
        """Keep the 2 MiB of `data`, in place of what the block held. Copy them: they go with the call."""

    @abstractmethod
    def read(self, block: int, offset: int, length: int) -> bytes:
        """`length` bytes of what was written last, from `offset` on; both are multiples of 4096."""

    @abstractmethod
    def discard(self, block: int) -> None:
        """The block is not read again before it is written again. May do nothing. Where an engine has died,
        the next one may not know of it and say it once more."""
