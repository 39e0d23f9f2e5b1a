# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of processes below the engine, and how much memory each uses.

Everything is read from /proc, so that no process is touched. A process is looked for only when one was made
(/proc/loadavg tells the last pid); what it uses is one read of an open file.

The sampler finds them and adds up what they use, and waits for nobody. What takes longer or may have to wait, as what
they share, the monitor looks at. It has a list of its own for that, of processes that stay where they are until it has
forgotten them.
"""

from libc.stdio cimport snprintf, sscanf
from libc.stdlib cimport calloc, free, realloc, strtol
from libc.string cimport memset, strcmp, strlen, strncpy, strrchr, strstr
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close

from userswap.tracee cimport status_field, thread_state
from userswap.system cimport (
    DIR,
    ENOSPC,
    ENOSYS,
    EPERM,
    closedir,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    sys_next_task,
    sys_now_us,
    sys_open_proc,
    sys_open_tasks,
    sys_read_small,
    sys_same_memory,
    sys_since_us,
    sys_start_time,
    sys_waiting_call,
)

cdef enum:
    CHILDREN_BYTES = 1 << 16
    SHARED_EVERY_US = 50000
    SHARED_LEAST_US = 2000
    OWN_EVERY_US = 1000000
    SHARED_WORTH = 256      # pages: smaller processes are not looked at each time
    SMALL_WORTH = 16        # pages: still smaller ones never
    SMALL_SUM = 4096        # pages that all small ones count for: it is not worth it for less
    SMALL_ONCE = 64         # of them that are looked at at once
    CALL_CLONE = 56         # x86-64
    CALL_VFORK = 58


cdef int tree_init(Tree *tree, pid_t root) noexcept nogil:
    """Returns 0 or -errno."""
    memset(tree, 0, sizeof(Tree))
    tree.root = root
    pthread_mutex_init(&tree.lock, NULL)
    tree.loadavg = open(b"/proc/loadavg", O_RDONLY | O_CLOEXEC)
    return 0 if tree.loadavg >= 0 else -2


cdef bint _list_add(ProcessList *processes, Process *process) noexcept nogil:
    cdef void *grown
    if processes.count == processes.room:
        grown = realloc(processes.items, (2 * processes.room + 16) * sizeof(void *))
        if grown == NULL:
            return False
        processes.items = <Process **>grown
        processes.room = 2 * processes.room + 16
    processes.items[processes.count] = process
    processes.count += 1
    return True


# ---- processes that somebody names

cdef bint tree_attach(Tree *tree, pid_t pid) noexcept nogil:
    """It is of the tree, from the next look on, with all that it starts. False if too many are."""
    cdef bint done
    pthread_mutex_lock(&tree.lock)
    done = tree.wanted_count < ROOTS_MAX
    if done:
        tree.wanted[tree.wanted_count] = pid
        tree.wanted_count += 1
    pthread_mutex_unlock(&tree.lock)
    tree_find_again(tree)
    return done


cdef void tree_find_again(Tree *tree) noexcept nogil:
    """The next tree_find looks, whether a process was made or not."""
    pthread_mutex_lock(&tree.lock)
    tree.last_pid[0] = 0
    pthread_mutex_unlock(&tree.lock)


cdef Process *tree_have(Tree *tree, pid_t pid) noexcept nogil:
    """The process, which is of the tree from now on if it was not. NULL if it is gone. The sampler does not run
    yet."""
    cdef Process *process = _find(tree, pid)
    return process if process != NULL else _add(tree, pid, 0)


cdef bint tree_leave_out(Tree *tree, pid_t pid) noexcept nogil:
    """It is not, or not any more, nor is what it starts. False without memory."""
    cdef uint32_t at
    cdef void *grown
    pthread_mutex_lock(&tree.lock)
    if tree.left_out_count == tree.left_out_room:
        grown = realloc(tree.left_out, (2 * tree.left_out_room + 64) * sizeof(LeftOut))
        if grown == NULL:
            pthread_mutex_unlock(&tree.lock)
            return False
        tree.left_out = <LeftOut *>grown
        tree.left_out_room = 2 * tree.left_out_room + 64
    tree.left_out[tree.left_out_count].pid = pid
    tree.left_out[tree.left_out_count].started = sys_start_time(pid)
    tree.left_out_count += 1
    for at in range(tree.all.count):
        if tree.all.items[at].pid == pid:
            tree.all.items[at].gone = True
    pthread_mutex_unlock(&tree.lock)
    return True


cdef bint _is_left_out(Tree *tree, pid_t pid) noexcept nogil:
    """Tree.lock is held."""
    cdef uint32_t at
    for at in range(tree.left_out_count):
        if tree.left_out[at].pid == pid and tree.left_out[at].started == sys_start_time(pid):
            return True
    return False


cdef void _add_wanted(Tree *tree) noexcept nogil:
    cdef pid_t[256] wanted
    cdef int at, count
    cdef Process *process
    pthread_mutex_lock(&tree.lock)
    count = tree.wanted_count
    tree.wanted_count = 0
    for at in range(count):
        wanted[at] = tree.wanted[at]
    pthread_mutex_unlock(&tree.lock)
    for at in range(count):
        process = _find(tree, wanted[at])
        if process == NULL:
            process = _add(tree, wanted[at], 0)
        if process != NULL:
            process.fresh = False       # nothing is known of its parent: it counts for itself
            process.wanted = True


# ---- processes of ours that are not of the tree: Python's, which starts and ends them

cdef int tree_add_own(Tree *tree, pid_t pid) noexcept nogil:
    """A process that was made just now, and is not being entered. Returns 0, or -errno where it is gone already or one
    too many."""
    cdef uint32_t at
    cdef int statm = sys_open_proc(pid, b"statm")
    if statm < 0:
        return statm
    pthread_mutex_lock(&tree.lock)
    if tree.own_count == OWN_MAX:
        pthread_mutex_unlock(&tree.lock)
        close(statm)
        return -ENOSPC
    tree.own[tree.own_count].pid = pid
    tree.own[tree.own_count].statm = statm
    tree.own[tree.own_count].sharing = 0
    tree.own_count += 1
    for at in range(tree.all.count):
        if tree.all.items[at].pid == pid:
            tree.all.items[at].gone = True      # the sampler was quicker
    pthread_mutex_unlock(&tree.lock)
    return 0


cdef void tree_remove_own(Tree *tree, pid_t pid) noexcept nogil:
    """It has ended."""
    cdef int at
    pthread_mutex_lock(&tree.lock)
    for at in range(tree.own_count):
        if tree.own[at].pid == pid:
            close(tree.own[at].statm)
            tree.own_count -= 1
            tree.own[at] = tree.own[tree.own_count]
            break
    pthread_mutex_unlock(&tree.lock)


cdef bint _is_own(Tree *tree, pid_t pid) noexcept nogil:
    """Tree.lock is held."""
    cdef int at
    for at in range(tree.own_count):
        if tree.own[at].pid == pid:
            return True
    return False


cdef bint tree_is_own(Tree *tree, pid_t pid) noexcept nogil:
    cdef bint found
    pthread_mutex_lock(&tree.lock)
    found = _is_own(tree, pid)
    pthread_mutex_unlock(&tree.lock)
    return found


cdef int64_t tree_own_pages(Tree *tree) noexcept nogil:
    """Resident anonymous pages of all of them."""
    cdef uint64_t mapped
    cdef int64_t pages = 0
    cdef int at
    pthread_mutex_lock(&tree.lock)
    for at in range(tree.own_count):
        pages += max(anonymous_pages(tree.own[at].statm, &mapped, NULL) - tree.own[at].sharing, <int64_t>0)
    pthread_mutex_unlock(&tree.lock)
    return pages


cdef void tree_measure_own(Tree *tree) noexcept nogil:
    """What ours share, as they are forks of each other: now and then, as it becomes less. One thread's at a time."""
    cdef int64_t anonymous, sharing
    cdef pid_t pid
    cdef int at = 0
    cdef uint64_t now = sys_now_us()
    if now < tree.own_next:
        return
    tree.own_next = now + OWN_EVERY_US
    while at < tree.own_count:
        pid = tree.own[at].pid
        _read_shares(pid, &anonymous, &sharing)
        pthread_mutex_lock(&tree.lock)
        if at < tree.own_count and tree.own[at].pid == pid:
            tree.own[at].sharing = sharing
        pthread_mutex_unlock(&tree.lock)
        at += 1


