# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that are never evicted, since the kernel writes to them where no fault can be raised.

When a thread ends the kernel clears a word of its memory (CLONE_CHILD_CLEARTID) and walks its list of robust
mutexes. A fault of an ending thread is not told to us: it fails, the kernel lets it be, and who joins the
thread waits for ever. The C libraries keep the word and the head of the list in one page, the thread's control
block, and the kernel tells where the list is.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset
from posix.types cimport pid_t

from userswap.ranges cimport Ranges, ranges_add, ranges_free
from userswap.system cimport (
    DIR,
    closedir,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_next_task,
    sys_now_us,
    sys_open_tasks,
    sys_robust_list,
    sys_since_us,
)
from userswap.types cimport PAGE_SHIFT

cdef enum:
    LOOK_EVERY_US = 50000
    SHARE = 20              # at most so small a part of the time is spent on it


cdef void spare_look(Engine *engine, Mm *mm) noexcept nogil:
    """Looks at the threads of the process that the mm was entered through, now and then. A thread made since the last
    look is safe for a while, as its control block is young."""
    cdef Ranges spared, old
    cdef DIR *tasks
    cdef pid_t tid
    cdef uint64_t list_head
    cdef uint64_t start = sys_now_us()
    if start < mm.spare_next:
        return
    tasks = sys_open_tasks(mm.pid)
    if tasks == NULL:
        return
    memset(&spared, 0, sizeof(Ranges))
    while True:
        tid = sys_next_task(tasks)
        if tid == 0:
            break
        list_head = sys_robust_list(tid)
        if list_head != 0:
            ranges_add(&spared, list_head >> PAGE_SHIFT, (list_head >> PAGE_SHIFT) + 1)
    closedir(tasks)
    pthread_mutex_lock(&mm.lock)
    old = mm.spared
    mm.spared = spared
    pthread_mutex_unlock(&mm.lock)
    ranges_free(&old)
    mm.spare_next = start + max(<uint64_t>LOOK_EVERY_US, SHARE * sys_since_us(start))
