# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a block in the log."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from userswap.log cimport Block, Log

cdef void log_changed(Log *log) noexcept nogil
cdef void block_list_add(Log *log, int name, uint32_t at, bint first) noexcept nogil
cdef void block_list_take(Log *log, uint32_t at) noexcept nogil
cdef void buffer_put(Log *log, uint8_t *buffer) noexcept nogil
cdef uint8_t *buffer_take(Log *log, uint32_t left) noexcept nogil
cdef void block_id_return(Log *log, uint32_t at) noexcept nogil
cdef void block_not_plain(Log *log, Block *block) noexcept nogil
cdef void block_free_if_unused(Log *log, uint32_t at) noexcept nogil
cdef int block_lists_make(Block *block) noexcept nogil
cdef void block_lists_shrink(Block *block) noexcept nogil
cdef void block_lists_free(Block *block) noexcept nogil
