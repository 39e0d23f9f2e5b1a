# SPDX-License-Identifier: GPL-2.0-or-later
"""`userswap simulate`: what other policies, and other memories, would have brought in, from what `--trace`
recorded.

Ours are the engine's own reclaim and readahead (simulator.pyx); the others are libcachesim's. A miss is a
page that is brought in again: first uses, which all have in common, are none."""

import errno
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from userswap.errors import UserswapError, reason
from userswap.policies import BEHIND, LRU, OPTIMUM, OTHERS, OURS
from userswap.sizes import format_size, parse_size
from userswap.statistics import PAGE_BYTES
from userswap.traces import Trace, Uses

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALL = (*OURS, *OTHERS)
PARTS = ("100%", "75%", "50%", "35%", "25%")  # of the most pages that were in use at once
LEAST_PAGES = 256

Misses = dict[tuple[str, int], dict[str, int]]  # by file and pages of memory, by policy


def simulate(
    files: Sequence[str], policies: Sequence[str], rams: Sequence[str], as_json: bool, plot: str | None
) -> int:
    """Prints a table for each file. Returns the exit status. Raises UserswapError."""
    _refuse_without_packages(plot is not None)
    if plot is not None and not os.path.isdir(os.path.dirname(plot) or "."):
        raise UserswapError(f"--plot {plot}: {os.strerror(errno.ENOENT)}")
    wanted = tuple(policies) or ALL
    found: Misses = {}
    described = []
    for path in files:
        trace = Trace(path)
        uses = trace.uses()
        if not len(uses.pages):
            raise UserswapError(f"{path}: nothing was swapped: there is nothing to simulate")
        memories = [_pages_of(ram, uses) for ram in rams or PARTS]
        with _Library(uses) as library:
            for pages in memories:
                found[path, pages] = {
                    name: _ours(uses, pages, name) if name in OURS else library.misses(name, pages)
                    for name in wanted
                }
        described.append((trace, uses, memories))
    if as_json:
        print(json.dumps([_document(*one, found) for one in described], indent=2))
    else:
        for one in described:
            _print_table(*one, wanted, found)
        _print_summary(wanted, found)
    if plot is not None:
        _plot(plot, described, wanted, found)
    return 0


def _refuse_without_packages(plots: bool) -> None:
    try:
        _import_library()
        import numpy  # noqa: F401

        if plots:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it does with less
            import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserswapError(
            f"simulate needs packages that are not installed ({error.name}): pip install 'userswap[simulate]'"
        ) from error


