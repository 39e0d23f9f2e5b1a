# SPDX-License-Identifier: GPL-2.0-or-later
"""What userswap says when it cannot do what it was asked."""

EXIT_OWN_ERROR = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class UserswapError(Exception):
    """A refusal: its text is one line for the user, printed after `userswap: `; the exit status is 125."""


def reason(error: OSError) -> str:
    """The system's words for an error, without number and path."""
    return error.strerror or str(error)
