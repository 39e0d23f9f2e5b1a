# SPDX-License-Identifier: GPL-2.0-or-later
"""The counts of a run: their names and meaning, the line at the end, the file of `--stats`."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from userswap.errors import UserswapError, reason
from userswap.sizes import format_size

PAGE_BYTES = 4096

# In the order of the life of a page. docs/statistics.md says the same to users; a test compares them.
FIELDS = {
    "wall_seconds": "time from the start of the program to its end, in seconds",
    "ram_limit_bytes": "what --ram came to",
    "peak_resident_bytes": "the most memory that the process tree and the engine had together",
    "resident_bytes": "the memory that they had at the end",
    "processes_attached": "processes that the engine entered",
    "forks": "forks of processes that the engine had entered",
    "pages_first_touched": "fresh pages that the engine handed out, near the limit",
    "limit_waits": "faults that had to wait for room under the limit",
    "takeovers": "engines that died, and another one took over",
    "pages_evicted": "pages taken out of a process",
    "pages_evicted_clean": "of these, pages unchanged since they were brought back: not written again",
    "evict_refused_pinned": "pages that could not be taken out, since the kernel or a device held them",
    "pages_filled": "evicted pages of one repeated word, such as zeros: never written, in no swap area",
    "pages_discarded": "evicted pages that the program gave back before it ended",
    "pages_discarded_in_flight": "of these, pages given back in the middle of their eviction: never written",
    "faults": "accesses to an evicted page, each answered by the engine",
    "faults_from_memory": "faults answered without reading a swap area",
    "faults_write_protected": "first writes to a page whose copy had been kept",
    "pages_in": "pages brought back, by a fault or beside one",
    "pages_readahead": "pages brought back before they were asked for",
    "pages_readahead_used": "pages of readahead that the program then used",
    "reads_repeated": "reads that failed, or gave not what had been written, and were made again",
    "pages_refaulted": "faults on pages that had been evicted a short while ago",
    "pages_vanished": "pages that the kernel had dropped on its own, after MADV_FREE",
    "swap_peak_bytes": "the most that the swap areas held at once",
    "blocks_cleaned": "blocks of a swap area whose live pages were packed anew, to gain room",
    "blocks_cleaned_ahead": "of these, blocks cleaned before the room was needed",
    "store_bytes_written": "bytes written to swap areas",
    "store_writes": "writes to swap areas",
    "store_bytes_read": "bytes read from swap areas",
    "store_reads": "reads from swap areas",
    "packed_resident_bytes": "memory that packed blocks had at the end",
    "pages_packed": "pages that were packed small",
    "bytes_packed": "what these came to",
    "pages_cleaned": "live pages that cleaning packed anew",
    "store_bytes_discarded": "bytes of swap areas given back to the file system or device as they were free",
    "write_amplification": "bytes written to swap areas for each that was not written to clean a block",
    "page_table_entries_visited": "page table entries that emptying swap areas has looked at",
    "swap_bytes": "what the swap areas held at the end",
    "entries": "entries of the swapper space in use at the end",
    "blocks": "blocks in use at the end, in memory or in a swap area",
    "entry_bits": "the size of an entry: 64, or what --entry-bits said",
    "processes_left_alone": "a list of the processes that the engine could not enter: pid, name, why",
}

Counts = Mapping[str, int | float]
LeftAlone = Sequence[tuple[int, str, str]]


def summary(counts: Counts, left_alone: LeftAlone) -> str:
    """The line at the end of a run, without `userswap: `."""
    line = (
        f"{counts.get('wall_seconds', 0):.1f} s, peak {_bytes(counts, 'peak_resident_bytes')} "
        f"of {_bytes(counts, 'ram_limit_bytes')}"
    )
    if counts.get("pages_evicted", 0):
        line += (
            f"; out {_pages(counts, 'pages_evicted')} ({_pages(counts, 'pages_filled')} one word)"
            f", in {_pages(counts, 'pages_in')} by {int(counts.get('faults', 0))} faults"
            f"; swap peak {_bytes(counts, 'swap_peak_bytes')}"
            f", written {_bytes(counts, 'store_bytes_written')}, read {_bytes(counts, 'store_bytes_read')}"
        )
    else:
        line += "; nothing was swapped"
    if left_alone:
        line += "; left alone: " + ", ".join(f"{name} ({pid}, {why})" for pid, name, why in left_alone)
    return line


def check_writable(path: str) -> str:
    """Where the statistics will be written, as an absolute path. Raises UserswapError if they cannot be."""
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserswapError(f"--stats {path}: not a regular file")
    if not os.path.isdir(directory):
        raise UserswapError(f"--stats {path}: {directory} is not a directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserswapError(f"--stats {path}: {directory} cannot be written")
    return path


def write(path: str, counts: Counts, left_alone: LeftAlone) -> None:
    """Write the JSON at once or not at all. Raises UserswapError."""
    import json

    document: dict[str, object] = {name: counts.get(name, 0) for name in FIELDS}
    document.update(counts)
    document["processes_left_alone"] = [
        {"pid": pid, "name": name, "why": why} for pid, name, why in left_alone
    ]
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise UserswapError(f"--stats {path}: {reason(error)}") from error


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _bytes(counts: Counts, name: str) -> str:
    return format_size(int(counts.get(name, 0)))


def _pages(counts: Counts, name: str) -> str:
    return format_size(int(counts.get(name, 0)) * PAGE_BYTES)
