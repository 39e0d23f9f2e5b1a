# SPDX-License-Identifier: GPL-2.0-or-later
"""What our processes do that nobody waits for: they keep nothing busy, and tell the system's log."""

import os


def let_go_of_everything() -> None:
    """Nobody may wait for us, or find a file system busy because of us."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    os.chdir("/")


def log(line: str) -> None:
    """To the system's log: there is no standard error any more."""
    import syslog

    syslog.openlog("userswap", syslog.LOG_PID)
    syslog.syslog(syslog.LOG_ERR, line)
