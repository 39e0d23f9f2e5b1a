# SPDX-License-Identifier: GPL-2.0-or-later
"""The arena (arena.pxd): where the state that must outlive the engine lies.

    base                                                          the end
    +--------+---------------------------------------------------+.........
    | header | what was taken, in the order of its coming        | mapped later
    +--------+---------------------------------------------------+.........

What is given back waits in a list of its size. An engine has one arena for its whole life."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from userswap.system cimport (
    ENOMEM,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
    sys_drop,
    sys_file_pages,
    sys_file_size,
    sys_map_at,
    sys_map_shared,
    sys_memory_file,
    sys_punch,
    sys_release,
    sys_reserve_pages,
    sys_resize,
)
from userswap.types cimport BLOCK_BYTES, PAGE_BYTES

cdef extern from "layout.h":
    const uint64_t USERSWAP_LAYOUT      # of all structures: a digest of the .pxd files

cdef enum:
    CLASSES = 256 + 112         # sizes of 16 to 4096 bytes in steps of 16, of up to ARENA_SMALL in steps of 256
    BUFFERS = 1 << 16
    WORD_BITS = 64

cdef uint64_t MAGIC = 0x6E6572617773752F      # what makes an arena
cdef uint64_t BASES[2]
BASES[0] = <uint64_t>0x100000000000
BASES[1] = <uint64_t>0x180000000000
cdef uint64_t BUFFER_BASE = <uint64_t>0x200000000000
cdef uint64_t STEP = <uint64_t>64 << 20         # bytes that are mapped at once

cdef struct Header:
    uint64_t magic
    uint64_t layout
    uint64_t base
    void *root                  # set once all is there

cdef struct Arena:
    pthread_mutex_t lock        # nothing is taken under it
    int fd
    Header *header              # NULL: none
    uint64_t end
    uint64_t mapped
    void *free_lists[368]       # CLASSES

cdef struct Buffers:
    pthread_mutex_t lock        # nothing is taken under it
    int fd
    uint64_t used[1024]         # BUFFERS // WORD_BITS: a bit for each that is somebody's
    uint64_t mapped[1024]       # ... that is mapped, for good

cdef Arena arena
cdef Buffers buffers
cdef Header *old                # of the one that is read
cdef uint64_t old_bytes
arena.fd = buffers.fd = -1
arena.header = old = NULL
pthread_mutex_init(&arena.lock, NULL)
pthread_mutex_init(&buffers.lock, NULL)


# ---- an arena of one's own

cdef int arena_begin() noexcept nogil:
    """Makes one, at another address than that which was opened. Returns 0 or -errno."""
    cdef uint64_t base = BASES[1] if <uint64_t>old == BASES[0] else BASES[0]
    cdef int fd = sys_memory_file(b"userswap-arena", STEP)
    if fd < 0:
        return fd
    if sys_map_at(fd, base, 0, STEP, True) != 0:
        return -ENOMEM
    arena.fd = fd
    arena.end = base + PAGE_BYTES
    arena.mapped = base + STEP
    arena.header = <Header *>base
    arena.header.base = base
    arena.header.layout = USERSWAP_LAYOUT
    arena.header.magic = MAGIC
    return 0


cdef int arena_fd() noexcept nogil:
    return arena.fd


cdef void arena_set_root(void *root) noexcept nogil:
    """All is there: from now on it can be taken over."""
    arena.header.root = root


cdef uint64_t arena_pages() noexcept nogil:
    """Pages of memory that both files hold."""
    cdef uint64_t pages = 0
    if arena.fd >= 0:
        pages += sys_file_pages(arena.fd)
    if buffers.fd >= 0:
        pages += sys_file_pages(buffers.fd)
    return pages


cdef void *_extend(uint64_t bytes, uint64_t alignment) noexcept nogil:
    """Takes what was never used. NULL without address space. arena.lock is held."""
    cdef uint64_t at = (arena.end + alignment - 1) // alignment * alignment
    cdef uint64_t more
    if at + bytes > arena.mapped:
        more = (at + bytes - arena.mapped + STEP - 1) // STEP * STEP
        if sys_resize(arena.fd, arena.mapped - <uint64_t>arena.header + more) != 0 or sys_map_at(
                arena.fd, arena.mapped, arena.mapped - <uint64_t>arena.header, more, True) != 0:
            return NULL
        arena.mapped += more
    arena.end = at + bytes
    return <void *>at


cdef int _class_of(uint64_t *bytes) noexcept nogil:
    """The list for objects of this size, which is rounded up."""
    if bytes[0] <= 4096:
        bytes[0] = (bytes[0] + 15) // 16 * 16
        return <int>(bytes[0] // 16) - 1
    bytes[0] = (bytes[0] + 255) // 256 * 256
    return 255 + <int>((bytes[0] - 4096) // 256)


cdef void *arena_take(uint64_t bytes) noexcept nogil:
    cdef void *at
    cdef int which
    if arena.header == NULL:
        return calloc(1, bytes)
    if bytes > ARENA_SMALL:
        return arena_reserve(bytes)
    which = _class_of(&bytes)
    pthread_mutex_lock(&arena.lock)
    at = arena.free_lists[which]
    if at != NULL:
        arena.free_lists[which] = (<void **>at)[0]
    else:
        at = _extend(bytes, 16)
    pthread_mutex_unlock(&arena.lock)
    if at != NULL:
        memset(at, 0, bytes)
    return at


cdef void arena_give(void *at, uint64_t bytes) noexcept nogil:
    """Nothing that outlives the engine may point to it any more."""
    cdef int which
    if arena.header == NULL:
        free(at)
        return
    if at == NULL:
        return
    if bytes > ARENA_SMALL:
        arena_drop(at, bytes)
        return
    which = _class_of(&bytes)
    pthread_mutex_lock(&arena.lock)
    (<void **>at)[0] = arena.free_lists[which]
    arena.free_lists[which] = at
    pthread_mutex_unlock(&arena.lock)


cdef void *arena_reserve(uint64_t bytes) noexcept nogil:
    cdef void *at
    if arena.header == NULL:
        return sys_reserve_pages(bytes)
    pthread_mutex_lock(&arena.lock)
    at = _extend((bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    pthread_mutex_unlock(&arena.lock)
    return at


cdef void arena_drop(void *at, uint64_t bytes) noexcept nogil:
    """Whole pages: they read as zeros."""
    if arena.header == NULL:
        sys_drop(at, bytes)
    else:
        sys_punch(arena.fd, <uint64_t>at - <uint64_t>arena.header, bytes)


cdef void arena_release(void *at, uint64_t bytes) noexcept nogil:
    """Of the process' own memory alone: an arena ends as a whole."""
    if arena.header == NULL and at != NULL:
        sys_release(at, bytes)


