# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine and user can do. `userswap doctor` prints every check; `run` refuses on the same ones."""

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable

from userswap import libc, ram
from userswap.errors import UserswapError, reason
from userswap.sizes import format_size

UFFD_USER_MODE_ONLY = 1
USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_API = 0xC018AA3F
UFFD_API = 0xAA
UFFD_FEATURE_EVENT_FORK = 1 << 1
UFFD_FEATURE_MOVE = 1 << 16
PAGEMAP_SCAN = 0xC0606610
PROCMAP_QUERY = 0xC0686611

CAP_SYS_PTRACE = 19

OK, LESS, FAIL = "ok", "less", "FAIL"

PRIORITY = 4  # the highest that threads of ours ask for (system.h)
LEAST_FILES = 256  # that have to be allowed
FILES_A_PROCESS = 8
MANY_PROCESSES = 400

DEVICE = "/dev/userfaultfd"
RULES = "/etc/udev/rules.d"
RULE = 'KERNEL=="userfaultfd", MODE="0666"\n'
RULE_NAME = "90-userfaultfd.rules"
ALLOW = "userswap doctor --fix"


class Check:
    """One line of the table. A check that fails refuses `run`; one that finds less only costs something."""

    __slots__ = ("fix", "found", "meaning", "name", "state")

    def __init__(self, name: str, state: str, found: str, meaning: str = "", fix: str = "") -> None:
        self.name = name
        self.state = state
        self.found = found
        self.meaning = meaning
        self.fix = fix


def check_machine() -> Check:
    machine = os.uname()
    found = f"{machine.sysname} {machine.release} on {machine.machine}"
    if machine.sysname == "Linux" and machine.machine == "x86_64" and sys.maxsize > 1 << 32:
        return Check("machine", OK, found)
    return Check(
        "machine", FAIL, found, "userswap enters programs on 64-bit x86 Linux only", "use such a machine"
    )


def check_userfaultfd() -> Check:
    """Which of the three ways opens one, in the order that the engine tries them."""
    way, fd = open_userfaultfd()
    if fd is None:
        return Check(
            "userfaultfd", FAIL, "cannot be opened",
            "the kernel lacks it (CONFIG_USERFAULTFD), or this user and container may not",
            f"as root, once: {ALLOW}",
        )  # fmt: skip
    os.close(fd)
    if way == _USER_MODE:
        return Check(
            "userfaultfd", FAIL, way,
            "a system call on a swapped buffer would fail with EFAULT, which breaks programs",
            f"as root, once: {ALLOW}; or: sysctl vm.unprivileged_userfaultfd=1",
        )  # fmt: skip
    return Check("userfaultfd", OK, way)


def check_move() -> Check:
    features = userfaultfd_features()
    if features is not None and features & UFFD_FEATURE_MOVE:
        return Check("UFFDIO_MOVE", OK, "there")
    found = "not there" if features is not None else "cannot be asked without userfaultfd"
    return Check(
        "UFFDIO_MOVE", FAIL, found, "pages could not be taken out of a program without losing writes to them",
        "run Linux 6.8 or newer",
    )  # fmt: skip


CAPABILITY = (
    "run as root; in a container add --cap-add SYS_PTRACE; or as root, for one user:\n"
    "setpriv --reuid USER --regid USER --init-groups \\\n"
    "  --inh-caps +sys_ptrace --ambient-caps +sys_ptrace userswap run ..."
)


def forks_are_told() -> bool:
    """Whether the kernel tells the engine of forks. Else they have to be caught (catch.pyx)."""
    return has_capability(CAP_SYS_PTRACE) and userfaultfd_features(UFFD_FEATURE_EVENT_FORK) is not None


def check_forks() -> Check:
    """Who is told of a program's forks: else children would read zeros where its memory was swapped."""
    if forks_are_told():
        return Check("forks", OK, "CAP_SYS_PTRACE is held")
    held = has_capability(CAP_SYS_PTRACE)
    found = f"CAP_SYS_PTRACE is {'held in this user namespace only' if held else 'not held'}"
    error = _try_to_watch_forks()
    if error:
        return Check(
            "forks", FAIL, f"{found}, and a filter of seccomp cannot be used: {os.strerror(error)}",
            "the child of a fork would read zeros where its parent's memory was swapped", CAPABILITY,
        )  # fmt: skip
    return Check(
        "forks", LESS, found,
        "each fork takes a few milliseconds more, set-user-ID programs stay without their rights,\n"
        "and attach does not work",
        CAPABILITY,
    )  # fmt: skip


