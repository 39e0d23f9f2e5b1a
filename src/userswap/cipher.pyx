# SPDX-License-Identifier: GPL-2.0-or-later
"""Encryption of swap areas: around any store, by AES-256 in the mode XTS (IEEE 1619), of OpenSSL's libcrypto.

Each page of the medium is a unit of its own, so that any part can be read alone; its tweak is where it lies, and in
which area. The key is made at random by the first engine, lies with the state that must outlive it, in memory, and
goes with that: what is left on a medium nobody can read afterwards. Checksums (sums.pyx) are of what was encrypted, and
never leave the memory but in packed blocks, encrypted themselves: what was changed on the medium is noticed as any
damage is, but once in 16 million times. It is no protection against who writes to the medium on purpose."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from userswap.stores cimport Cipher
from userswap.system cimport (
    EIO,
    ENOENT,
    ENOMEM,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
    sys_random,
    sys_release,
    sys_reserve,
)
from userswap.types cimport BLOCK_BYTES, BLOCK_PAGES, PAGE_BYTES

cdef extern from "cipher.h" nogil:
    bint cipher_load()
    bint cipher_pieces(const uint8_t *key, int encrypts, uint64_t medium, uint64_t number, const uint8_t *source,
                       uint8_t *into, size_t length, size_t piece)


cdef bint cipher_available() noexcept nogil:
    """Whether the library is there. To be called before cipher_wrap, by one thread."""
    return cipher_load()


cdef int cipher_make_key(uint8_t *key) noexcept nogil:
    """KEY_BYTES that nobody knows. Returns 0 or -errno."""
    return sys_random(key, KEY_BYTES)


cdef bint _cipher(Store *store, bint encrypts, uint32_t slot, uint64_t at, const uint8_t *source, uint8_t *into,
                  uint64_t length) noexcept nogil:
    return cipher_pieces(store.cipher.key, encrypts, store.medium, slot * <uint64_t>BLOCK_PAGES + at // PAGE_BYTES,
                         source, into, length, PAGE_BYTES)


cdef int _write_from(Store *store, uint32_t slot, const uint8_t *data, uint8_t *buffer) noexcept nogil:
    if not _cipher(store, True, slot, 0, data, buffer, BLOCK_BYTES):
        return -EIO
    return store.plain.write(store, slot, buffer)


cdef int _write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    """Two at once only where an area is emptied: the second takes memory for as long as it lasts."""
    cdef uint8_t *buffer
    cdef int result
    if pthread_mutex_trylock(&store.cipher.lock) == 0:
        result = _write_from(store, slot, data, store.cipher.buffer)
        pthread_mutex_unlock(&store.cipher.lock)
        return result
    buffer = <uint8_t *>sys_reserve(BLOCK_BYTES)
    if buffer == NULL:
        return -ENOMEM
    result = _write_from(store, slot, data, buffer)
    sys_release(buffer, BLOCK_BYTES)
    return result


cdef int _read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef int result = store.plain.read(store, slot, at, length, into)
    if result != 0:
        return result
    return 0 if _cipher(store, False, slot, at, into, into, length) else -EIO


cdef void cipher_take(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    """What read_later has brought, as it was written. What cannot be made that is zeros, which no checksum takes for
    it."""
    if store.cipher != NULL and not _cipher(store, False, slot, at, into, into, length):
        memset(into, 0, length)


cdef int cipher_wrap(Store *store, const uint8_t *key, uint64_t medium) noexcept nogil:
    """From now on the medium gets nothing else; what read_later brings is for cipher_take. Returns 0 or -errno;
    cipher_unwrap cleans up in both cases."""
    cdef Store *plain = <Store *>calloc(1, sizeof(Store))
    cdef Cipher *cipher = <Cipher *>calloc(1, sizeof(Cipher))
    if plain != NULL:
        plain[0] = store[0]
    store.plain = plain
    store.cipher = cipher
    if plain == NULL or cipher == NULL:
        return -ENOMEM
    pthread_mutex_init(&cipher.lock, NULL)
    memcpy(cipher.key, key, KEY_BYTES)
    cipher.buffer = <uint8_t *>sys_reserve(BLOCK_BYTES)
    if cipher.buffer == NULL:
        return -ENOMEM
    store.medium = medium
    store.write = _write
    store.read = _read
    return 0 if cipher_load() else -ENOENT


cdef void cipher_unwrap(Store *store) noexcept nogil:
    """Forgets the key. The store is not used any more."""
    if store.cipher != NULL:
        if store.cipher.buffer != NULL:
            sys_release(store.cipher.buffer, BLOCK_BYTES)
        pthread_mutex_destroy(&store.cipher.lock)
        memset(store.cipher, 0, sizeof(Cipher))
    free(store.cipher)
    free(<void *>store.plain)
    store.cipher = NULL
    store.plain = NULL
