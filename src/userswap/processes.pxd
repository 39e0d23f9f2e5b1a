# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of processes below the engine, and how much memory each uses."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.types cimport pid_t

from userswap.system cimport pthread_mutex_t

cdef enum:
    NAME_BYTES = 16
    TOUCH_PAGES_A_MS = 1024     # 4 GiB/s: how fast a program can touch fresh memory
    OWN_MAX = 32                # more than there can be areas
    ROOTS_MAX = 256             # processes that are attached at once

cdef struct Process:
    pid_t pid
    pid_t parent
    int statm               # /proc/PID/statm, kept open
    int64_t anonymous       # pages
    int64_t measured        # `anonymous` when `shared` was measured
    int64_t shared          # ... of them counted for a relative as well (copy-on-write after a fork)
    int64_t sharing         # what that will be once all are measured
    uint64_t mapped         # total_vm, pages
    int64_t untouched       # pages of its own that it may write to and has not: data_vm, stack_vm less `anonymous`
    uint32_t mm_id          # 0: not entered
    bint shares             # it has its parent's address space (vfork, or a helper): not counted
    bint unsure             # ... or may have: it is being made
    bint unmade             # ... and is taken to, until it is seen not to
    bint helper             # it is one of ours
    bint starting           # it is still the fork of the keeper that is about to become the program
    bint known              # the monitor has seen it
    bint fresh              # not yet there at a measurement: as much as it may share is not counted
    int64_t inherited       # ... which is what its parent had then
    bint marked             # found by the current walk
    bint gone
    bint forgotten          # ... and the monitor will not look at it again
    bint entering           # it is being entered just now
    bint left_alone         # it cannot be entered
    bint wanted             # it is to be entered whether memory is short or not
    int refused             # ... and why it could not be, an errno
    bint put_off            # ... or could not before memory was short: not tried again until then
    int tries
    uint64_t found_at       # us
    char name[16]

cdef struct OwnProcess:     # one of ours that is no helper: not of the tree, whatever it starts
    pid_t pid
    int statm
    int64_t sharing         # pages that are counted for another of ours as well (copy-on-write after a fork)

cdef struct LeftOut:
    pid_t pid
    uint64_t started        # as the kernel counts: the number may be another process' later

cdef struct ProcessList:
    Process **items
    uint32_t count
    uint32_t room

cdef struct Tree:
    # Guards the list of all, and what is counted of each.
    pthread_mutex_t lock
    ProcessList all         # the sampler's, which finds processes and frees those that are forgotten
    OwnProcess own[32]      # OWN_MAX
    int own_count
    uint64_t own_next       # when what ours share is to be measured again, us
    ProcessList look        # the monitor's: those of its present look
    pid_t root              # the keeper: all below it is the tree, orphans come to it
    pid_t wanted[256]       # ROOTS_MAX: processes that are to be of the tree as well, with all that they start
    int wanted_count
    LeftOut *left_out       # ... and those that are not, nor what they start
    uint32_t left_out_count
    uint32_t left_out_room
    int loadavg             # /proc/loadavg: tells when a process was made
    char last_pid[64]
    uint64_t ticks          # looks so far, from 1
    uint64_t shared_next    # when what is shared is to be measured again, us
    bint shared_due         # ... at once,
    uint64_t shared_soonest     # ... but not before this
    uint64_t small_next     # when some of the small ones are to be measured, us
    uint32_t small_at       # the place in `look` from which on
    int64_t copied          # Engine.copied when it was measured
    int64_t hidden          # pages that were not counted in the last sample, as they may be shared
    int64_t most            # what it would have been if nothing were shared: there cannot be more

cdef int tree_init(Tree *tree, pid_t root) noexcept nogil
cdef bint tree_attach(Tree *tree, pid_t pid) noexcept nogil
cdef void tree_find_again(Tree *tree) noexcept nogil
cdef Process *tree_have(Tree *tree, pid_t pid) noexcept nogil
cdef bint tree_leave_out(Tree *tree, pid_t pid) noexcept nogil
cdef int tree_add_own(Tree *tree, pid_t pid) noexcept nogil
cdef void tree_remove_own(Tree *tree, pid_t pid) noexcept nogil
cdef bint tree_is_own(Tree *tree, pid_t pid) noexcept nogil
cdef void tree_measure_own(Tree *tree) noexcept nogil
cdef int64_t tree_own_pages(Tree *tree) noexcept nogil
cdef void tree_find(Tree *tree) noexcept nogil
cdef void tree_begin_look(Tree *tree) noexcept nogil
cdef void tree_end_look(Tree *tree) noexcept nogil
cdef int64_t tree_sample(Tree *tree, int64_t copied) noexcept nogil
cdef bint tree_is_due(Tree *tree) noexcept nogil
cdef void tree_measure_shared(Tree *tree, int64_t copied, int64_t room) noexcept nogil
cdef int64_t anonymous_pages(int statm, uint64_t *mapped, int64_t *untouched) noexcept nogil