def _try_to_watch_forks() -> int:
    """In a child. 0 or an errno."""
    from userswap.tracer import watch_forks

    pid = os.fork()
    if pid == 0:
        status = errno.EPERM
        try:
            watch_forks()
            status = 0
        except OSError as error:
            status = error.errno or errno.EPERM
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check_ptrace_scope(path: str = "/proc/sys/kernel/yama/ptrace_scope") -> Check:
    try:
        with open(path, encoding="utf-8") as file:
            scope = int(file.read())
    except OSError:
        return Check("ptrace scope", OK, "no restriction (Yama is not there)")
    fix = f"sysctl kernel.yama.ptrace_scope=1 (3 stays until a reboot: {path})"
    if scope >= 3:
        return Check("ptrace scope", FAIL, f"{scope}: nobody may trace", "no program can be entered", fix)
    if scope == 2 and not has_capability(CAP_SYS_PTRACE):
        return Check(
            "ptrace scope", FAIL, "2: only CAP_SYS_PTRACE may trace", "no program can be entered", fix
        )
    meaning = ("any program of this user can be entered", "programs that userswap starts can be entered", "")[
        scope
    ]
    return Check("ptrace scope", OK, str(scope), meaning)


def check_ptrace() -> Check:
    """Seize a child, as the engine does: a seccomp filter or a security module can forbid it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)  # until the parent closes its end
        os._exit(0)
    os.close(read_end)
    try:
        libc.ptrace_seize(pid)
        return Check("ptrace", OK, "a child can be seized")
    except OSError as error:
        return Check(
            "ptrace", FAIL, reason(error), "no program can be entered",
            "allow ptrace in the seccomp filter or security module of this container (its default allows it)",
        )  # fmt: skip
    finally:
        os.close(write_end)
        os.waitpid(pid, 0)


def check_filter() -> Check:
    """Before version 23 Docker's default filter forbids some calls to who lacks CAP_SYS_PTRACE, whoever is
    meant by them."""
    for name, call in (("ptrace", libc.ptrace_nobody), ("process_vm_readv", libc.copy_process_memory)):
        try:
            call()
        except OSError as error:
            return Check(
                "seccomp filter", FAIL, f"{name}: {reason(error)}", "no program can be entered",
                "allow ptrace, process_vm_readv and process_vm_writev in the filter of this container:\n"
                "Docker 23, containerd 1.7 and Podman do by default; or add --cap-add SYS_PTRACE",
            )  # fmt: skip
    return Check("seccomp filter", OK, "lets processes be entered")


def check_pagemap_scan() -> Check:
    return _ioctl_check(
        "PAGEMAP_SCAN",
        "/proc/self/pagemap",
        PAGEMAP_SCAN,
        96,
        "the engine cannot tell which pages are present",
        "6.7",
    )


def check_procmap_query() -> Check:
    return _ioctl_check(
        "PROCMAP_QUERY",
        "/proc/self/maps",
        PROCMAP_QUERY,
        104,
        "the engine cannot tell what a program has mapped",
        "6.11",
    )


def check_open_files() -> Check:
    """The engine and the keeper raise their own limit as far as they may."""
    import resource

    name, most = "open files", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY:
        return Check(name, OK, "no limit")
    fix = "raise it: ulimit -Hn 65536, as root; or nofile in /etc/security/limits.conf"
    if most < LEAST_FILES:
        return Check(
            name, FAIL, f"{most} at most", f"the engine needs {LEAST_FILES}, and more for many processes", fix
        )
    processes = (most - LEAST_FILES // 2) // FILES_A_PROCESS
    if processes < MANY_PROCESSES:
        return Check(name, LESS, f"{most} at most", f"enough for about {processes} processes at a time", fix)
    return Check(name, OK, f"{most} at most")


def check_real_time() -> Check:
    """By asking for it, in a thread's stead for a moment."""
    name = "real time"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return Check(
            name, LESS, "not allowed",
            "on busy CPUs faults take longer, and memory may be over the limit for moments",
            f"ulimit -r {PRIORITY}, or rtprio in /etc/security/limits.conf",
        )  # fmt: skip
    return Check(name, OK, "allowed")


def check_memory() -> Check:
    total, available = ram.memory_total(), ram.memory_available()
    return Check("memory", OK, f"{format_size(available)} available of {format_size(total)}")


def check_cgroup() -> Check:
    limit = ram.cgroup_limit()
    found = "no limit" if limit is None else format_size(limit)
    return Check("cgroup limit", OK, found, f"--ram auto comes to {format_size(ram.automatic_ram())} now")


def check_swap_directory() -> Check:
    """The default swap area, by opening one."""
    from userswap import areas

    name = "default swap area"
    try:
        directory = areas.default_directory()
        opened = areas.open_areas([])
    except UserswapError as error:
        return Check(
            name, LESS, str(error).removeprefix("--swap "), "--swap must name a place", "run --swap PATH:SIZE"
        )
    areas.abandon_areas(opened)
    free, size = areas.free_space(directory), opened[0].size_bytes
    found = f"{format_size(size)} in {directory}, O_DIRECT works"
    return Check(name, OK, found, f"half of {format_size(free)} free, 1 GiB stays free")


