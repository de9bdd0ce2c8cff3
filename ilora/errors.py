"""The one exception for a user's mistake: its text is one sentence with the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message names the argument, what it was and what to do about it.

    The command line prints the message alone and exits with 1; from Python it is a
    ``ValueError``.
    """
