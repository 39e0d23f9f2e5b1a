# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's swap file and userswap, side by side: `python -m bench --help`."""
