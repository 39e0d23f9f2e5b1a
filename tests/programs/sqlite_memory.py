# SPDX-License-Identifier: GPL-2.0-or-later
"""An in-memory database: fill a table, index it, change it, query it, and print a checksum of the answers.

sqlite_memory.py ROWS
"""

import hashlib
import sqlite3
import sys
from collections.abc import Iterator


def rows(count: int) -> Iterator[tuple[int, int, str]]:
    value = 1
    for i in range(count):
        value = value * 6364136223846793005 + 1442695040888963407 & 0xFFFFFFFFFFFFFFFF
        yield i, value >> 33, f"{value:x}" * 32


def main(count: int) -> None:
    checksum = hashlib.sha256()
    database = sqlite3.connect(":memory:")
    database.execute("create table t (id integer primary key, number integer, text text)")
    database.executemany("insert into t values (?, ?, ?)", rows(count))
    database.execute("create index i on t (number)")
    database.execute("update t set text = upper(text) where number % 7 = 0")
    database.execute("delete from t where number % 11 = 0")
    for query in (
        "select count(*), sum(number), sum(length(text)) from t",
        "select number, substr(text, 1, 20) from t order by number limit 5000",
        "select number % 100, count(*), min(text) from t group by number % 100",
        "pragma integrity_check",
    ):
        for row in database.execute(query):
            checksum.update(repr(row).encode())
    for (text,) in database.execute("select text from t order by id"):
        checksum.update(text.encode())
    database.close()
    print(checksum.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]))
