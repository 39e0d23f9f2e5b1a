# SPDX-License-Identifier: GPL-2.0-or-later
"""How the bytes of a page are packed."""

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    CODEC_ZSTD = 4              # else lz4; bits 0-1: how many times the bytes were split

# What one thread packs with.
cdef struct Packer:
    void *lz4
    void *zstd
    uint32_t codec              # of the group under way
    uint32_t left               # pages until it is chosen anew
    uint8_t split[4096]
    uint8_t half[4096]
    uint8_t trial[4096]

# What one thread unpacks with.
cdef struct Unpacker:
    void *zstd
    uint8_t split[4096]
    uint8_t half[4096]

cdef bint codec_available() noexcept nogil
cdef int packer_init(Packer *packer) noexcept nogil
cdef void packer_deinit(Packer *packer) noexcept nogil
cdef void unpacker_init(Unpacker *unpacker) noexcept nogil
cdef void unpacker_deinit(Unpacker *unpacker) noexcept nogil
cdef uint32_t codec_pack(Packer *packer, const uint8_t *page, uint8_t *into, bint cold, uint8_t *codec) noexcept nogil
cdef bint codec_unpack(Unpacker *unpacker, uint8_t codec, const uint8_t *packed, uint32_t length,
                       uint8_t *page) noexcept nogil
