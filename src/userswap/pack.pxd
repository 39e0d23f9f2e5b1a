# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing pages of full blocks small, and cleaning: moving the live pages out of a block."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from userswap.codec cimport Packer, Unpacker
from userswap.log cimport Log
from userswap.system cimport pthread_mutex_t

# What moves pages from block to block. One thread uses it at a time.
cdef struct Mover:
    Packer packer
    Unpacker unpacker
    uint8_t page[4096]

# What is known of how soon the pages of a kind of blocks die: those of stored ones that are dead, and for how long all
# have lived, in pages times Log.clock.
cdef struct Deaths:
    double dead
    double lived

# The packer's, and the cleaner's: whoever cleans holds the lock.
cdef struct Pack:
    Mover packing
    Mover cleaning
    pthread_mutex_t clean_lock
    uint8_t *scratch        # a block, for the cleaner
    Deaths deaths[6]        # of each kind of blocks (OPEN_PLAIN ...), when the cleaner last looked
    int64_t pages           # packed by the packer, and what became of them
    int64_t bytes
    int64_t cleaned         # live pages moved by cleaning, and what they came to
    int64_t cleaned_bytes
    bint needed             # somebody waits for clean_lock who needs a slot
    int64_t ahead           # blocks cleaned ahead of need, and what their pages came to
    int64_t ahead_bytes

cdef int pack_init(Pack *pack) noexcept nogil
cdef void pack_deinit(Pack *pack) noexcept nogil
cdef int pack_next(Log *log, Pack *pack) noexcept nogil
cdef int pack_compact(Log *log, Pack *pack) noexcept nogil
cdef int pack_clean(Log *log, Pack *pack) noexcept nogil
cdef int pack_empty(Log *log, Pack *pack, uint32_t at) noexcept nogil
cdef int pack_clean_ahead(Log *log, Pack *pack) noexcept nogil
