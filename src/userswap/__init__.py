# SPDX-License-Identifier: GPL-2.0-or-later
"""Swap for Linux programs, in user space."""

from userswap.plugins import Store

__all__ = ["Store"]
