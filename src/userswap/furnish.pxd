# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a fresh clone of a program's thread into the resident helper."""
from libc.stdint cimport uint64_t

from userswap.inject cimport Helper
from userswap.tracee cimport Tracee

# Take over a clone that has not run yet, and set it off as the helper: detached, waiting at its mailbox.
# Fills in all of `helper` but what concerns the target. 0 or -errno; on failure the clone's changes to the
# program's memory are undone, and what `helper` holds by then is the caller's to end.
cdef int furnish(Tracee *child, Helper *helper, int uffd, uint64_t features, uint64_t staging_length) noexcept nogil
