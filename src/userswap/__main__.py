# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m userswap`."""

import sys

from userswap.cli import main

sys.exit(main())
