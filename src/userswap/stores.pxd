# SPDX-License-Identifier: GPL-2.0-or-later
"""A store keeps blocks, in slots of one swap area, and nothing else.

Its functions may wait for the medium and are called without any lock, by several threads at once. They return 0 or
-errno; -EAGAIN and -ECANCELED are no errors of a medium. Which slot is in use is not the store's business: the log
(log.pyx) hands slots out. What is read was written before, and not discarded since.

An erase-block size is not told: a slot is BLOCK_BYTES, written and discarded as a whole, and nobody would do anything
else for a store that erases in other units. One with larger ones wants slots that are handed out in their order.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from userswap.system cimport pthread_mutex_t, sys_reads

# What is asked of the process that runs a store of Python, by one message; it answers with one int32_t, 0 or -errno.
cdef enum:
    ASK_WRITE
    ASK_READ
    ASK_DISCARD

cdef struct Question:
    uint32_t what
    uint32_t slot
    uint32_t at
    uint32_t length

# The way to that process. One question is under way at a time: the class is called by one thread and need not be safe
# for more, so a second question could only wait elsewhere.
cdef struct Link:
    pthread_mutex_t lock
    uint8_t *block          # BLOCK_BYTES, shared with the process: what is written, or was read
    bint broken             # it has gone, or broke the rules
    bint ending             # nobody wants to know any more

# What encrypts a store (cipher.pyx).
cdef enum:
    KEY_BYTES = 64

cdef struct Cipher:
    uint8_t key[64]         # KEY_BYTES
    pthread_mutex_t lock    # of buffer
    uint8_t *buffer         # BLOCK_BYTES: a block on its way out

cdef struct Store:
    int (*write)(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil
    int (*read)(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil
    # Begins a read that sys_reads_finish ends; `reads` has room for one more.
    int (*read_later)(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                      uint8_t *into) noexcept nogil
    # What it kept there is not wanted any more: the medium may have the place back.
    int (*discard)(Store *store, uint32_t slot) noexcept nogil
    uint32_t slots              # size, in blocks
    int fd                      # file, device, or the socket of the link
    Link *link                  # NULL unless a process keeps the blocks
    const Store *faulty         # what it does when it does not fail; NULL unless it is to (faulty.pyx)
    const Store *plain          # what it does without encryption; NULL unless it is encrypted
    Cipher *cipher
    uint64_t medium             # ... and the area's name, among those that its key is used for
    int priority                # higher ones are used first
    bint frees                  # a page that comes in gives up its copy at once
    bint closing                # no slot is handed out: it is being emptied
    bint gone                   # emptied: its place in the table is free
    # Slots: handed out from a stack of those that came back, else in order, so that a file grows as needed.
    uint32_t slot_end
    uint32_t *returned
    uint32_t returned_count
    uint32_t discarded          # the lowest of these have been discarded
    bint never_discards         # the medium refused
    int64_t bytes_written
    int64_t writes
    int64_t bytes_read
    int64_t reads
    int64_t bytes_discarded

cdef int store_init(Store *store, int fd, int shared, uint64_t size) noexcept nogil
cdef int file_store_init(Store *store, int fd, uint64_t size) noexcept nogil
cdef void store_end_waits(Store *store) noexcept nogil
cdef void store_deinit(Store *store) noexcept nogil
