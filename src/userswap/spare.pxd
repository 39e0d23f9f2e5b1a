# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that are never evicted, since the kernel writes to them where no fault can be raised."""

from userswap.mm cimport Engine, Mm

cdef void spare_look(Engine *engine, Mm *mm) noexcept nogil