# ---- an arena that another engine has left

cdef void *arena_open(int fd) noexcept nogil:
    """Maps it to be read. NULL if it is none, of another layout, or was not finished."""
    global old, old_bytes
    cdef uint64_t bytes = sys_file_size(fd)
    cdef Header *header = <Header *>sys_map_shared(fd, PAGE_BYTES)
    cdef uint64_t base = 0
    if header == NULL:
        return NULL
    if header.magic == MAGIC and header.layout == USERSWAP_LAYOUT and (
            header.base == BASES[0] or header.base == BASES[1]):
        base = header.base
    sys_release(header, PAGE_BYTES)
    if base == 0 or sys_map_at(fd, base, 0, bytes, False) != 0:
        return NULL
    old = <Header *>base
    old_bytes = bytes
    return old.root


cdef bint arena_has(const void *at, uint64_t bytes) noexcept nogil:
    """Whether all of this lies in the arena that was opened."""
    return old != NULL and <uint64_t>at > <uint64_t>old and <uint64_t>at + bytes <= <uint64_t>old + old_bytes


cdef void arena_close() noexcept nogil:
    global old
    if old != NULL:
        sys_release(old, old_bytes)
        old = NULL


# ---- blocks in memory

cdef int buffers_begin(int fd) noexcept nogil:
    """With the file of an engine before, or -1. Returns 0 or -errno."""
    buffers.fd = fd if fd >= 0 else sys_memory_file(b"userswap-blocks", BUFFERS * <uint64_t>BLOCK_BYTES)
    return 0 if buffers.fd >= 0 else buffers.fd


