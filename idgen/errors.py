"""The one exception that idgen raises for a user's mistake."""

from __future__ import annotations


class IdgenError(Exception):
    """Something that the user can mend: one line that says what is wrong and how to mend it.

    The command line prints the message and exits with status 2; library users may catch it as any exception.
    """