# ---- finding: the sampler's

cdef Process *_find(Tree *tree, pid_t pid) noexcept nogil:
    cdef uint32_t at
    for at in range(tree.all.count):
        if tree.all.items[at].pid == pid and not tree.all.items[at].gone:
            return tree.all.items[at]
    return NULL


cdef void _free(Process *process) noexcept nogil:
    close(process.statm)
    free(process)


cdef void _read_name(Process *process) noexcept nogil:
    cdef int fd = sys_open_proc(process.pid, b"comm")
    cdef long length
    process.name[0] = 0
    if fd < 0:
        return
    length = sys_read_small(fd, process.name, NAME_BYTES)
    if length > 0 and process.name[length - 1] == c'\n':
        process.name[length - 1] = 0
    close(fd)
    process.helper = strcmp(process.name, b"userswap-helper") == 0
    process.starting = strcmp(process.name, b"userswap-start") == 0


cdef Process *_add(Tree *tree, pid_t pid, pid_t parent) noexcept nogil:
    """NULL when the process is gone, or is not of the tree, or memory is short."""
    cdef bint added
    cdef Process *known = _find(tree, parent)
    cdef Process *process = <Process *>calloc(1, sizeof(Process))
    if process == NULL:
        return NULL
    process.statm = sys_open_proc(pid, b"statm")
    if process.statm < 0:
        free(process)
        return NULL
    process.pid = pid
    process.parent = parent
    process.found_at = sys_now_us()
    process.fresh = True
    process.inherited = known.anonymous if known != NULL else 0
    process.anonymous = anonymous_pages(process.statm, &process.mapped, &process.untouched)
    _read_name(process)
    pthread_mutex_lock(&tree.lock)
    added = not _is_own(tree, pid) and not _is_left_out(tree, pid) and _list_add(&tree.all, process)
    pthread_mutex_unlock(&tree.lock)
    if added:
        return process
    _free(process)
    return NULL