def _import_library() -> None:
    """It makes a folder for traces to download, in a home that may not be there: of no use here."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LCS_HUB_CACHE"] = folder
        import libcachesim  # noqa: F401


def _pages_of(ram: str, uses: Uses) -> int:
    part = re.fullmatch(r"([0-9]{1,4})%", ram)
    pages = uses.most_pages * int(part[1]) // 100 if part else parse_size(ram, "--ram") // PAGE_BYTES
    if pages < LEAST_PAGES:  # with much less the library aborts
        raise UserswapError(f"--ram {ram}: less than 1M")
    return pages


# ---- ours


def _ours(uses: Uses, pages: int, policy: str) -> int:
    from userswap.simulator import Memory

    memory = Memory(pages, behind=policy == BEHIND)
    begin = 0
    for at, first, last in uses.gone:
        memory.touch(uses.pages[begin:at])
        memory.give_back(first, last - first)
        begin = at
    memory.touch(uses.pages[begin:])
    return memory.brought


# ---- those of the library


class _Library:
    """The uses as a file that libcachesim reads: of each the thing, and when it is used next, which Belady's
    rule asks for."""

    def __init__(self, uses: Uses) -> None:
        import numpy as np

        self._uses = uses
        kinds = np.dtype([("time", "<u4"), ("thing", "<u8"), ("size", "<u4"), ("next", "<i8")])
        requests = np.zeros(len(uses.things), kinds)
        requests["time"] = np.arange(len(requests))
        requests["thing"] = uses.things + 1
        requests["size"] = 1
        requests["next"] = _next_uses(uses.things)
        self._file = tempfile.NamedTemporaryFile(prefix="userswap-")  # noqa: SIM115
        requests.tofile(self._file)
        self._file.flush()

    def __enter__(self) -> "_Library":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def misses(self, policy: str, pages: int) -> int:
        import libcachesim

        reader = libcachesim.TraceReader(self._file.name, libcachesim.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(libcachesim, OTHERS[policy])(pages)
        total = begin = 0
        for at, things in [*self._uses.removed, (len(self._uses.things), self._uses.things[:0])]:
            if at > begin:
                total += round(cache.process_trace(reader, begin, at - begin)[0] * (at - begin))
                begin = at
            for thing in things:
                cache.remove(int(thing) + 1)
        return total - self._uses.firsts


def _next_uses(things: "npt.NDArray[np.int64]") -> "npt.NDArray[np.int64]":
    """Of each use the number of the next one of the same thing, or -1."""
    import numpy as np

    order = np.argsort(things, kind="stable")
    again = np.flatnonzero(things[order[1:]] == things[order[:-1]])
    following = np.full(len(things), -1, np.int64)
    following[order[again]] = order[again + 1]
    return following


# ---- what is said


def _document(trace: Trace, uses: Uses, memories: Sequence[int], found: Misses) -> dict[str, Any]:
    return {
        "file": trace.path,
        "recorded_in_bytes": trace.limit_pages * PAGE_BYTES,
        "uses": len(uses.pages),
        "first_uses": uses.firsts,
        "most_bytes": uses.most_pages * PAGE_BYTES,
        "misses": [
            {"ram_bytes": pages * PAGE_BYTES, "policy": name, "misses": misses}
            for pages in memories
            for name, misses in found[trace.path, pages].items()
        ],
    }


def _cell(misses: Mapping[str, int], name: str) -> str:
    best = misses.get(OPTIMUM)
    return f"{misses[name]} ({misses[name] / best:.1f})" if best and name != OPTIMUM else f"{misses[name]}"


def _print_table(
    trace: Trace, uses: Uses, memories: Sequence[int], wanted: Sequence[str], found: Misses
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False)
    console.print(
        f"{os.path.basename(trace.path)}: recorded in {format_size(trace.limit_pages * PAGE_BYTES)}, "
        f"at most {format_size(uses.most_pages * PAGE_BYTES)} in use; "
        f"{len(uses.pages)} uses known, {uses.firsts} of them the first of a page. Pages brought in again"
        f"{' (and times the optimum)' if OPTIMUM in wanted else ''}, by memory:"
    )
    heads = [
        format_size(pages * PAGE_BYTES) + ("*" if pages < trace.limit_pages else "") for pages in memories
    ]
    table = Table("policy", *(Column(head, justify="right") for head in heads), pad_edge=False)
    for name in wanted:
        table.add_row(name, *(_cell(found[trace.path, pages], name) for pages in memories))
    console.print(table)
    if any(pages < trace.limit_pages for pages in memories):
        console.print(
            "* less than it was recorded in: uses of what stayed in memory then are not known, and lack here",
            style="dim",
        )


def _print_summary(wanted: Sequence[str], found: Misses) -> None:
    """Over all files and memories in which the best rule misses at all."""
    for name in wanted:
        if name == OPTIMUM:
            continue
        said = []
        best = _mean(found, name, OPTIMUM)
        if best is not None:
            said.append(f"{best:.2f} times the misses of the optimum in geometric mean")
        worst = max(_ratios(found, name, LRU), default=None)
        if worst is not None and name != LRU:
            said.append(f"at most {worst:.2f} times LRU's")
        if said:
            print(f"{name}: {', '.join(said)}")


def _ratios(found: Misses, name: str, other: str) -> Iterator[float]:
    for misses in found.values():
        if misses.get(other) and name in misses:
            yield misses[name] / misses[other]


def _mean(found: Misses, name: str, other: str) -> float | None:
    logarithms = [math.log(max(ratio, 1e-9)) for ratio in _ratios(found, name, other)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def _plot(
    path: str,
    described: Sequence[tuple[Trace, Uses, Sequence[int]]],
    wanted: Sequence[str],
    found: Mapping[tuple[str, int], Mapping[str, int]],
) -> None:
    """Misses over memory, a part of the picture for each file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, parts = pyplot.subplots(
        len(described), 1, figsize=(8, 4.5 * len(described)), squeeze=False, layout="constrained"
    )
    for (trace, uses, memories), axes in zip(described, parts[:, 0], strict=True):
        at = sorted(memories)
        for name in wanted:
            axes.plot(
                [100 * pages / uses.most_pages for pages in at],
                [found[trace.path, pages][name] for pages in at],
                marker="o",
                label=name,
                linewidth=2.5 if name in OURS else 1,
                linestyle="--" if name == OPTIMUM else "-",
            )
        axes.set(
            title=os.path.basename(trace.path),
            xlabel="memory, % of the most in use",
            ylabel="pages brought in again",
            ylim=(0, None),
        )
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise UserswapError(f"--plot {path}: {text}") from error
    finally:
        pyplot.close(figure)
