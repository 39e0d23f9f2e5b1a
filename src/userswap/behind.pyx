# SPDX-License-Identifier: GPL-2.0-or-later
"""What streams leave behind, and whether that should be evicted before other pages.

A program that goes over more memory than it has, again and again in the same order, misses on every page where the
oldest go first: each is evicted just before it is wanted. Were what it has just gone over evicted instead, the rest
would stay, and be found the next time: of twice the memory half, which is the best there is. (Drop-behind; as an
insertion policy of caches: Qureshi et al., "Adaptive insertion policies for high performance caching", 2007.) But what
was just gone over may also be what is wanted next, and what stays may never be wanted again.

So it is measured. A sample of the pages evicted, of those that the hand of reclaim chose and of those that a stream
had left behind, is watched for how many evictions later each comes back. Had pages of a kind no memory of how long they
have been away, the mean of that time would be estimated best by all the time that any were away over how often one came
back, those that are still away included (a censored exponential distribution). The kind that stays away for longer goes
first: that is Belady's rule, by kind. Of the other kind goes a batch now and then, or nothing would be known of it.

What is older than SPAN times the memory counts no more, so that what was thrown away for good once does not weigh for
ever."""

cdef enum:
    SPAN = 3                # times the resident pages: how far back evictions count
    JUDGED = 16             # times for each turnover of the resident pages
    EXPLORED = 32           # of so many batches one is of the other kind
    FAVOUR = 16             # the kind that goes first is given up only for one that is better by this part


# ---- the trail

cdef void trail_add(Trail *trail, uint64_t start, uint32_t count) noexcept nogil:
    """What a stream has left. Where there is too much, the oldest is forgotten: that is the hand's."""
    if trail.end - trail.first == TRAIL_PIECES:
        trail.first += 1
    trail.start[trail.end % TRAIL_PIECES] = start
    trail.count[trail.end % TRAIL_PIECES] = count
    trail.end += 1


cdef bint trail_any(Trail *trail) noexcept nogil:
    return trail.end != trail.first


cdef bint trail_take(Trail *trail, uint32_t most, uint64_t *start, uint32_t *count) noexcept nogil:
    """The oldest piece, or of it the first `most` pages. False when there is none."""
    cdef uint32_t at = trail.first % TRAIL_PIECES
    if not trail_any(trail):
        return False
    start[0] = trail.start[at]
    count[0] = min(trail.count[at], most)
    trail.start[at] += count[0]
    trail.count[at] -= count[0]
    if trail.count[at] == 0:
        trail.first += 1
    return True


# ---- the samples

cdef uint64_t _hash(uint32_t mm_id, uint64_t page) noexcept nogil:
    return (page ^ <uint64_t>mm_id << 40) * <uint64_t>0x9E3779B97F4A7C15


cdef bint returns_sampled(uint32_t mm_id, uint64_t page, uint64_t resident) noexcept nogil:
    """Whether the page is of the sample: so many are that those of SPAN times the memory find place."""
    return (_hash(mm_id, page) >> 32) * (resident * SPAN // SAMPLES + 1) < <uint64_t>1 << 32


cdef uint16_t *_list_of(Returns *returns, uint32_t mm_id, uint64_t page) noexcept nogil:
    return &returns.lists[(_hash(mm_id, page) >> 16) % SAMPLE_LISTS]


cdef void _unlist(Returns *returns, uint32_t at) noexcept nogil:
    cdef uint16_t *link = _list_of(returns, returns.samples[at].mm_id, returns.samples[at].page)
    while link[0] != 0 and link[0] != at + 1:
        link = &returns.samples[link[0] - 1].next
    if link[0] != 0:
        link[0] = returns.samples[at].next


cdef void returns_evicted(Returns *returns, uint32_t mm_id, uint64_t page, uint32_t kind, uint64_t now) noexcept nogil:
    """A page of the sample was evicted."""
    cdef uint32_t at = returns.end % SAMPLES
    cdef Sample *sample = &returns.samples[at]
    cdef uint16_t *link
    if sample.mm_id != 0 and sample.away == 0:
        _unlist(returns, at)
    sample.page = page
    sample.mm_id = mm_id
    sample.kind = kind
    sample.evicted_at = now
    sample.away = 0
    link = _list_of(returns, mm_id, page)
    sample.next = link[0]
    link[0] = <uint16_t>(at + 1)
    returns.end += 1


cdef void returns_back(Returns *returns, uint32_t mm_id, uint64_t page, uint64_t now) noexcept nogil:
    """A page of the sample was brought back."""
    cdef uint16_t link = _list_of(returns, mm_id, page)[0]
    cdef Sample *sample
    while link != 0:
        sample = &returns.samples[link - 1]
        if sample.mm_id == mm_id and sample.page == page:
            _unlist(returns, link - 1)
            sample.away = now - sample.evicted_at + 1
            return
        link = sample.next


cdef bint _judge(Returns *returns, uint64_t now, uint64_t resident) noexcept nogil:
    """Whether what streams leave behind stays away for longer than what the hand chooses."""
    cdef uint64_t away[2]
    cdef uint64_t back[2]
    cdef uint32_t at
    cdef Sample *sample
    cdef double by_hand, behind
    for at in range(2):
        away[at] = resident     # one of each kind, as long as nothing is known
        back[at] = 1
    for at in range(SAMPLES):
        sample = &returns.samples[at]
        if sample.mm_id == 0 or now - sample.evicted_at > SPAN * resident:
            continue
        away[sample.kind] += sample.away if sample.away != 0 else now - sample.evicted_at
        back[sample.kind] += sample.away != 0
    by_hand = <double>away[BY_HAND] / <double>back[BY_HAND]
    behind = <double>away[AS_BEHIND] / <double>back[AS_BEHIND]
    if returns.behind:
        return behind * (FAVOUR + 1) > by_hand * FAVOUR
    return behind * FAVOUR > by_hand * (FAVOUR + 1)


cdef uint32_t returns_next_kind(Returns *returns, uint64_t now, uint64_t resident) noexcept nogil:
    """Of what kind the next batch should be."""
    cdef bint behind
    if (now - returns.judged_at) * JUDGED > resident:
        returns.judged_at = now
        returns.behind = _judge(returns, now, resident)
    returns.turn += 1
    behind = returns.behind != (returns.turn % EXPLORED == 0)
    return AS_BEHIND if behind else BY_HAND
