# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from userswap.errors import UserswapError
from userswap.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("100B", 100),
        ("1K", 1 << 10),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5G", 3 << 29),
        ("0.25T", 1 << 38),
        (" 2G ", 2 << 30),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a size"),
        ("M", "is not a size"),
        ("12X", "is not a size"),
        ("1KB", "is not a size"),
        ("1e9", "is not a size"),
        ("0x10", "is not a size"),
        ("١K", "is not a size"),
        ("1,5G", "is not a size"),
        ("nan", "is not a size"),
        ("0", "is zero"),
        ("0G", "is zero"),
        ("0.1", "is zero"),
        ("-1", "is negative"),
        ("-5G", "is negative"),
        ("9999999999999T", "is larger than any machine"),
    ],
)
def test_other_texts_are_refused(text: str, why: str) -> None:
    with pytest.raises(UserswapError, match=why) as refusal:
        parse_size(text, "--ram")
    assert str(refusal.value).startswith("--ram ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_size(size) == text