cdef void _walk_children(Tree *tree, pid_t parent, char *text) noexcept nogil:
    """Adds and marks the children named in `text`, numbers with blanks between."""
    cdef char *at = text
    cdef char *end
    cdef long pid
    cdef Process *process
    while True:
        pid = strtol(at, &end, 10)
        if end == at or pid <= 0:
            return
        at = end
        process = _find(tree, <pid_t>pid)
        if process == NULL:
            process = _add(tree, <pid_t>pid, parent)
        if process != NULL and not process.marked:
            process.marked = True
            process.parent = parent


cdef void _walk(Tree *tree, pid_t pid, char *text) noexcept nogil:
    """Reads the children of all threads of a process."""
    cdef char path[64]
    cdef DIR *tasks = sys_open_tasks(pid)
    cdef pid_t tid
    cdef int fd
    if tasks == NULL:
        return
    while True:
        tid = sys_next_task(tasks)
        if tid == 0:
            break
        snprintf(path, sizeof(path), b"/proc/%d/task/%d/children", <int>pid, <int>tid)
        fd = open(path, O_RDONLY | O_CLOEXEC)
        if fd < 0:
            continue
        if sys_read_small(fd, text, CHILDREN_BYTES) > 0:
            _walk_children(tree, pid, text)
        close(fd)
    closedir(tasks)


