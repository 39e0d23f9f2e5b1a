# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of processes below the engine, and how much memory each uses.

Everything is read from /proc, so that no process is touched. A process is looked for only when one was made
(/proc/loadavg tells the last pid); what it uses is one read of an open file.
"""

from libc.stdio cimport snprintf, sscanf
from libc.stdlib cimport free, realloc, strtol
from libc.string cimport memset, strcmp, strlen, strncpy, strrchr, strstr
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close

from userswap.system cimport (
    DIR,
    closedir,
    sys_next_task,
    sys_now_us,
    sys_open_proc,
    sys_open_tasks,
    sys_read_small,
    sys_same_memory,
    sys_since_us,
)

cdef enum:
    CHILDREN_BYTES = 1 << 16
    SHARED_EVERY_US = 50000
    SHARED_LEAST_US = 2000
    SHARED_WORTH = 256      # pages: smaller processes are not looked at


cdef int tree_init(Tree *tree, pid_t root) noexcept nogil:
    """Returns 0 or -errno."""
    memset(tree, 0, sizeof(Tree))
    tree.root = root
    tree.loadavg = open(b"/proc/loadavg", O_RDONLY | O_CLOEXEC)
    return 0 if tree.loadavg >= 0 else -2


cdef void tree_deinit(Tree *tree) noexcept nogil:
    cdef uint32_t at
    for at in range(tree.count):
        if tree.processes[at].statm >= 0:
            close(tree.processes[at].statm)
    free(tree.processes)
    close(tree.loadavg)


cdef Process *_find(Tree *tree, pid_t pid) noexcept nogil:
    cdef uint32_t at
    for at in range(tree.count):
        if tree.processes[at].pid == pid and not tree.processes[at].gone:
            return &tree.processes[at]
    return NULL


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


cdef Process *_add(Tree *tree, pid_t pid, pid_t parent) noexcept nogil:
    """NULL when the process is gone or memory is short."""
    cdef Process *process
    cdef void *grown
    cdef int statm = sys_open_proc(pid, b"statm")
    if statm < 0:
        return NULL
    if tree.count == tree.room:
        grown = realloc(tree.processes, (2 * tree.room + 16) * sizeof(Process))
        if grown == NULL:
            close(statm)
            return NULL
        tree.processes = <Process *>grown
        tree.room = 2 * tree.room + 16
    process = &tree.processes[tree.count]
    tree.count += 1
    memset(process, 0, sizeof(Process))
    process.pid = pid
    process.parent = parent
    process.statm = statm
    process.found_at = sys_now_us()
    process.shares = parent != tree.root and sys_same_memory(pid, parent) == 1
    _read_name(process)
    return process


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


cdef void tree_refresh(Tree *tree) noexcept nogil:
    """Finds new processes, if any was made since the last time; those that are no more are marked `gone`."""
    cdef char text[65536]
    cdef uint32_t at
    sys_read_small(tree.loadavg, text, 64)
    if strrchr(text, c' ') != NULL and strcmp(strrchr(text, c' '), tree.last_pid) == 0:
        return
    if strrchr(text, c' ') != NULL:
        strncpy(tree.last_pid, strrchr(text, c' '), 63)
    for at in range(tree.count):
        tree.processes[at].marked = False
    tree.shared_next = 0
    _walk(tree, tree.root, text)
    at = 0
    while at < tree.count:      # _walk appends
        if not tree.processes[at].gone:
            _walk(tree, tree.processes[at].pid, text)
        at += 1


cdef void tree_forget_gone(Tree *tree) noexcept nogil:
    """Removes those marked `gone`; the caller has seen to their address spaces."""
    cdef uint32_t at = 0
    while at < tree.count:
        if tree.processes[at].gone:
            close(tree.processes[at].statm)
            tree.count -= 1
            tree.processes[at] = tree.processes[tree.count]
        else:
            at += 1


cdef int64_t anonymous_pages(int statm, uint64_t *mapped) noexcept nogil:
    """Resident anonymous pages of a process and, in *mapped, the pages of all its mappings; -1 when it is gone."""
    cdef char text[128]
    cdef unsigned long size = 0, resident = 0, shared = 0
    if sys_read_small(statm, text, sizeof(text)) <= 0:
        return -1
    if sscanf(text, b"%lu %lu %lu", &size, &resident, &shared) != 3:
        return -1
    mapped[0] = size
    return <int64_t>resident - <int64_t>shared


cdef int64_t tree_pages_at_most(Tree *tree) noexcept nogil:
    """Resident anonymous pages of the tree if none were shared: there cannot be more."""
    cdef int64_t total = 0
    cdef uint32_t at
    for at in range(tree.count):
        if not tree.processes[at].shares:
            total += tree.processes[at].anonymous
    return total


cdef int64_t tree_pages(Tree *tree, int64_t copied) noexcept nogil:
    """Resident anonymous pages of the tree, each page counted once as far as is known. `copied` is how many pages
    writes after forks have taken so far: of those since the last measurement no process' own count tells."""
    cdef int64_t total = copied - tree.copied
    cdef uint32_t at
    cdef Process *process
    for at in range(tree.count):
        process = &tree.processes[at]
        if not process.shares:
            total += process.anonymous - process.shared     # may be negative: copies that were evicted
    return min(total, tree_pages_at_most(tree))


