# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing of pages, with the real libraries, against lz4 of single pages."""

import random

import lz4.block
import pytest
from bench.codecs import numeric, text

from userswap import tests_door as door

PAGE = 4096
SIZE = 1 << 20
SPLIT = 3  # bits 0 and 1 of a codec
ZSTD = 4

KINDS = {
    "random": random.Random(1).randbytes(SIZE),
    **numeric(SIZE),
    "text": text(SIZE),
    "almost one word": (b"\1\2\3\4\5\6\7\0" * 511 + b"\0" * 8) * 64,
}


def pages(data: bytes) -> list[bytes]:
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]


def lz4_length(page: bytes) -> int:
    """As zram keeps it: packed by lz4 on its own, or as it is."""
    return min(len(lz4.block.compress(page, store_size=False)), PAGE)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_comes_back(kind: str, cold: bool) -> None:
    codec = door.Codec()
    for page in pages(KINDS[kind]):
        how, packed = codec.pack(page, cold)
        assert len(packed) <= PAGE
        assert codec.unpack(how, packed) == page


def test_every_way_to_pack_is_used_by_some_data() -> None:
    codec = door.Codec()
    used = set()
    for kind in KINDS.values():
        for cold in (False, True):
            packed = [codec.pack(page, cold) for page in pages(kind)]
            used |= {how for how, data in packed if len(data) < PAGE}
    assert {how & ZSTD for how in used} == {0, ZSTD}
    assert {how & SPLIT for how in used} >= {0, 3}


@pytest.mark.parametrize("width", [2, 4, 8])
def test_words_of_each_width_are_split(width: int) -> None:
    """Words whose upper bytes are alike and whose lowest is noise: only splitting at their width helps."""
    noise = random.Random(width).randbytes(PAGE // width)
    page = b"".join(bytes([low, *range(100, 99 + width)]) for low in noise)
    how, packed = door.Codec().pack(page)
    assert how & SPLIT > 0
    assert len(packed) < PAGE / width * 1.2 + 64
    assert door.Codec().unpack(how, packed) == page


def lengths(kind: str) -> tuple[int, int]:
    """Of all pages: as we pack them, and as lz4 does."""
    codec = door.Codec()
    ours = sum(len(codec.pack(page)[1]) for page in pages(KINDS[kind]))
    return ours, sum(lz4_length(page) for page in pages(KINDS[kind]))


@pytest.mark.parametrize("kind", ["float64 walk", "sorted ids", "small ints"])
def test_numbers_are_packed_better_than_by_lz4_alone(kind: str) -> None:
    ours, by_lz4 = lengths(kind)
    assert ours < by_lz4 * 0.95


@pytest.mark.parametrize("kind", ["random", "text", "prices"])
def test_the_rest_is_packed_no_worse_than_by_lz4_alone(kind: str) -> None:
    ours, by_lz4 = lengths(kind)
    assert ours <= by_lz4 * 1.005  # a group is packed as its first page is best packed


@pytest.mark.parametrize("kind", ["prices", "text"])
def test_cold_pages_are_packed_smaller(kind: str) -> None:
    codec = door.Codec()
    warm = sum(len(codec.pack(page)[1]) for page in pages(KINDS[kind]))
    cold = sum(len(codec.pack(page, True)[1]) for page in pages(KINDS[kind]))
    assert cold < warm * 0.9


@pytest.mark.parametrize("cold", [False, True])
def test_damaged_bytes_are_refused_or_give_a_page(cold: bool) -> None:
    """Nothing beyond the page is ever read or written: a guard of the tests' own allocator would be hit."""
    rng = random.Random(2)
    codec = door.Codec()
    refused = 0
    for page in pages(KINDS["prices"])[:64]:
        how, packed = codec.pack(page, cold)
        for _ in range(32):
            damaged = bytearray(packed)
            for _ in range(rng.randrange(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            back = codec.unpack(how, bytes(damaged))
            assert back is None or len(back) == PAGE
            refused += back is None
        assert codec.unpack(how, packed[: len(packed) // 2]) is None
    assert refused > 0