cdef void _free_forgotten(Tree *tree) noexcept nogil:
    cdef uint32_t at = 0
    pthread_mutex_lock(&tree.lock)
    while at < tree.all.count:
        if tree.all.items[at].forgotten:
            _free(tree.all.items[at])
            tree.all.count -= 1
            tree.all.items[at] = tree.all.items[tree.all.count]
        else:
            at += 1
    pthread_mutex_unlock(&tree.lock)


cdef void tree_find(Tree *tree) noexcept nogil:
    """Finds new processes, if any was made since the last time."""
    cdef char text[65536]
    cdef uint32_t at
    _free_forgotten(tree)
    _add_wanted(tree)
    sys_read_small(tree.loadavg, text, 64)
    if strrchr(text, c' ') != NULL and strcmp(strrchr(text, c' '), tree.last_pid) == 0:
        return
    if strrchr(text, c' ') != NULL:
        strncpy(tree.last_pid, strrchr(text, c' '), 63)
    for at in range(tree.all.count):
        tree.all.items[at].marked = False
    _walk(tree, tree.root, text)
    at = 0
    while at < tree.all.count:      # _walk appends
        if not tree.all.items[at].gone:
            _walk(tree, tree.all.items[at].pid, text)
        at += 1


# ---- counting: the sampler's

cdef int64_t anonymous_pages(int statm, uint64_t *mapped, int64_t *untouched) noexcept nogil:
    """Resident anonymous pages of a process; in *mapped the pages of all its mappings, in *untouched (unless NULL)
    those that it may write to and has not. -1 when it is gone."""
    cdef char text[128]
    cdef unsigned long size = 0, resident = 0, shared = 0, writable = 0
    if sys_read_small(statm, text, sizeof(text)) <= 0:
        return -1
    if sscanf(text, b"%lu %lu %lu %*u %*u %lu", &size, &resident, &shared, &writable) != 4:
        return -1
    mapped[0] = size
    if untouched != NULL:
        untouched[0] = <int64_t>writable - (<int64_t>resident - <int64_t>shared)
    return <int64_t>resident - <int64_t>shared


cdef int64_t _pages(Tree *tree, int64_t copied) noexcept nogil:
    """Resident anonymous pages of the tree, each page counted once as far as is known. `copied` is how many pages
    writes after forks have taken so far: of those since the last measurement no process' own count tells."""
    cdef int64_t total = copied - tree.copied
    cdef uint32_t at
    cdef Process *process
    tree.hidden = 0
    tree.most = 0
    for at in range(tree.all.count):
        process = tree.all.items[at]
        if process.shares:
            continue
        tree.most += process.anonymous
        total += process.anonymous - process.shared     # may be negative: copies that were evicted
        if process.fresh:
            tree.hidden += max(min(process.anonymous, process.inherited) - process.shared, <int64_t>0)
    return min(total - tree.hidden, tree.most)


cdef void _sample(Tree *tree, Process *process, uint64_t now) noexcept nogil:
    """Looks at a process. Marks it when it is gone."""
    cdef bint counts = process.fresh or process.shared > 0      # so do its relatives now
    if process.starting:
        _read_name(process)
        if not process.starting:        # the program is there, and nothing of the fork any more
            process.found_at = now
            process.shared = 0
            process.measured = 0
    process.anonymous = anonymous_pages(process.statm, &process.mapped, &process.untouched)
    if process.anonymous < 0 or process.mapped == 0:    # gone, or a zombie
        process.anonymous = 0
        process.shared = 0
        tree.shared_due = tree.shared_due or (counts and not process.gone)
        process.gone = True
    elif now - process.found_at < SHARED_EVERY_US and process.anonymous - process.measured > SHARED_WORTH:
        tree.shared_due = True      # the page tables of a fork are being copied


cdef int64_t tree_sample(Tree *tree, int64_t copied) noexcept nogil:
    """Looks at each process. Returns the resident anonymous pages of the tree; `copied` is as for _pages."""
    cdef uint32_t at
    cdef uint64_t now = sys_now_us()
    cdef int64_t pages
    pthread_mutex_lock(&tree.lock)
    for at in range(tree.all.count):
        _sample(tree, tree.all.items[at], now)
    pages = _pages(tree, copied)
    pthread_mutex_unlock(&tree.lock)
    return pages


