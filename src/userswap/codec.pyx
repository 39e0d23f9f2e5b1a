# SPDX-License-Identifier: GPL-2.0-or-later
"""How the bytes of a page are packed: by lz4, or zstd where it is cold, after the bytes of its words have been split.

Splitting puts all even bytes before all odd ones. Done once, twice or three times it gathers the bytes of words of
2, 4 or 8 bytes by their place in the word (in some order), as the shuffle of HDF5 and Blosc does: where words resemble
each other (numbers that lie together mostly do in sign, exponent and upper digits) equal bytes come to lie
together, and lz4, which on its own finds nothing in an array of floats, finds them.

Which of these, is found by trial: pages that are packed together mostly hold data of the same kind, so the first page
of each group is packed in all ways, and the group in the way that was best.

A packed page of PAGE_BYTES is the page as it is. Libraries: liblz4, the fastest that is everywhere; libzstd, which
packs smaller, for what is cold.
"""

from libc.stddef cimport size_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from userswap.types cimport PAGE_BYTES

cdef extern from "codec.h" nogil:
    struct codec_libraries:
        int (*lz4_state_size)() noexcept nogil
        int (*lz4_compress)(void *, const char *, char *, int, int, int) noexcept nogil
        int (*lz4_decompress)(const char *, char *, int, int) noexcept nogil
        void *(*zstd_new_compressor)() noexcept nogil
        size_t (*zstd_free_compressor)(void *) noexcept nogil
        size_t (*zstd_compress)(void *, void *, size_t, const void *, size_t, int) noexcept nogil
        void *(*zstd_new_decompressor)() noexcept nogil
        size_t (*zstd_free_decompressor)(void *) noexcept nogil
        size_t (*zstd_decompress)(void *, void *, size_t, const void *, size_t) noexcept nogil
        unsigned int (*zstd_is_error)(size_t) noexcept nogil
    int codec_load(codec_libraries *)
    void codec_split(const uint8_t *, uint8_t *, size_t)
    void codec_join(const uint8_t *, uint8_t *, size_t)

cdef enum:
    GROUP = 16              # pages packed in the same way
    HAVE_LZ4 = 1
    HAVE_ZSTD = 2
    SPLITS = 3
    ZSTD_LEVEL = 3
    MOST = 4096 - 256       # bytes; a page that stays longer is packed as it is

cdef codec_libraries _libraries
cdef int _have = codec_load(&_libraries)


cdef bint codec_available() noexcept nogil:
    """Whether pages can be packed small here: without lz4 they cannot."""
    return _have & HAVE_LZ4


cdef int packer_init(Packer *packer) noexcept nogil:
    """Returns 0 or -ENOMEM (as -12); packer_deinit cleans up in both cases."""
    memset(packer, 0, sizeof(Packer))
    if _have & HAVE_LZ4:
        packer.lz4 = malloc(_libraries.lz4_state_size())
        if packer.lz4 == NULL:
            return -12
    return 0


cdef void packer_deinit(Packer *packer) noexcept nogil:
    free(packer.lz4)
    if packer.zstd != NULL:
        _libraries.zstd_free_compressor(packer.zstd)


cdef void unpacker_init(Unpacker *unpacker) noexcept nogil:
    unpacker.zstd = NULL


cdef void unpacker_deinit(Unpacker *unpacker) noexcept nogil:
    if unpacker.zstd != NULL:
        _libraries.zstd_free_decompressor(unpacker.zstd)


# ---- splitting

cdef void _split(const uint8_t *page, uint32_t times, uint8_t *half, uint8_t *into) noexcept nogil:
    """Splits the page once, twice or three times; `half` is scratch."""
    cdef uint8_t *source = half if times == 2 else into
    cdef uint8_t *target
    cdef uint32_t turn, part, length
    codec_split(page, source, PAGE_BYTES)
    for turn in range(1, times):
        target = half if source == into else into
        length = PAGE_BYTES >> turn
        for part in range(1 << turn):
            codec_split(source + length * part, target + length * part, length)
        source = target


