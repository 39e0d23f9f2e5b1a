# SPDX-License-Identifier: GPL-2.0-or-later
"""An address space (mm) that the engine serves, and the engine that all of them share."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.behind cimport Returns, Trail
from userswap.codec cimport Unpacker
from userswap.desk cimport Desk
from userswap.inject cimport Helper
from userswap.log cimport Log
from userswap.pack cimport Pack
from userswap.pagetable cimport PageTable
from userswap.ranges cimport Ranges
from userswap.readahead cimport Streams
from userswap.space cimport Space
from userswap.system cimport pthread_mutex_t, pthread_t, sys_reads, uffd_msg
from userswap.processes cimport Tree
from userswap.trace cimport Trace
from userswap.types cimport offset_of

cdef enum:
    MAX_MMS = 4096
    WHOLE_TABLE_BITS = 35   # pages of the user's half of an address space
    MAX_CPUS = 256
    MAX_WORKERS = 512
    MAX_SCRATCH = 1024      # those who detach fill, too
    WARMERS_MAX = 4
    REASON_BYTES = 256
    MAX_LEFT_ALONE = 64
    ENTRIES_FOR_EVER = 3    # zero_offset, shared_offset, hot_offset
    STOP_EVENT = 0          # what an epoll reports that is no mm's id
    ROOM_EVENT = 0x7FFFFFFF

# Counters, added to with add_i64; the names are those of the statistics.
cdef struct Counters:
    int64_t faults
    int64_t faults_from_memory
    int64_t faults_write_protected
    int64_t pages_first_touched
    int64_t pages_evicted
    int64_t pages_evicted_clean
    int64_t pages_filled
    int64_t pages_discarded
    int64_t pages_discarded_in_flight
    int64_t pages_in
    int64_t pages_readahead
    int64_t pages_readahead_used
    int64_t pages_refaulted
    int64_t reads_repeated
    int64_t pages_vanished
    int64_t blocks_cleaned
    int64_t processes_attached
    int64_t forks
    int64_t evict_refused_pinned
    int64_t limit_waits
    int64_t takeovers

cdef struct Mm:
    # Guards all below but refs; held around {read and apply events}, {check, move or copy,
    # change page values}.
    pthread_mutex_t lock
    uint32_t id
    int uffd
    pid_t pid               # the process it was entered through; 0: a fork child that is not known yet
    pid_t parent            # of such a child
    # Held while the helper or the staging area is in use; comes before `lock`.
    pthread_mutex_t helper_lock
    bint entered            # there is a helper: pages can be evicted
    bint binding            # ... or is about to be; and what is known of a fork child is still to be verified
    bint helper_failed      # it is dead or does not answer
    bint leaving            # ... or is about to be ended
    bint forking            # a fork is caught: `lock` is held for it, by nobody that runs where an engine before died
    bint unbound            # the child of one, whose process the monitor has still to find
    bint detaching          # all comes back, and nothing goes any more (detach.pyx)
    bint detached           # ... all has, and what the program does concerns us no more
    bint unsharing          # the helper may fault on our behalf
    bint dead               # the address space is gone
    bint rescan             # mappings have changed: look for new ones
    bint shared             # it forked or was forked: pages may be shared copy-on-write
    bint protect_wanted     # pages marked as shared are still to be write-protected
    bint exposed            # ... and others are not marked, as memory was not short when it forked or was forked
    Helper helper
    PageTable *table
    Ranges ranges           # registered
    Ranges before           # while another mapping is being registered: what was until then,
    uint64_t before_start   # ... and which one that is, in pages
    uint64_t before_end     # ... 0: none is
    Ranges unforked         # what fork children do not get; known only while there is a helper
    Ranges taken            # mapped anew before the event of their unmapping was read
    PageTable *departed     # swapped pages of mappings that went while an event was under way; or NULL
    uint32_t parent_mm      # of a child: whose events may still be about it as well
    bint unsettled          # ... as they are not all told
    uint32_t young          # such children
    Ranges spared           # single pages that must not be evicted
    Ranges doubtful         # swapped pages that the engine before may have brought back, where none can tell yet
    bint found              # an engine before has left it: pages may be present of which it has not noted that
    bint helper_busy        # ... and its helper at work
    uint64_t spare_next     # us: when to look for them again
    Ranges wiped            # what they get empty; their own children too
    int64_t present         # pages that are PRESENT
    int64_t swapped         # pages with an offset that are not
    uint64_t hand           # reclaim's, a page
    Trail trail             # what its streams have left behind
    uint64_t staging_used   # bytes of the staging area in use, gaps included
    int64_t staging_pages   # pages in it
    uint64_t messages_read
    uffd_msg event          # the one that is being applied; of the kind 0: none. Read to here: its maker goes on then
    uint32_t event_step     # how far that is (events.pyx)
    bint event_again        # an engine before has begun it
    uint32_t move_step      # of a move: 1 once what was at its new place is forgotten
    uint64_t removed_at     # time of the last EVENT_REMOVE, us
    uint64_t mapped_pages   # total_vm when the mappings were last looked at
    uint64_t scanned_at     # ... and the time, us
    uint64_t scan_us        # what that took
    int64_t kept            # clean copies kept, and how many a write has broken since
    int64_t kept_broken
    int64_t kept_refused
    int maps                # /proc files of this address space, -1 while there is no helper
    int pagemap
    Streams fills
    Streams touches
    Streams unprotects
    int refs                # under Engine.table_lock
    uint64_t watched[4]     # of each CPU whether it is told of faults (watch.pyx), a bit each,
    uint32_t watchers       # ... and how many are
    uint32_t serving        # faults that are being answered
    uint32_t answered       # ... and that ever were
    uint32_t answered_seen  # ... when the monitor last looked

cdef struct Pending:        # page fault messages that a thread has read and not yet served
    uffd_msg *messages
    uint32_t count
    uint32_t room

cdef struct LeftAlone:      # a process that could not be entered
    pid_t pid
    int error
    char name[16]

cdef struct Entry:          # the process that is being entered: asked for by the monitor, done by the thread
    uint32_t asked          # futex
    pid_t pid               # 0: none
    pid_t parent
    bint again              # it has been tried before
    bint early              # memory is not short yet
    bint done
    int result              # 0 or -errno
    uint32_t mm_id

cdef struct Deferred:
    uint32_t mm_id
    uffd_msg message

# Where the bytes of a fill are put together.
cdef struct Scratch:
    uint8_t *pages          # WINDOW_MAX pages
    uint8_t *packed         # what was read of packed pages

cdef struct Worker:
    Engine *engine
    int cpu
    Scratch scratch         # while it fills
    bint unbounded          # what it fills waits for no room
    Unpacker unpacker
    sys_reads reads
    uint32_t served         # faults that followed another soon
    uint32_t vain_for       # the mm for which it was woken in vain last,
    uint32_t vain           # ... and how often in a row
    int eager               # turns in which it looks for the next fault before it sleeps
    Pending pending

cdef struct Warmer:
    Engine *engine
    int cpu
    pthread_t thread

# What is known of the worth of memory for packed blocks (tier.pyx).
cdef struct Tier:
    uint32_t base           # buffers of the log besides the tier
    uint32_t most           # blocks that it may have at most
    uint32_t step           # blocks that are looked at beyond the edge
    uint64_t adjusted_at    # us
    int64_t packed_us       # what faults took that a step more of packed blocks would have saved
    int64_t resident_us     # ... of resident pages
    int64_t all_packed_us   # what all packed blocks have saved
    int64_t all_pages_us    # ... what as much memory would have saved, had it been pages
    int64_t memory_us       # what a fault takes that is answered from memory, times 64
    int64_t area_us         # ... from an area
    int64_t hits            # faults answered by packed blocks in memory, and by an area, of late
    int64_t misses
    int64_t earned_us       # what faults took since a block was last brought up
    int64_t fetch_us        # what it takes to bring one up

cdef struct Engine:
    Space space
    Log log
    Pack pack
    Tier tier
    Counters counters
    # Guards mms and their refs.
    pthread_mutex_t table_lock
    Mm *mms[4096]
    uint32_t mm_serial      # ids start at 1
    # Guards changes of limit, surge, low and high, which belong together; read without. Nothing is taken under it.
    pthread_mutex_t limit_lock
    # The limit, in pages. resident is an estimate: the last sample, and what was granted and evicted since.
    int64_t limit
    int64_t resident
    int64_t resident_peak
    int64_t low             # the evictor works above it
    int64_t surge           # by how much high is lower than usual, as memory was seen to grow in bursts
    uint32_t calm           # looks since
    bint late               # ... which may be late, without the right to real time
    int64_t high            # a fault waits above it
    int64_t granted         # all pages ever put in place by the engine
    int64_t copied          # all pages ever taken as a relative kept the old one, so that no process' count tells
    # Faults that wait for room, oldest first. A thread that has one goes on to other faults.
    pthread_mutex_t deferred_lock
    Deferred *deferred
    uint32_t deferred_first
    uint32_t deferred_end
    uint32_t deferred_room
    int room_event          # eventfd: there is room, or more of it
    uint32_t evict_wanted   # futex: resident went above low
    uint32_t evict_done     # futex: a batch of CACHED entries has been packed
    uint64_t evict_clock    # pages evicted
    # Guards returns; comes last, and nothing is taken under it.
    pthread_mutex_t returns_lock
    Returns returns
    bint drops_behind       # what streams leave behind may go first
    Trace *trace            # or NULL
    uint32_t trailing       # the mm whose streams have left something behind last
    uint32_t stamp_shift    # pages of the eviction clock to its 12-bit stamp
    uint64_t waited_since   # us: when the monitor first saw faults wait, 0 if none does
    uint64_t progress_at    # us: when something was last evicted
    uint64_t stuck_us       # faults that wait for so long without any eviction will wait for ever
    pthread_t evictor
    pthread_t writer
    pthread_t fetcher
    pthread_t packer
    pthread_t monitor
    pthread_t sampler
    pthread_t enterer
    bint evictor_runs
    bint writer_runs
    bint fetcher_runs
    bint packer_runs
    bint monitor_runs
    bint sampler_runs
    bint enterer_runs
    uint32_t samples        # futex: taken so far
    int stop_event          # eventfd that ends the waits of all threads
    Tree tree
    # Threads.
    int cpus
    int epolls[256]         # one per CPU, each with every uffd
    pthread_t workers[512]
    Worker *worker_state[512]
    int worker_count
    pthread_mutex_t scratch_lock
    Scratch scratch[1024]   # MAX_SCRATCH; in which nobody fills, the one used last at the end
    int scratch_count
    int scratch_made        # lent or not
    uint64_t served_at      # us: when a fault was last answered
    bint may_spin           # where a CPU is idle; nobody pays for it
    Warmer warmers[4]       # WARMERS_MAX
    int warmer_count
    uint32_t warm           # futex: they are wanted
    uint64_t warm_until     # us
    uint32_t spinning       # how many do
    uint32_t window_most    # pages that one fault brings at most
    uint32_t zero_offset    # an entry of zeros for ever, for pages that map the shared zero page
    uint32_t shared_offset  # an entry of nothing for ever, for pages shared since a fork
    uint32_t hot_offset     # another, for pages that came back soon
    uint8_t *zeros          # a block of zeros that costs no memory
    bint stopping
    void *eviction          # the evictor's own (Evictor in evict.pxd)
    uint32_t finishing      # the mm of a batch that an engine before has left to it, until it is done; 0: none
    bint finish_leaves      # ... and then that is to be left
    bint evictor_over       # the writer may end
    bint cancelled          # an eviction ended early, as the run ends: its entries stay CACHED
    bint entering           # a process is being entered,
    pid_t entering_of       # ... a child of this one, as far as is known; 0: of anybody
    bint prepared           # the log has its memory
    Entry entry
    bint ksm                # the kernel merges pages, which takes our write protection from them
    uint64_t ksm_looked_at
    bint packing            # full blocks are packed small
    bint checking           # run the invariant checks (tests)
    int attention           # eventfd: control() is wanted
    # Guards the reason and left_alone.
    pthread_mutex_t reason_lock
    LeftAlone left_alone[64]
    uint32_t left_alone_count
    char reason[256]        # why the program must be stopped, or ""
    int64_t own_pages       # of all processes of ours, when last looked at
    pthread_mutex_t desk_lock   # held while it is asked for something. Nothing is taken under it
    Desk *desk              # where the tracer is asked
    bint desk_late          # ... and still is at what an engine before had asked for
    Mm *forking             # the mm whose lock is held while it forks
    pthread_t births        # the thread that does (births.pyx)
    bint births_run
    bint any_unbound        # there may be an mm that is

cdef Mm *mm_make(Engine *engine, int uffd, pid_t pid) noexcept nogil
cdef int mm_insert(Engine *engine, Mm *mm) noexcept nogil
cdef int mm_insert_as(Engine *engine, Mm *mm, uint32_t id) noexcept nogil
cdef Mm *mm_get(Engine *engine, uint32_t id) noexcept nogil
cdef bint mms_unclaimed(Engine *engine) noexcept nogil
cdef Mm *mm_next(Engine *engine, uint32_t *position) noexcept nogil
cdef void mm_put(Engine *engine, Mm *mm) noexcept nogil
cdef void mm_end(Engine *engine, Mm *mm) noexcept nogil
cdef int64_t mm_forget(Engine *engine, Mm *mm, uint64_t page, uint64_t count) noexcept nogil
cdef void mm_is_there(Engine *engine, Mm *mm, uint64_t page) noexcept nogil
cdef void mm_settled(Engine *engine, Mm *mm) noexcept nogil
cdef void mm_removed(Mm *mm, uint64_t page, uint64_t count) noexcept nogil
cdef void mm_move(Engine *engine, Mm *mm, uint64_t from_page, uint64_t to_page, uint64_t count) noexcept nogil
cdef inline uint32_t evict_stamp(Engine *engine) noexcept nogil:
    """The eviction clock, in the unit of stamps."""
    return <uint32_t>(engine.evict_clock >> engine.stamp_shift)

cdef inline uint32_t guard_of(Engine *engine, uint32_t value) noexcept nogil:
    """The offset for whose sake a present page is write-protected, or 0: its copy's, or that of shared pages."""
    return 0 if offset_of(value) == engine.hot_offset else offset_of(value)

cdef inline uint32_t copy_of(Engine *engine, uint32_t value) noexcept nogil:
    """The offset whose entry holds a true copy of a present page, or 0."""
    return 0 if offset_of(value) == engine.shared_offset else guard_of(engine, value)

cdef void mm_leave(Engine *engine, Mm *mm) noexcept nogil
cdef void mm_check(Engine *engine, Mm *mm) noexcept nogil

cdef void entry_put(Engine *engine, uint32_t offset) noexcept nogil
cdef void engine_stop_at(Engine *engine, const char *reason, long detail, int area, uint64_t at) noexcept nogil
cdef void engine_stop(Engine *engine, const char *reason, long detail) noexcept nogil
