# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a fresh clone of a program's thread into the resident helper.

The clone has not run an instruction of its own. It is made to do, one by one, the system calls that cut it
loose from the program's files, map the one region that is ours, and open the userfaultfd; then it is given
its code and let go."""
from libc.errno cimport EACCES, EIO, ENOENT, ENOMEM, ENOSYS, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport strtol
from libc.string cimport memcpy, memset, strchr, strrchr, strstr
from posix.types cimport pid_t

from userswap.inject cimport (
    Helper, USERSWAP_HELPER_MAILBOX, USERSWAP_HELPER_UFFD, USERSWAP_MAILBOX_MAGIC, USERSWAP_MAILBOX_SIZE,
    helper_take, userswap_mailbox,
)
from userswap.system cimport PRIORITY_FAULT, PRIORITY_TRACEE, sys_open_proc, sys_prefer, sys_random, sys_read_small
from userswap.tracee cimport (
    PAGE, STEP_LIMIT_MS, Tracee, await_stop, read_memory, remote_call, set_options, user_regs_struct,
    write_memory,
)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/close_range.h>
    #include <sched.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/prctl.h>
    #include <sys/ptrace.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include "uapi.h"
    """
    const int SYS_chdir, SYS_close, SYS_close_range, SYS_dup3, SYS_ftruncate, SYS_ioctl, SYS_madvise
    const int SYS_memfd_create, SYS_mmap, SYS_mprotect, SYS_munlock, SYS_munmap, SYS_pidfd_getfd
    const int SYS_connect, SYS_pidfd_open, SYS_prctl, SYS_recvmsg, SYS_sendmsg, SYS_setsid, SYS_socket
    const int SYS_socketpair, SYS_userfaultfd
    long syscall(long number, ...) nogil
    int fchmod(int fd, unsigned mode) nogil

    const int PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH, PTRACE_O_EXITKILL
    long ptrace(int request, ...) nogil

    const int PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_FIXED
    const int MAP_FIXED_NOREPLACE, MAP_NORESERVE, MADV_DONTFORK, MADV_NOHUGEPAGE, CLOSE_RANGE_UNSHARE, PR_SET_NAME
    const int O_CLOEXEC, O_NONBLOCK, O_RDWR, MFD_CLOEXEC
    int open(const char *path, int flags) nogil
    int close(int fd) nogil
    int ioctl(int fd, unsigned long request, ...) nogil

    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    const int AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC, SOL_SOCKET, SO_PEERCRED, SCM_RIGHTS, MSG_CMSG_CLOEXEC
    ctypedef struct sockaddr_un "struct sockaddr_un":
        unsigned short sun_family
    ctypedef struct ucred "struct ucred":
        pid_t pid
    int socket(int domain, int type, int protocol) nogil
    int bind(int fd, void *address, unsigned length) nogil
    int listen(int fd, int backlog) nogil
    int getsockname(int fd, void *address, unsigned *length) nogil
    int getsockopt(int fd, int level, int option, void *value, unsigned *length) nogil
    int accept4(int fd, void *address, void *length, int flags) nogil
    ctypedef struct msghdr "struct msghdr":
        void *msg_name
        unsigned msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ctypedef struct cmsghdr "struct cmsghdr":
        size_t cmsg_len
        int cmsg_level, cmsg_type
    ssize_t sendmsg(int fd, const msghdr *message, int flags) nogil
    ssize_t recvmsg(int fd, msghdr *message, int flags) nogil

    const unsigned long UFFDIO_API, UFFDIO_MOVE, UFFDIO_REGISTER, USERFAULTFD_IOC_NEW
    const uint64_t UFFD_API, UFFDIO_REGISTER_MODE_MISSING
    ctypedef struct uffdio_api "struct uffdio_api":
        uint64_t api, features, ioctls
    ctypedef struct uffdio_range "struct uffdio_range":
        uint64_t start, len
    ctypedef struct uffdio_move "struct uffdio_move":
        uint64_t dst, src, len, mode
        int64_t move
    ctypedef struct uffdio_register "struct uffdio_register":
        uffdio_range range
        uint64_t mode, ioctls

