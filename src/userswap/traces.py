# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace files: what `--trace` makes, and what the engine has recorded in one (trace.pxd)."""

import os
from collections.abc import Sequence

from userswap.areas import Area, abandon_areas
from userswap.errors import UserswapError, reason

# Known to type checkers by its name. The module typing would cost each process of ours a megabyte.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Pages = npt.NDArray[np.uint64]

MAGIC = b"userswap trace 1"  # as long as a record
RECORD = [("what", "<u8"), ("ticks", "<u4"), ("before", "<u2"), ("count", "<u2")]
KIND_BITS, PAGE_BITS = 4, 36
LIMIT, FOUND, TOUCHED, FILLED, WRITTEN, EVICTED, GIVEN_BACK, MOVED, MOVED_TO, ENDED = range(1, 11)
BY_FAULTS = (TOUCHED, FILLED, WRITTEN)
LEAF_SHIFT = 9  # pages, to a stretch of them


def create(path: str | None, areas: Sequence[Area]) -> int:
    """Opens a new trace for the engine, that only its user can read; -1 where none is asked for. Raises
    UserswapError, with nothing left of the areas that have been opened."""
    if path is None:
        return -1
    try:
        return _open_new(path)
    except UserswapError:
        abandon_areas(areas)
        raise


def _open_new(path: str) -> int:
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserswapError(f"--trace {path}: not a regular file")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.write(fd, MAGIC)
    except OSError as error:
        raise UserswapError(f"--trace {path}: {reason(error)}") from error
    return fd


