# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that fails as it is told, for tests: wraps any store where USERSWAP_FAULTY is set.

    USERSWAP_FAULTY="OPERATION:FAULT:EVERY[:TIMES] ..."       read:flip:50 write:torn:3:1

Every so many operations of that kind, over all areas, one fails, but not more often than TIMES; nor, unless EVERY is 1,
at the place of one of the last that did, so that what is tried again succeeds. OPERATION: read, write, discard. FAULT:

    eio, enospc     it fails at once
    short           half of it is done, then it fails
    torn            half of it is done, and it says that all was
    flip            one bit is another one
    delay           it takes DELAY_US more"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport atol, calloc, getenv, strtol
from libc.string cimport memcpy, memset, strchr, strlen, strncmp

from userswap.system cimport EIO, ENOMEM, ENOSPC, add_i64, sys_reads, sys_release, sys_reserve, sys_sleep_us
from userswap.types cimport BLOCK_BYTES

cdef enum:
    RULES = 16
    DELAY_US = 1000000
    PLACES = 16

cdef enum:
    READ
    WRITE
    DISCARD

cdef enum:
    NOTHING
    FAIL_EIO
    FAIL_ENOSPC
    SHORT
    TORN
    FLIP
    DELAY

cdef struct Rule:
    int operation
    int fault
    int64_t every
    int64_t times
    int64_t seen
    int64_t done
    uint64_t places[16]     # PLACES: of the last that failed

cdef Rule[16] rules         # RULES
cdef int rule_count


# ---- what is told

cdef bint _is(const char *word, const char *name) noexcept nogil:
    return strncmp(word, name, strlen(name)) == 0 and (word[strlen(name)] == c':' or word[strlen(name)] == 0)


cdef int _operation(const char *word) noexcept nogil:
    return READ if _is(word, b"read") else WRITE if _is(word, b"write") else DISCARD


cdef int _fault(const char *word) noexcept nogil:
    if _is(word, b"eio"):
        return FAIL_EIO
    if _is(word, b"enospc"):
        return FAIL_ENOSPC
    if _is(word, b"short"):
        return SHORT
    if _is(word, b"torn"):
        return TORN
    return FLIP if _is(word, b"flip") else DELAY


cdef void _read_rules(const char *text) noexcept nogil:
    """The first time alone."""
    global rule_count
    cdef const char *at = text
    cdef char *end
    cdef Rule *rule
    while at != NULL and at[0] != 0 and rule_count < RULES:
        rule = &rules[rule_count]
        rule.operation = _operation(at)
        at = strchr(at, c':')
        if at == NULL:
            return
        rule.fault = _fault(at + 1)
        at = strchr(at + 1, c':')
        rule.every = strtol(at + 1, &end, 10) if at != NULL else 0
        if at == NULL or rule.every <= 0:
            return
        rule.times = atol(end + 1) if end[0] == c':' else <int64_t>1 << 60
        at = strchr(end, c' ')
        at = at + 1 if at != NULL else NULL
        rule_count += 1


cdef bint _failed_there(Rule *rule, uint64_t place) noexcept nogil:
    cdef int at
    for at in range(PLACES):
        if rule.places[at] == place:
            return True
    return False


cdef int _next_fault(int operation, uint32_t slot, uint64_t offset) noexcept nogil:
    cdef int at
    cdef int64_t done
    cdef uint64_t place = slot * <uint64_t>BLOCK_BYTES + offset + 1
    cdef Rule *rule
    for at in range(rule_count):
        rule = &rules[at]
        if rule.operation != operation or add_i64(&rule.seen, 1) % rule.every != 0:
            continue
        if rule.every > 1 and _failed_there(rule, place):
            continue
        done = add_i64(&rule.done, 1)
        rule.places[done % PLACES] = place
        if done > rule.times:
            continue
        if rule.fault != DELAY:
            return rule.fault
        sys_sleep_us(DELAY_US)
    return NOTHING


# ---- a store that does it

cdef int _read(Store *store, uint32_t slot, uint64_t at, uint64_t length, uint8_t *into) noexcept nogil:
    cdef int fault = _next_fault(READ, slot, at)
    cdef int result
    if fault == FAIL_EIO or fault == FAIL_ENOSPC:
        return -EIO
    result = store.faulty.read(store, slot, at, length, into)
    if fault == SHORT or fault == TORN:
        memset(into + length // 2, 0, length - length // 2)
    elif fault == FLIP:
        into[length // 3] ^= 1
    return -EIO if fault == SHORT else result


cdef int _read_later(Store *store, sys_reads *reads, uint32_t slot, uint64_t at, uint64_t length,
                     uint8_t *into) noexcept nogil:
    return _read(store, slot, at, length, into)


cdef int _write_damaged(Store *store, uint32_t slot, const uint8_t *data, int fault) noexcept nogil:
    cdef uint8_t *copy = <uint8_t *>sys_reserve(BLOCK_BYTES)
    cdef int result
    if copy == NULL:
        return -ENOMEM
    memcpy(copy, data, BLOCK_BYTES if fault == FLIP else BLOCK_BYTES // 2)
    if fault == FLIP:
        copy[BLOCK_BYTES // 3] ^= 1
    result = store.faulty.write(store, slot, copy)
    sys_release(copy, BLOCK_BYTES)
    return -EIO if fault == SHORT else result


cdef int _write(Store *store, uint32_t slot, const uint8_t *data) noexcept nogil:
    cdef int fault = _next_fault(WRITE, slot, 0)
    if fault == FAIL_EIO:
        return -EIO
    if fault == FAIL_ENOSPC:
        return -ENOSPC
    if fault == SHORT or fault == TORN or fault == FLIP:
        return _write_damaged(store, slot, data, fault)
    return store.faulty.write(store, slot, data)


cdef int _discard(Store *store, uint32_t slot) noexcept nogil:
    cdef int fault = _next_fault(DISCARD, slot, 0)
    return -EIO if fault == FAIL_EIO else store.faulty.discard(store, slot)


cdef int faulty_wrap(Store *store) noexcept nogil:
    """Nothing, unless it is told to. Returns 0 or -ENOMEM."""
    cdef const char *text = getenv(b"USERSWAP_FAULTY")
    cdef Store *whole
    if text == NULL or text[0] == 0:
        return 0
    if rule_count == 0:
        _read_rules(text)
    whole = <Store *>calloc(1, sizeof(Store))
    if whole == NULL:
        return -ENOMEM
    whole[0] = store[0]
    store.faulty = whole
    store.write = _write
    store.read = _read
    store.read_later = _read_later
    store.discard = _discard
    return 0