# ---- a look at them: the monitor's

cdef void _inherit(Tree *tree, Process *process) noexcept nogil:
    """It has the memory alone that was its parent's too: of that is shared what was."""
    cdef uint32_t at
    for at in range(tree.look.count):
        if tree.look.items[at].pid == process.parent:
            process.measured = tree.look.items[at].measured
            process.sharing = tree.look.items[at].sharing
            process.shared = process.sharing


cdef bint _shares(Process *process, pid_t root) noexcept nogil:
    """Whether it has its parent's memory. Where the kernel must not be asked: a helper has, and so has whom its parent
    waits for amid vfork, or a clone that is one."""
    cdef int same = sys_same_memory(process.pid, process.parent)
    cdef long call
    cdef int64_t tracer
    if same != -EPERM and same != -ENOSYS:
        return same == 1
    tracer = status_field(process.pid, process.pid, b"\nTracerPid:", 10)
    process.unsure = tracer > 0 and thread_state(root, <pid_t>tracer) != c'X'      # it is a thread of the keeper's
    _read_name(process)     # a helper gets its own before it is let go
    call = sys_waiting_call(process.parent, process.parent)
    process.unmade = process.unmade or process.unsure or call == CALL_CLONE
    return process.helper or call == CALL_VFORK or call == CALL_CLONE


cdef void _settle(Tree *tree, Process *process) noexcept nogil:
    """What has its parent's memory does not count for itself, until it runs another program."""
    if not process.known or process.shares or process.unsure:
        process.shares = _shares(process, tree.root)
        if process.known and not process.shares:
            _read_name(process)
            if process.helper:
                _inherit(tree, process)
            elif process.unmade:            # it comes of a fork, and has not been measured as such
                process.fresh = True
                process.found_at = sys_now_us()
        process.unmade = process.unmade and process.shares
        process.known = True


cdef void tree_begin_look(Tree *tree) noexcept nogil:
    """What there is now: it stays until tree_end_look."""
    cdef uint32_t at
    tree.look.count = 0
    pthread_mutex_lock(&tree.lock)
    for at in range(tree.all.count):
        if not tree.all.items[at].forgotten:
            _list_add(&tree.look, tree.all.items[at])
    pthread_mutex_unlock(&tree.lock)
    for at in range(tree.look.count):
        _settle(tree, tree.look.items[at])


cdef void tree_end_look(Tree *tree) noexcept nogil:
    """Forgets those that are gone, once their address spaces were seen to."""
    cdef uint32_t at
    cdef Process *process
    for at in range(tree.look.count):
        process = tree.look.items[at]
        process.forgotten = process.gone and process.mm_id == 0 and not process.entering
    tree.look.count = 0


cdef int64_t _pages_after(const char *text, const char *name) noexcept nogil:
    """The pages of one line of smaps_rollup, 0 where there is none."""
    cdef const char *at = strstr(text, name)
    return strtol(at + strlen(name), NULL, 10) // 4 if at != NULL else 0


cdef void _read_shares(pid_t pid, int64_t *anonymous, int64_t *sharing) noexcept nogil:
    """What a process has and, of that, what is more than its proportional part. Nothing, if it has ended meanwhile."""
    cdef char text[4096]
    cdef int fd = sys_open_proc(pid, b"smaps_rollup")
    text[0] = 0
    if fd >= 0:
        sys_read_small(fd, text, sizeof(text))
        close(fd)
    anonymous[0] = _pages_after(text, b"\nAnonymous:")
    sharing[0] = max(anonymous[0] - _pages_after(text, b"\nPss_Anon:"), <int64_t>0)


cdef void _measure(Process *process) noexcept nogil:
    _read_shares(process.pid, &process.measured, &process.sharing)


