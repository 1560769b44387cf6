"""The one exception that a person, not a programmer, is meant to read, and a hint for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: a wrong setting, file or folder.

    The message says what is wrong, where (file, setting, value) and what to do
    about it. The command line prints it as one line, without a traceback, and
    ends with a non-zero status.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