cdef extern from "helper.h" nogil:
    const void *userswap_helper_code()
    uint64_t userswap_helper_code_length()
    uint64_t userswap_helper_entry()

cdef enum:
    HUGE_PAGE = 2 << 20
    # Where the addresses end that a program gets without asking for more (x86-64), and how far below that our region
    # lies: two TiB to four, or less, as programs with a sanitizer have only the nearer addresses free.
    USER_END = 0x7ffffffff000
    FARTHEST = 0x20000000000
    NEAREST = 0x2000000000
    REGION_TRIES = 8

cdef struct Region:
    uint64_t start, length, code, stack, mailbox, staging, staging_length


# ---- the clone, its memory and its files ----

cdef int first_stop(Tracee *child) noexcept nogil:
    """EXITKILL: should the engine die while the child is unfinished, it is gone too."""
    cdef int stop, rc = await_stop(child.tid, &stop, STEP_LIMIT_MS)
    if rc < 0:
        return rc
    rc = set_options(child, PTRACE_O_EXITKILL)
    if rc < 0:
        return rc
    return 0 if ptrace(PTRACE_GETREGS, child.tid, NULL, &child.registers) == 0 else -errno


cdef int64_t map_part(Tracee *child, uint64_t start, uint64_t length, int protection, int flags,
                      int fd) noexcept nogil:
    return remote_call(child, SYS_mmap, start, length, protection, flags, <uint64_t><int64_t>fd, 0)


cdef int64_t map_apart(Tracee *child, uint64_t length) noexcept nogil:
    """At an address that nothing was mapped near to, reserved; or -errno.

    The kernel's own choice would be the highest gap, and so right below what the program has mapped last. Its only
    thread may unmap some of that and map it anew at the same place, certain that nobody else maps anything there
    meanwhile; it would get its pages in place of ours, and lose them when our region goes."""
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    cdef uint64_t start, drawn = 0, distance = FARTHEST
    cdef int64_t rc
    cdef int _
    while distance >= NEAREST:
        for _ in range(REGION_TRIES):
            rc = sys_random(&drawn, sizeof(drawn))
            if rc < 0:
                return rc
            start = (<uint64_t>USER_END - distance - drawn % distance) // HUGE_PAGE * HUGE_PAGE
            rc = map_part(child, start, length, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1)
            if rc == <int64_t>start:
                return rc
        distance //= 2
    return map_part(child, 0, length, PROT_NONE, flags, -1)


cdef int reserve_region(Tracee *child, uint64_t staging_length, Region *region) noexcept nogil:
    """One mapping that nobody can use, with our parts inside: code, stack, mailbox, staging. What remains at
    its ends keeps the kernel from merging our parts with the program's. Staging is aligned for huge pages.

    The program may have asked that all its memory be locked (mlockall). Unlocked while it can not be used,
    the area is never populated; and MOVE takes no page from unlocked to locked memory."""
    cdef uint64_t head = 3 * PAGE + USERSWAP_MAILBOX_SIZE
    cdef uint64_t alignment = HUGE_PAGE if staging_length >= HUGE_PAGE else PAGE
    cdef int64_t start
    region.length = head + staging_length + PAGE + alignment - PAGE
    region.staging_length = staging_length
    start = map_apart(child, region.length)
    if start < 0 and start > -PAGE:
        return <int>start
    region.start = <uint64_t>start
    region.staging = (region.start + head + alignment - 1) // alignment * alignment
    region.mailbox = region.staging - USERSWAP_MAILBOX_SIZE
    region.stack = region.mailbox - PAGE
    region.code = region.stack - PAGE
    return <int>remote_call(child, SYS_munlock, region.start, region.length)