cdef bint _is_worth(Process *process) noexcept nogil:
    return not process.gone and not process.shares and process.anonymous > SHARED_WORTH


cdef uint32_t _count_worth(Tree *tree) noexcept nogil:
    """How many processes are large enough to look at for what they share."""
    cdef uint32_t at
    cdef uint32_t count = 0
    for at in range(tree.look.count):
        count += _is_worth(tree.look.items[at])
    return count


cdef bint tree_is_due(Tree *tree) noexcept nogil:
    """Whether tree_measure_shared is."""
    cdef uint64_t now = sys_now_us()
    return now >= tree.shared_next or (tree.shared_due and now >= tree.shared_soonest)


cdef void _take_measures(Tree *tree, int64_t copied) noexcept nogil:
    """What was measured holds from now on, of all at once; what was too small to be measured yet counts in full."""
    cdef uint32_t at
    pthread_mutex_lock(&tree.lock)
    tree.copied = copied
    for at in range(tree.look.count):
        tree.look.items[at].shared = tree.look.items[at].sharing
        tree.look.items[at].fresh = False
    pthread_mutex_unlock(&tree.lock)


cdef bint _is_small(Process *process) noexcept nogil:
    return (not process.gone and not process.shares and process.anonymous > SMALL_WORTH
            and process.anonymous <= SHARED_WORTH)


cdef bint _are_small_worth(Tree *tree) noexcept nogil:
    """Whether the small ones, hundreds of forks of one program for instance, count for much together."""
    cdef uint32_t at
    cdef int64_t pages = 0
    for at in range(tree.look.count):
        if _is_small(tree.look.items[at]):
            pages += tree.look.items[at].anonymous - tree.look.items[at].sharing
    return pages > SMALL_SUM


cdef void _measure_small(Tree *tree, uint64_t now) noexcept nogil:
    """Some of them, in turn; the others keep what was measured of them."""
    cdef uint32_t left = tree.look.count
    cdef uint32_t once = SMALL_ONCE
    if now < tree.small_next or not _are_small_worth(tree):
        return
    tree.small_next = now + SHARED_EVERY_US
    while left > 0 and once > 0:
        tree.small_at = tree.small_at + 1 if tree.small_at + 1 < tree.look.count else 0
        if _is_small(tree.look.items[tree.small_at]):
            _measure(tree.look.items[tree.small_at])
            once -= 1
        left -= 1


cdef void tree_measure_shared(Tree *tree, int64_t copied, int64_t room) noexcept nogil:
    """Measures, now and then, what forked processes share, so that it is counted once.

    Each page that one of them writes to is a new one, of which neither process' own count tells, and Engine.copied
    only where it is told of. The kernel walks their page tables for it, some milliseconds a gigabyte: as often as
    takes a fifth of the time, or, while there is room for some pages more, a twentieth at most; where processes come
    and go all the time, a third."""
    cdef uint32_t at
    cdef uint64_t now = sys_now_us()
    cdef uint64_t taken
    cdef bint any = False
    cdef bint alone = _count_worth(tree) < 2
    cdef Process *process
    tree.shared_due = False
    for at in range(tree.look.count):
        process = tree.look.items[at]
        process.sharing = min(process.sharing, process.anonymous) if _is_small(process) else 0
        if _is_worth(process) and not alone:
            _measure(process)
            # A young one may have been in the middle of its fork.
            any = any or process.sharing > SHARED_WORTH // 4 or now - process.found_at < SHARED_EVERY_US
    _measure_small(tree, now)
    _take_measures(tree, copied)
    tree.shared_next = now + SHARED_EVERY_US
    taken = sys_since_us(now)
    if room > 0:
        tree.shared_next = now + max(20 * taken, <uint64_t>(room * 1000 // TOUCH_PAGES_A_MS))
    elif any:
        tree.shared_next = now + max(min(5 * taken, <uint64_t>SHARED_EVERY_US), <uint64_t>SHARED_LEAST_US, 3 * taken)
    tree.shared_soonest = now + 3 * taken