cdef void tree_sample(Tree *tree) noexcept nogil:
    """Looks at each process. Marks what is gone."""
    cdef uint32_t at
    cdef uint64_t now = sys_now_us()
    cdef Process *process
    for at in range(tree.count):
        process = &tree.processes[at]
        if process.shares and sys_same_memory(process.pid, process.parent) != 1:
            process.shares = False      # its count is its own from here on, not its parent's
            _read_name(process)
        process.anonymous = anonymous_pages(process.statm, &process.mapped)
        if process.anonymous < 0 or process.mapped == 0:    # gone, or a zombie
            process.anonymous = 0
            process.shared = 0
            process.gone = True
            tree.shared_next = 0
            continue
        if now - process.found_at < SHARED_EVERY_US and process.anonymous - process.measured > SHARED_WORTH:
            tree.shared_next = 0        # the page tables of a fork are being copied


cdef int64_t _pages_after(const char *text, const char *name) noexcept nogil:
    """The pages of one line of smaps_rollup, 0 where there is none."""
    cdef const char *at = strstr(text, name)
    return strtol(at + strlen(name), NULL, 10) // 4 if at != NULL else 0


cdef void _measure(Process *process) noexcept nogil:
    """What it has and, of that, what is more than its proportional part. Nothing, if it has ended meanwhile."""
    cdef char text[4096]
    cdef int fd = sys_open_proc(process.pid, b"smaps_rollup")
    text[0] = 0
    if fd >= 0:
        sys_read_small(fd, text, sizeof(text))
        close(fd)
    process.anonymous = _pages_after(text, b"\nAnonymous:")
    process.shared = max(process.anonymous - _pages_after(text, b"\nPss_Anon:"), <int64_t>0)
    process.measured = process.anonymous


cdef bint _is_worth(Process *process) noexcept nogil:
    return not process.gone and not process.shares and process.anonymous > SHARED_WORTH


cdef uint32_t _count_worth(Tree *tree) noexcept nogil:
    """How many processes are large enough to look at for what they share."""
    cdef uint32_t at
    cdef uint32_t count = 0
    for at in range(tree.count):
        count += _is_worth(&tree.processes[at])
    return count


cdef bint tree_is_due(Tree *tree) noexcept nogil:
    """Whether tree_measure_shared is."""
    return sys_now_us() >= tree.shared_next


cdef void tree_measure_shared(Tree *tree, int64_t copied, int64_t room) noexcept nogil:
    """Measures, now and then, what forked processes share, so that it is counted once.

    Each page that one of them writes to is a new one, of which neither process' own count tells, and Engine.copied only
    where it is told of. The kernel walks their page tables for it, some milliseconds a gigabyte: as often as takes a
    fifth of the time, or, while there is room for some pages more, a twentieth at most."""
    cdef uint32_t at
    cdef uint64_t now = sys_now_us()
    cdef uint64_t taken
    cdef bint any = False
    cdef bint alone = _count_worth(tree) < 2
    cdef Process *process
    tree.copied = copied
    for at in range(tree.count):
        process = &tree.processes[at]
        process.shared = 0
        if _is_worth(process) and not alone:
            _measure(process)
            # A young one may have been in the middle of its fork.
            any = any or process.shared > SHARED_WORTH // 4 or now - process.found_at < SHARED_EVERY_US
    tree.shared_next = now + SHARED_EVERY_US
    taken = sys_since_us(now)
    if room > 0:
        tree.shared_next = now + max(20 * taken, <uint64_t>(room * 1000 // TOUCH_PAGES_A_MS))
    elif any:
        tree.shared_next = now + min(max(5 * taken, <uint64_t>SHARED_LEAST_US), <uint64_t>SHARED_EVERY_US)
