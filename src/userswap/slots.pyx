# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots: the places of blocks in swap areas, which area is used first, and free places that the medium gets back.

Slots of an area are handed out from a stack of those that came back, else in order. Of those that came back the lowest
have been discarded; what is written next comes from above. Log.lock is held by all who call, but for
slots_discard_next.
"""

from userswap.system cimport pthread_mutex_lock, pthread_mutex_unlock

cdef enum:
    KEPT_SLOTS = 16         # free slots of an area that are not discarded: they will soon be written again


cdef void slots_order_areas(Log *log) noexcept nogil:
    """Sorts the areas that may be written to by priority, after one has come or gone."""
    cdef int area, place
    log.order_count = 0
    for area in range(log.area_count):
        if log.areas[area].gone or log.areas[area].closing:
            continue
        place = log.order_count
        while place > 0 and log.areas[log.order[place - 1]].priority < log.areas[area].priority:
            log.order[place] = log.order[place - 1]
            place -= 1
        log.order[place] = area
        log.order_count += 1


cdef uint64_t slots_spare(Log *log) noexcept nogil:
    """How many free slots there have to be before something is evicted: fewer, and one of the open blocks might find no
    place, which is the end."""
    return SLOTS_SPARE + SPARE_APART * <uint64_t>log.apart


cdef uint64_t slots_free_of(Store *area) noexcept nogil:
    if area.closing or area.gone:
        return 0
    return <uint64_t>(area.slots - area.slot_end) + area.returned_count


cdef bint slots_keep_copies(Log *log, Block *block) noexcept nogil:
    """Whether pages that come in from a stored block keep their copies there as long as they stay clean: where its area
    wants that and has plenty of room. No lock: an answer that is out of date does no harm."""
    cdef Store *area = &log.areas[block.area]
    return not area.frees and slots_free_of(area) * 2 > area.slots


cdef uint32_t slot_take(Log *log, Store *area) noexcept nogil:
    if slots_free_of(area) == 0:
        return NO_SLOT
    log.slots_used += 1
    log.slots_peak = max(log.slots_peak, log.slots_used)
    if area.returned_count > 0:
        area.returned_count -= 1
        area.discarded = min(area.discarded, area.returned_count)
        return area.returned[area.returned_count]
    area.slot_end += 1
    return area.slot_end - 1


cdef void slot_return(Log *log, Store *area, uint32_t slot) noexcept nogil:
    log.slots_used -= 1
    area.returned[area.returned_count] = slot
    area.returned_count += 1


cdef Store *_undiscarded(Log *log, uint32_t *slot) noexcept nogil:
    """Takes a free slot from an area that has more of them than it will soon need, one that was not discarded."""
    cdef int at
    cdef Store *area
    for at in range(log.area_count):
        area = &log.areas[at]
        if area.closing or area.gone or area.never_discards or area.returned_count <= area.discarded + KEPT_SLOTS:
            continue
        slot[0] = area.returned[area.discarded]
        area.returned_count -= 1
        area.returned[area.discarded] = area.returned[area.returned_count]
        return area
    return NULL


cdef bint slots_discard_next(Log *log) noexcept nogil:
    """Gives the medium of one free slot back, where many are free. False when there is none. Call without a lock.

    Meanwhile the slot is nobody's, as if it were being written: it is not handed out, and its area does not go."""
    cdef uint32_t slot
    cdef Store *area
    cdef int result
    pthread_mutex_lock(&log.lock)
    area = _undiscarded(log, &slot)
    pthread_mutex_unlock(&log.lock)
    if area == NULL:
        return False
    result = area.discard(area, slot)
    pthread_mutex_lock(&log.lock)
    area.returned[area.returned_count] = slot
    if result == 0:
        area.returned[area.returned_count] = area.returned[area.discarded]
        area.returned[area.discarded] = slot
        area.discarded += 1
    area.returned_count += 1
    area.never_discards = result != 0
    pthread_mutex_unlock(&log.lock)
    return True
