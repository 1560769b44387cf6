"""`UserError`, the exception for mistakes of the user, and hints for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can correct: a wrong setting, file or folder.

    The message says what is wrong, where (file, setting, value) and what to do. The command line
    prints it as one line, without a traceback, and exits with a non-zero status.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint for a misspelt name: the nearest known names, or all if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Returns an entry of a table; raises `UserError` with the nearest names if there is none.

    Args:
      table: entries by name.
      name: name to look up.
      kind: noun for the message, such as "backbone".
    """
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}: {nearest(name, table)}")
    return table[name]