cdef void _join(uint8_t *split, uint32_t times, uint8_t *half, uint8_t *page) noexcept nogil:
    """Undoes _split; both `split` and `half` are overwritten."""
    cdef uint8_t *source = split
    cdef uint8_t *target
    cdef uint32_t turn, part, length
    for turn in range(times - 1, 0, -1):
        target = half if source == split else split
        length = PAGE_BYTES >> turn
        for part in range(1 << turn):
            codec_join(source + length * part, target + length * part, length)
        source = target
    codec_join(source, page, PAGE_BYTES)


# ---- packing

cdef uint32_t _compress(Packer *packer, const uint8_t *data, uint8_t *into, uint32_t room, bint cold) noexcept nogil:
    """The length, or 0 when it does not fit into `room`."""
    cdef size_t length
    if cold:
        length = _libraries.zstd_compress(packer.zstd, into, room, data, PAGE_BYTES, ZSTD_LEVEL)
        return 0 if _libraries.zstd_is_error(length) else <uint32_t>length
    return <uint32_t>_libraries.lz4_compress(packer.lz4, <const char *>data, <char *>into, PAGE_BYTES, <int>room, 1)


cdef uint32_t _compress_split(Packer *packer, const uint8_t *page, uint32_t times, uint8_t *into, uint32_t room,
                              bint cold) noexcept nogil:
    if times == 0:
        return _compress(packer, page, into, room, cold)
    _split(page, times, packer.half, packer.split)
    return _compress(packer, packer.split, into, room, cold)


cdef uint32_t _find_split(Packer *packer, const uint8_t *page, bint cold) noexcept nogil:
    """The number of splits that packs this page best; more of them must gain more, as the next pages may differ."""
    cdef uint32_t times, length
    cdef uint32_t best = 0
    cdef uint32_t least = MOST
    for times in range(SPLITS + 1):
        length = _compress_split(packer, page, times, packer.trial, least, cold)
        if length != 0 and length + length // 32 < least:
            best = times
            least = length
    return best


cdef uint32_t codec_pack(Packer *packer, const uint8_t *page, uint8_t *into, bint cold, uint8_t *codec) noexcept nogil:
    """Packs a page; `into` has room for PAGE_BYTES. Returns its length; PAGE_BYTES: as it is."""
    cdef uint32_t length = 0
    if cold and packer.zstd == NULL and _have & HAVE_ZSTD:
        packer.zstd = _libraries.zstd_new_compressor()      # 100 KiB that most threads do without
    cold = cold and packer.zstd != NULL
    if packer.lz4 != NULL:
        if packer.left == 0:
            packer.codec = _find_split(packer, page, cold)
            packer.left = GROUP
        packer.left -= 1
        length = _compress_split(packer, page, packer.codec, into, MOST, cold)
    if length == 0:
        memcpy(into, page, PAGE_BYTES)
        codec[0] = 0
        return PAGE_BYTES
    codec[0] = <uint8_t>(packer.codec | (CODEC_ZSTD if cold else 0))
    return length


cdef bint codec_unpack(Unpacker *unpacker, uint8_t codec, const uint8_t *packed, uint32_t length,
                       uint8_t *page) noexcept nogil:
    """Unpacks what codec_pack made. False when it is not what that can have made: `page` is then undefined."""
    cdef uint32_t times = codec & 3
    cdef uint8_t *target = page if times == 0 else unpacker.split
    cdef size_t got
    if length == PAGE_BYTES:
        memcpy(page, packed, PAGE_BYTES)
        return True
    if codec & CODEC_ZSTD:
        if unpacker.zstd == NULL:
            unpacker.zstd = _libraries.zstd_new_decompressor()
        if unpacker.zstd == NULL:
            return False
        got = _libraries.zstd_decompress(unpacker.zstd, target, PAGE_BYTES, packed, length)
    else:
        got = <size_t>_libraries.lz4_decompress(<const char *>packed, <char *>target, <int>length, PAGE_BYTES)
    if got != PAGE_BYTES:
        return False
    if times > 0:
        _join(unpacker.split, times, unpacker.half, page)
    return True
