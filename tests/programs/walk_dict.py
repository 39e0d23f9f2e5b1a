# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a large dict, change it, walk it in order and at random, and print a checksum.

walk_dict.py ENTRIES
"""

import hashlib
import sys


def main(entries: int) -> None:
    # Mostly strings: every full garbage collection visits, and so brings back, each list.
    table: dict[str, object] = {f"key {i}": f"value {i * 7919} " * 40 for i in range(entries)}
    for i in range(0, entries, 3):
        del table[f"key {i}"]
    for i in range(0, entries, 6):
        table[f"key {i}"] = [-i, "again", (i,)] if i % 96 == 0 else f"again {i} " * 48
    checksum = hashlib.sha256()
    for key, value in table.items():
        checksum.update(f"{key} {value}".encode())
    at = 1
    for _ in range(entries // 100):
        at = at * 1103515245 + 12345 & 0x7FFFFFFF
        checksum.update(str(table.get(f"key {at % entries}")).encode())
    print(checksum.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]))
