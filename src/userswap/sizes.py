# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them: bytes, with K, M, G or T for powers of 1024."""

import re

from userswap.errors import UserswapError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
LARGEST_BYTES = 1 << 60

_FORM = re.compile(r"([0-9]+)(\.[0-9]+)?(?:([KMGT])(?:IB)?|B)?", re.ASCII)
_UNITS = {None: 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of `512M`, `1.5G`, `4096`. Raises UserswapError, naming `what`, for all else, zero too."""
    found = _FORM.fullmatch(text.strip().upper())
    if found is None:
        if re.fullmatch(r"-[0-9].*", text.strip()):
            raise UserswapError(f"{what} {text!r} is negative")
        raise UserswapError(f"{what} {text!r} is not a size: write bytes, or a number with K, M, G or T")
    whole, fraction, unit = found.groups()
    size = int(whole) * _UNITS[unit]
    if fraction:
        size += int(fraction[1:]) * _UNITS[unit] // 10 ** (len(fraction) - 1)
    if size <= 0:
        raise UserswapError(f"{what} {text!r} is zero")
    if size > LARGEST_BYTES:
        raise UserswapError(f"{what} {text!r} is larger than any machine")
    return size


def format_size(size_bytes: int) -> str:
    """A size for people, three digits or more, in the largest unit that leaves at least 1: `256.0 MiB`."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