cdef int fill_region(Tracee *child, Region *region) noexcept nogil:
    """All but the mailbox. The code is mapped anew, as a right to execute can often not be added."""
    cdef int usable = PROT_READ | PROT_WRITE
    cdef int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    if map_part(child, region.code, PAGE, PROT_READ | PROT_EXEC, fixed, -1) < 0:
        return -EACCES      # a rule against new code, as SELinux has
    if remote_call(child, SYS_mprotect, region.stack, PAGE, usable) < 0:
        return -ENOMEM
    if remote_call(child, SYS_mprotect, region.staging, region.staging_length, usable) < 0:
        return -ENOMEM
    remote_call(child, SYS_madvise, region.staging, region.staging_length, MADV_NOHUGEPAGE)
    return write_memory(child.tid, region.code, userswap_helper_code(), userswap_helper_code_length())


cdef int shield_region(Tracee *child, Region *region) noexcept nogil:
    """Not for the program's children; and not locked, the parts that were mapped since included."""
    cdef int rc = <int>remote_call(child, SYS_madvise, region.start, region.length, MADV_DONTFORK)
    return rc if rc < 0 else <int>remote_call(child, SYS_munlock, region.start, region.length)


cdef int cut_loose(Tracee *child) noexcept nogil:
    """Out of the program's session, and away from its files."""
    remote_call(child, SYS_setsid)
    return <int>remote_call(child, SYS_close_range, 0, <uint32_t>-1, CLOSE_RANGE_UNSHARE)


cdef int place_fd(Tracee *child, int fd, int number) noexcept nogil:
    cdef int rc
    if fd < 0 or fd == number:
        return fd
    rc = <int>remote_call(child, SYS_dup3, fd, number, O_CLOEXEC)
    remote_call(child, SYS_close, fd)
    return rc


cdef int name_child(Tracee *child, uint64_t scratch) noexcept nogil:
    """And out of the program's directory, which somebody may want to unmount. `scratch` keeps the name."""
    cdef char name[16]
    memset(name, 0, sizeof(name))
    name[0] = c'/'
    cdef int rc = write_memory(child.tid, scratch, name, sizeof(name))
    if rc == 0:
        remote_call(child, SYS_chdir, scratch)
        memcpy(name, b"userswap-helper", 15)
        rc = write_memory(child.tid, scratch, name, sizeof(name))
    if rc == 0:
        rc = <int>remote_call(child, SYS_prctl, PR_SET_NAME, scratch)
    return rc


# ---- files between the clone and us ----

cdef struct Link:
    int pidfd               # of the clone; it is how its files are taken, where that is allowed,
    int ours                # ... and else, as in most containers, this pair of sockets
    int theirs
    uint64_t scratch        # a page of the clone's

cdef struct Rights:         # a message that carries one fd; the kernel's layout
    msghdr message
    iovec vector
    cmsghdr header
    int fd
    int padding
    uint64_t byte


cdef void write_rights(Rights *rights, uint64_t base, int fd) noexcept nogil:
    """As it is to lie at address `base` of whoever passes it to the kernel."""
    memset(rights, 0, sizeof(Rights))
    rights.message.msg_iov = <iovec *>(base + (<char *>&rights.vector - <char *>rights))
    rights.message.msg_iovlen = 1
    rights.message.msg_control = <void *>(base + (<char *>&rights.header - <char *>rights))
    rights.message.msg_controllen = sizeof(cmsghdr) + 2 * sizeof(int)
    rights.vector.iov_base = <void *>(base + (<char *>&rights.byte - <char *>rights))
    rights.vector.iov_len = 1
    rights.header.cmsg_len = sizeof(cmsghdr) + sizeof(int)
    rights.header.cmsg_level = SOL_SOCKET
    rights.header.cmsg_type = SCM_RIGHTS
    rights.fd = fd


cdef int listen_anywhere(sockaddr_un *address, unsigned *length) noexcept nogil:
    """A socket that listens, under a name that the kernel gives it and that no file has; or -errno."""
    cdef int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    memset(address, 0, sizeof(sockaddr_un))
    address.sun_family = AF_UNIX
    length[0] = sizeof(sockaddr_un)
    if bind(fd, address, sizeof(address.sun_family)) == 0 and listen(fd, 8) == 0 and getsockname(
            fd, address, length) == 0:
        return fd
    close(fd)
    return -EPERM