def check_encryption() -> Check:
    """By loading the library that the engine takes."""
    import ctypes

    try:
        ctypes.CDLL("libcrypto.so.3")
    except OSError:
        return Check(
            "encryption", LESS, "no libcrypto.so.3", "run --encrypt does not work",
            "install OpenSSL 3: package libssl3",
        )  # fmt: skip
    return Check("encryption", OK, "libcrypto.so.3")


# What law 1 rests on: `run` refuses with the first of these that fails.
NEEDED: tuple[Callable[[], Check], ...] = (
    check_machine,
    check_userfaultfd,
    check_move,
    check_forks,
    check_ptrace_scope,
    check_filter,
    check_pagemap_scan,
    check_procmap_query,
    check_open_files,
)
ALL: tuple[Callable[[], Check], ...] = (
    *NEEDED,
    check_ptrace,
    check_real_time,
    check_memory,
    check_cgroup,
    check_swap_directory,
    check_encryption,
)


def refuse_unfit_machine() -> None:
    """Raise UserswapError, in the words of doctor, if programs could not be run safely here."""
    for look in NEEDED:
        check = look()
        if check.state == FAIL:
            raise UserswapError(
                f"{check.name}: {check.found}: {check.meaning} (userswap doctor says how to fix it)"
            )


def refuse_untold_forks() -> None:
    """Raise UserswapError if nothing can be attached to."""
    if not forks_are_told():
        raise UserswapError(
            "CAP_SYS_PTRACE is not held: forks of what runs already cannot be served "
            "(userswap doctor says more)"
        )


def refuse_without_encryption() -> None:
    """Raise UserswapError if `--encrypt` does not work here."""
    check = check_encryption()
    if check.state != OK:
        raise UserswapError(f"--encrypt: {check.found}: {check.fix}")


def doctor() -> int:
    """Print the table. 0 if `run` works here, else 1."""
    checks = [look() for look in ALL]
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.state:<4}  {check.name:<{width}}  {check.found}")
        margin = " " * (width + 8)
        for line in check.meaning.splitlines():
            print(f"{margin}{line}")
        for number, line in enumerate(check.fix.splitlines()):
            print(f"{margin}{'fix: ' if number == 0 else '     '}{line}")
    failed = [check.name for check in checks if check.state == FAIL]
    print()
    print(f"userswap run does not work here: {', '.join(failed)}" if failed else "userswap run works here")
    return 1 if failed else 0


def fix(device: str = DEVICE, rules: str = RULES) -> int:
    """Let every user open the device: now, and after each start of the machine by a rule of udev. Who is not
    root is told how. 0 if it is so afterwards, else 1. Raises UserswapError."""
    try:
        mode = os.stat(device).st_mode
    except OSError as error:
        raise UserswapError(f"{device}: {reason(error)}: the kernel lacks it (CONFIG_USERFAULTFD)") from error
    if mode & 0o006 == 0o006:
        print(f"{device} can be opened by every user already")
        return 0
    rule = os.path.join(rules, RULE_NAME)
    if os.geteuid() != 0:
        print(f"as root, once:\nchmod 666 {device}\necho '{RULE.strip()}' > {rule}")
        return 1
    try:
        os.chmod(device, 0o666)
        print(f"{device} can be opened by every user now")
        if os.path.isdir(rules):
            with open(rule, "w", encoding="utf-8") as file:
                file.write(RULE)
            print(f"{rule} makes it so at each start")
        else:
            print(f"until the next start of the machine: there is no {rules}")
    except OSError as error:
        raise UserswapError(f"{error.filename}: {reason(error)}") from error
    return 0


_DEVICE = "through /dev/userfaultfd, full mode"
_SYSCALL = "through the system call, full mode"
_USER_MODE = "through the system call, user-mode-only"


def open_userfaultfd() -> tuple[str, int | None]:
    """The way that opened a userfaultfd, best first, and its fd; None if none did."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _DEVICE, fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(device)
    except OSError:
        pass
    for way, flags in ((_SYSCALL, 0), (_USER_MODE, UFFD_USER_MODE_ONLY)):
        try:
            return way, libc.userfaultfd(flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
    return "", None


def userfaultfd_features(asked: int = 0) -> int | None:
    """The features that the kernel grants along with those asked for; None if it refuses them."""
    fd = open_userfaultfd()[1]
    if fd is None:
        return None
    message = bytearray(struct.pack("QQQ", UFFD_API, asked, 0))
    try:
        fcntl.ioctl(fd, UFFDIO_API, message)
    except OSError:
        return None
    finally:
        os.close(fd)
    return int(struct.unpack("QQQ", message)[1])


def has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _ioctl_check(name: str, path: str, request: int, size: int, without: str, since: str) -> Check:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return Check(name, FAIL, f"{path}: {reason(error)}", without)
    try:
        fcntl.ioctl(fd, request, bytearray(struct.pack("Q", size) + bytes(size - 8)))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EPERM):
            return Check(name, FAIL, "not there", without, f"run Linux {since} or newer")
    finally:
        os.close(fd)
    return Check(name, OK, "there")