cdef int buffers_fd() noexcept nogil:
    return buffers.fd


cdef bint _has_bit(const uint64_t *bits, uint32_t number) noexcept nogil:
    return (bits[number // WORD_BITS] >> (number % WORD_BITS)) & 1


cdef void _set_bit(uint64_t *bits, uint32_t number) noexcept nogil:
    bits[number // WORD_BITS] |= <uint64_t>1 << (number % WORD_BITS)


cdef void _clear_bit(uint64_t *bits, uint32_t number) noexcept nogil:
    bits[number // WORD_BITS] &= ~(<uint64_t>1 << (number % WORD_BITS))


cdef uint32_t _free_buffer() noexcept nogil:
    """The first one that is nobody's; BUFFERS if there is none. buffers.lock is held."""
    cdef uint32_t number = 0
    while number < BUFFERS and (buffers.used[number // WORD_BITS] == ~<uint64_t>0):
        number += WORD_BITS
    while number < BUFFERS and _has_bit(buffers.used, number):
        number += 1
    return number


cdef uint8_t *_take_buffer(uint32_t number) noexcept nogil:
    """NULL without address space. buffers.lock is held."""
    cdef uint64_t offset = number * <uint64_t>BLOCK_BYTES
    if not _has_bit(buffers.mapped, number):
        if sys_map_at(buffers.fd, BUFFER_BASE + offset, offset, BLOCK_BYTES, True) != 0:
            return NULL
        _set_bit(buffers.mapped, number)
    _set_bit(buffers.used, number)
    return <uint8_t *>(BUFFER_BASE + offset)


cdef uint8_t *buffer_make() noexcept nogil:
    """BLOCK_BYTES that are nobody's, all zero; NULL when there are none."""
    cdef uint32_t number
    cdef uint8_t *buffer = NULL
    if buffers.fd < 0:
        return <uint8_t *>sys_reserve_pages(BLOCK_BYTES)
    pthread_mutex_lock(&buffers.lock)
    number = _free_buffer()
    if number < BUFFERS:
        buffer = _take_buffer(number)
    pthread_mutex_unlock(&buffers.lock)
    return buffer


cdef void buffer_unmake(uint8_t *buffer) noexcept nogil:
    """Gives its memory back. Nothing that outlives the engine may point to it any more."""
    cdef uint64_t at = <uint64_t>buffer - BUFFER_BASE
    if buffers.fd < 0:
        sys_release(buffer, BLOCK_BYTES)
        return
    pthread_mutex_lock(&buffers.lock)
    sys_punch(buffers.fd, at, BLOCK_BYTES)
    _clear_bit(buffers.used, <uint32_t>(at // BLOCK_BYTES))
    pthread_mutex_unlock(&buffers.lock)


cdef bint buffer_claim(const uint8_t *buffer) noexcept nogil:
    """One that an engine before has left is used on. False if it is none, or is claimed already."""
    cdef uint64_t at = <uint64_t>buffer - BUFFER_BASE
    if <uint64_t>buffer < BUFFER_BASE or at % BLOCK_BYTES != 0 or at // BLOCK_BYTES >= BUFFERS:
        return False
    if _has_bit(buffers.used, <uint32_t>(at // BLOCK_BYTES)):
        return False
    return _take_buffer(<uint32_t>(at // BLOCK_BYTES)) != NULL


cdef void buffers_drop_unclaimed() noexcept nogil:
    """Gives back the memory of those that the engine before has left and nobody has claimed."""
    cdef uint32_t start = 0
    cdef uint32_t number
    for number in range(BUFFERS + 1):
        if number < BUFFERS and not _has_bit(buffers.used, number):
            continue
        if number > start:
            sys_punch(buffers.fd, start * <uint64_t>BLOCK_BYTES, (number - start) * <uint64_t>BLOCK_BYTES)
        start = number + 1