cdef int accept_from(int listener, pid_t pid) noexcept nogil:
    """Others may know the name as well."""
    cdef ucred peer
    cdef unsigned length
    cdef int _, fd
    for _ in range(64):
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)
        if fd < 0:
            return -errno
        length = sizeof(peer)
        if getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 and peer.pid == pid:
            return fd
        close(fd)
    return -EPERM


cdef bint pair_with_clone(Tracee *child, Link *link) noexcept nogil:
    """It makes a pair of sockets, of which we take one."""
    cdef int pair[2]
    if remote_call(child, SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link.scratch) < 0 or read_memory(
            child.tid, link.scratch, pair, sizeof(pair)) != sizeof(pair):
        return False
    link.ours = <int>syscall(SYS_pidfd_getfd, link.pidfd, pair[0], 0)
    remote_call(child, SYS_close, pair[0])
    if link.ours < 0:
        remote_call(child, SYS_close, pair[1])
        return False
    link.theirs = pair[1]
    return True


cdef int connect_clone(Tracee *child, Link *link) noexcept nogil:
    """Once. -EPERM where it is in another network, and pidfd_getfd(2) is forbidden."""
    cdef sockaddr_un address
    cdef unsigned length
    cdef int listener, rc
    if link.ours >= 0 or pair_with_clone(child, link):
        return 0
    listener = listen_anywhere(&address, &length)
    if listener < 0:
        return listener
    rc = write_memory(child.tid, link.scratch, &address, sizeof(address))
    if rc == 0:
        link.theirs = <int>remote_call(child, SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
        rc = link.theirs if link.theirs < 0 else 0
    if rc == 0 and remote_call(child, SYS_connect, link.theirs, link.scratch, length) < 0:
        rc = -EPERM
    if rc == 0:
        link.ours = accept_from(listener, child.tid)
        rc = link.ours if link.ours < 0 else 0
    close(listener)
    return rc


cdef int take_fd(Tracee *child, Link *link, int number) noexcept nogil:
    """A copy of one of its files; or -errno."""
    cdef Rights rights
    cdef int fd = <int>syscall(SYS_pidfd_getfd, link.pidfd, number, 0)
    if fd >= 0:
        return fd
    if errno != EPERM and errno != ENOSYS:
        return -errno
    fd = connect_clone(child, link)
    if fd < 0:
        return fd
    write_rights(&rights, link.scratch, number)
    fd = write_memory(child.tid, link.scratch, &rights, sizeof(rights))
    if fd < 0 or remote_call(child, SYS_sendmsg, link.theirs, link.scratch, 0) != 1:
        return -EPERM
    write_rights(&rights, <uint64_t>&rights, -1)
    if recvmsg(link.ours, &rights.message, MSG_CMSG_CLOEXEC) != 1 or rights.fd < 0:
        return -EPERM
    return rights.fd


cdef int receive_rights(Tracee *child, int socket, uint64_t scratch) noexcept nogil:
    """The number that the fd has in the child."""
    cdef Rights rights
    cdef int rc
    write_rights(&rights, scratch, -1)
    rc = write_memory(child.tid, scratch, &rights, sizeof(rights))
    if rc == 0:
        rc = <int>remote_call(child, SYS_recvmsg, socket, scratch, MSG_CMSG_CLOEXEC)
    if rc < 0:
        return rc
    if read_memory(child.tid, scratch, &rights, sizeof(rights)) != sizeof(rights):
        return -EIO
    return rights.fd if rights.fd >= 0 else -EIO


cdef int give_fd(Tracee *child, Link *link, int fd) noexcept nogil:
    """One of ours. The number that it has there; or -errno."""
    cdef Rights rights
    cdef int rc = connect_clone(child, link)
    if rc < 0:
        return rc
    write_rights(&rights, <uint64_t>&rights, fd)
    if sendmsg(link.ours, &rights.message, 0) != 1:
        return -errno
    return receive_rights(child, link.theirs, link.scratch)


cdef void close_link(Tracee *child, Link *link) noexcept nogil:
    if link.theirs >= 0:
        remote_call(child, SYS_close, link.theirs)
    if link.ours >= 0:
        close(link.ours)


cdef int make_mailbox(Tracee *child, Region *region, Link *link, Helper *helper) noexcept nogil:
    """A memory file at its fixed number, mapped on both sides. The scratch page holds its name."""
    cdef int fd = <int>remote_call(child, SYS_memfd_create, region.stack, MFD_CLOEXEC)
    cdef int rc
    fd = place_fd(child, fd, USERSWAP_HELPER_MAILBOX)
    if fd < 0:
        return fd
    rc = <int>remote_call(child, SYS_ftruncate, fd, USERSWAP_MAILBOX_SIZE)
    if rc < 0:
        return rc
    if map_part(child, region.mailbox, USERSWAP_MAILBOX_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                fd) < 0:
        return -ENOMEM
    helper.mailbox_fd = take_fd(child, link, fd)
    if helper.mailbox_fd < 0:
        return helper.mailbox_fd
    return helper_take(helper) if fchmod(helper.mailbox_fd, 0o600) == 0 else -errno


# ---- the userfaultfd ----

cdef int uffd_by_device(Tracee *child, Link *link) noexcept nogil:
    """Our right to the device counts, and our view of /dev, not the target's; the ioctl must be the child's,
    as it binds the new fd to the memory of its caller."""
    cdef int fd, ours = open(b"/dev/userfaultfd", O_RDWR | O_CLOEXEC)
    cdef int device
    if ours < 0:
        return -EPERM
    device = give_fd(child, link, ours)
    close(ours)
    if device < 0:
        return device
    fd = <int>remote_call(child, SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
    remote_call(child, SYS_close, device)
    return fd


cdef int open_uffd(Tracee *child, Link *link) noexcept nogil:
    """In full mode only: with user mode only, system calls on evicted memory would give EFAULT."""
    cdef int fd = <int>remote_call(child, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        fd = uffd_by_device(child, link)
    fd = place_fd(child, fd, USERSWAP_HELPER_UFFD)
    return take_fd(child, link, fd) if fd >= 0 else fd


cdef int pass_uffd(Tracee *child, Link *link, int uffd) noexcept nogil:
    """One that the kernel made for a fork child: the helper gets a copy of ours."""
    cdef int fd = place_fd(child, give_fd(child, link, uffd), USERSWAP_HELPER_UFFD)
    cdef int rc = check_own(child, fd, link.scratch) if fd >= 0 else fd
    return take_fd(child, link, fd) if rc == 0 else rc


cdef int check_own(Tracee *child, int uffd, uint64_t scratch) noexcept nogil:
    """Whether the userfaultfd is of the child's own address space, -EINVAL if not. The kernel refuses a move in
    another one before it looks at the addresses; in the right one it finds nothing mapped at these. To find out
    by registering would change how a relative's memory is registered."""
    cdef uffdio_move move
    cdef int rc
    move.src = PAGE
    move.dst = 2 * PAGE
    move.len = PAGE
    move.mode = 0
    move.move = 0
    rc = write_memory(child.tid, scratch, &move, sizeof(move))
    if rc == 0:
        rc = <int>remote_call(child, SYS_ioctl, uffd, UFFDIO_MOVE, scratch)
    return 0 if rc == -ENOENT else rc


cdef int enable_uffd(int uffd, uint64_t features) noexcept nogil:
    cdef uffdio_api api
    api.api = UFFD_API
    api.features = features
    return 0 if ioctl(uffd, UFFDIO_API, &api) == 0 else -errno


cdef int register_staging(int uffd, Region *region) noexcept nogil:
    cdef uffdio_register area
    area.range.start = region.staging
    area.range.len = region.staging_length
    area.mode = UFFDIO_REGISTER_MODE_MISSING
    return 0 if ioctl(uffd, UFFDIO_REGISTER, &area) == 0 else -errno


# ---- all of it ----

cdef pid_t own_pid(pid_t pid) noexcept nogil:
    """What a process is to itself, in its own namespace: the last of its numbers."""
    cdef char text[4096]
    cdef char *line
    cdef int fd = sys_open_proc(pid, b"status")
    if fd < 0:
        return pid
    sys_read_small(fd, text, sizeof(text))
    close(fd)
    line = strstr(text, b"\nNSpid:")
    if line == NULL or strchr(line + 1, c'\n') == NULL:
        return pid
    strchr(line + 1, c'\n')[0] = 0
    return <pid_t>strtol(strrchr(line, c'\t'), NULL, 10)


cdef void describe(Helper *helper, Region *region) noexcept nogil:
    cdef userswap_mailbox *mailbox = helper.mailbox
    helper.own_start[0] = region.start
    helper.own_end[0] = region.start + region.length
    helper.staging = region.staging
    helper.staging_length = region.staging_length
    mailbox.region = region.start
    mailbox.region_length = region.length
    mailbox.staging = region.staging
    mailbox.staging_length = region.staging_length
    mailbox.uffd = USERSWAP_HELPER_UFFD
    helper.own_pid = own_pid(helper.pid)
    mailbox.pid = helper.own_pid
    mailbox.magic = USERSWAP_MAILBOX_MAGIC


cdef int set_off(Tracee *child, Region *region) noexcept nogil:
    """Into the helper's code. The direction flag is as C expects it, the stack as after a call."""
    cdef user_regs_struct registers = child.registers
    registers.rip = region.code + userswap_helper_entry()
    registers.rsp = region.mailbox - 8
    registers.rdi = region.mailbox
    registers.orig_rax = <unsigned long long>-1
    registers.eflags &= ~<unsigned long long>0x400
    if ptrace(PTRACE_SETREGS, child.tid, NULL, &registers) < 0:
        return -errno
    return 0 if ptrace(PTRACE_DETACH, child.tid, NULL, NULL) == 0 else -errno


cdef int equip(Tracee *child, Helper *helper, Region *region, int uffd, uint64_t features) noexcept nogil:
    cdef Link link
    cdef int rc = cut_loose(child)
    link.pidfd = helper.pidfd
    link.ours = link.theirs = -1
    link.scratch = region.stack
    if rc == 0:
        rc = fill_region(child, region)
    if rc == 0:
        rc = name_child(child, region.stack)
    if rc == 0:
        rc = make_mailbox(child, region, &link, helper)
    if rc == 0:
        rc = shield_region(child, region)
    if rc == 0:
        helper.uffd = open_uffd(child, &link) if uffd < 0 else pass_uffd(child, &link, uffd)
        rc = helper.uffd if helper.uffd < 0 else 0
    if rc == 0 and uffd < 0:
        rc = enable_uffd(helper.uffd, features)
    if rc == 0:
        rc = register_staging(helper.uffd, region)
    close_link(child, &link)
    if rc == 0:
        describe(helper, region)
        sys_prefer(child.tid, PRIORITY_FAULT)
        rc = set_off(child, region)
    return rc


cdef int furnish(Tracee *child, Helper *helper, int uffd, uint64_t features, uint64_t staging_length) noexcept nogil:
    cdef Region region
    cdef int rc
    memset(&region, 0, sizeof(region))
    helper.pid = child.tid
    rc = first_stop(child)
    if rc == 0:
        sys_prefer(child.tid, PRIORITY_TRACEE)      # every step of ours is a wait for its turn
        helper.pidfd = <int>syscall(SYS_pidfd_open, child.tid, 0)
        rc = reserve_region(child, staging_length, &region) if helper.pidfd >= 0 else -errno
    if rc == 0:
        rc = equip(child, helper, &region, uffd, features)
    if rc < 0 and region.start != 0:
        remote_call(child, SYS_munmap, region.start, region.length)
    return rc
