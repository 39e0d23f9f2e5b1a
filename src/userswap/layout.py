# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints layout.h: a digest of the .pxd files of a folder, without their comments. Part of the build."""

import hashlib
import io
import sys
import tokenize
from pathlib import Path

DROPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING}


def words(path: Path) -> list[str]:
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    kept = [token for token in tokens if token.type not in DROPPED]
    # A docstring is a statement that is nothing but a string.
    return [
        token.string
        for before, token in zip([None, *kept], kept, strict=False)
        if not (
            token.type == tokenize.STRING
            and (before is None or before.type in (tokenize.NEWLINE, tokenize.INDENT))
        )
    ]


def main() -> None:
    digest = hashlib.sha256()
    for path in sorted(Path(sys.argv[1]).glob("*.pxd")):
        digest.update("\0".join([path.name, *words(path)]).encode())
    print("#include <stdint.h>")
    print(f"#define USERSWAP_LAYOUT ((uint64_t)0x{digest.hexdigest()[:16]})")


if __name__ == "__main__":
    main()