class Trace:
    """A file of `--trace`, read.

    limit_pages: the least limit of the run. records: how many there are. Raises UserswapError where it is
    none, or damaged."""

    def __init__(self, path: str) -> None:
        import numpy as np

        form = np.dtype(RECORD)
        try:
            with open(path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise UserswapError(f"{path}: not a trace of userswap run --trace")
                data = file.read()
        except OSError as error:
            raise UserswapError(f"{path}: {reason(error)}") from error
        # An engine that was killed may have written half a record: nothing behind it is in its place.
        records = np.frombuffer(data, form, len(data) // form.itemsize)
        self._kind = (records["what"] & ((1 << KIND_BITS) - 1)).astype(np.uint8)
        if len(records) * form.itemsize != len(data) or np.any((self._kind < LIMIT) | (self._kind > ENDED)):
            raise UserswapError(f"{path}: damaged")
        self._page = records["what"] >> KIND_BITS & ((1 << PAGE_BITS) - 1)
        self._space = records["what"] >> (KIND_BITS + PAGE_BITS)
        self._before = records["before"].astype(np.int64)
        self._count = records["count"].astype(np.int64)
        self._span = self._before << 16 | self._count  # pages, of what no fault tells
        self.path = path
        self.records = len(records)
        limits = self._page[self._kind == LIMIT]
        self.limit_pages = int(limits.min()) if len(limits) else 0

    def count(self, kind: int) -> int:
        """Of how many pages it tells this; of address spaces, of how many."""
        counts = self._count if kind in BY_FAULTS else self._span
        return int(counts[self._kind == kind].sum())

    def uses(self) -> "Uses":
        """What the program is known to have used: of each fault its page, and what came beside it, which is
        taken to have been used (but not what was only made writable beside a page that was written to)."""
        import numpy as np

        used = np.isin(self._kind, (FOUND, *BY_FAULTS))
        count = np.where(self._kind == FOUND, self._span, np.where(self._kind == WRITTEN, 1, self._count))
        before = np.where((self._kind == FOUND) | (self._kind == WRITTEN), 0, self._before)
        start = (self._space << PAGE_BITS | self._page).astype(np.int64) - before
        places = _expand(start[used], count[used], before[used])
        leaves, compact = _compacted(places)
        ends = np.zeros(self.records + 1, np.int64)
        np.cumsum(np.where(used, count, 0), out=ends[1:])
        gone: list[tuple[int, int, int]] = []
        for at in np.flatnonzero(np.isin(self._kind, (GIVEN_BACK, MOVED, MOVED_TO, ENDED))):
            low, high = self._gone(int(at))
            gone += [(int(ends[at]), first, last) for first, last in _parts(leaves, low, high)]
        return Uses(compact, gone)

    def _gone(self, at: int) -> tuple[int, int]:
        """The places that a record says are empty now. What was moved is taken to be new where it is now."""
        space = int(self._space[at]) << PAGE_BITS
        if self._kind[at] == ENDED:
            return space, space + (1 << PAGE_BITS)
        start = space + int(self._page[at])
        return start, start + int(self._span[at])


class Uses:
    """A sequence of uses of pages.

    pages: of each the page, in a numbering in which neighbours are neighbours.
    gone: before which use (a place in `pages`) which pages, the first and the one behind the last, were given
        back, in order.
    things: of each use a number for what was used: another one after the page was given back.
    removed: as `gone`, of things.
    most_pages: how many were in use at most at once. firsts: how many uses were the first of a thing."""

    def __init__(self, pages: "Pages", gone: list[tuple[int, int, int]]) -> None:
        import numpy as np

        self.pages = pages
        self.gone = gone
        self.things = np.empty(len(pages), np.int64)
        self.removed: list[tuple[int, npt.NDArray[np.int64]]] = []  # the things that went, as `gone`
        room = int(pages.max()) + 1 if len(pages) else 1
        life = np.zeros(room, np.int64)
        there = np.zeros(room, np.bool_)
        live = most = begin = 0
        for at, first, last in [*gone, (len(pages), 0, 0)]:
            now = pages[begin:at]
            self.things[begin:at] = life[now] * room + now.astype(np.int64)
            live += int(np.count_nonzero(~there[np.unique(now)]))
            there[now] = True
            most = max(most, live)
            begin = at
            old = first + np.flatnonzero(there[first:last])
            if len(old):
                self.removed.append((at, life[old] * room + old))
                there[old] = False
                life[old] += 1
                live -= len(old)
        self.most_pages = most
        self.firsts = len(np.unique(self.things))


def _expand(
    start: "npt.NDArray[np.int64]", count: "npt.NDArray[np.int64]", before: "npt.NDArray[np.int64]"
) -> "npt.NDArray[np.int64]":
    """All pages of the spans: of each the one that faulted, then the others; downwards where the fault was on
    the last one."""
    import numpy as np

    begins = np.cumsum(count) - count
    within = np.arange(int(count.sum())) - np.repeat(begins, count)
    fault = np.repeat(before, count)
    down = np.repeat((before == count - 1) & (count > 1), count)
    other = np.where(within <= fault, within - 1, within)  # with the page of the fault drawn to the front
    return np.repeat(start, count) + np.where(within == 0, fault, np.where(down, fault - within, other))


def _compacted(places: "npt.NDArray[np.int64]") -> "tuple[Leaves, Pages]":
    import numpy as np

    leaves = Leaves(np.unique(places >> LEAF_SHIFT))
    at = np.searchsorted(leaves.old, places >> LEAF_SHIFT)
    return leaves, (leaves.new[at] << LEAF_SHIFT | places & ((1 << LEAF_SHIFT) - 1)).astype(np.uint64)


class Leaves:
    """Stretches of the address spaces that are used at all, and their numbers among these: neighbours stay
    neighbours, and others do not become any."""

    def __init__(self, old: "npt.NDArray[np.int64]") -> None:
        import numpy as np

        self.old = old
        self.new = np.cumsum(np.where(np.diff(old, prepend=-2) == 1, 1, 2)) if len(old) else old


def _parts(leaves: Leaves, low: int, high: int) -> "Iterator[tuple[int, int]]":
    """What of [low, high) is used, in the new numbers."""
    import numpy as np

    first = int(np.searchsorted(leaves.old, low >> LEAF_SHIFT))
    last = int(np.searchsorted(leaves.old, (high - 1) >> LEAF_SHIFT, side="right"))
    for at in range(first, last):
        old, new = int(leaves.old[at]) << LEAF_SHIFT, int(leaves.new[at]) << LEAF_SHIFT
        start, end = max(low - old, 0), min(high - old, 1 << LEAF_SHIFT)
        if start < end:
            yield new + start, new + end
