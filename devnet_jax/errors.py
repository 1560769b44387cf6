"""`UserError`, the exception for mistakes of the user, and hints for misspelt names."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can correct: a wrong setting, file or folder.

    The message says what is wrong, where (file, setting, value) and what to do. The command line
    prints it as one line, without a traceback, and exits with a non-zero status.
    """


def printable(text: str) -> str:
    """Returns text on one line that can be printed anywhere, for messages with file names.

    Line ends, control characters, marks that reverse the direction of text, and surrogates (which
    Python uses for bytes of names that are not valid UTF-8) are shown as \\n, \\x1b or \\udc80.
    """
    return "".join(
        char.encode("unicode_escape").decode() if _is_unprintable(char) else char for char in text
    )


def _is_unprintable(char: str) -> bool:
    if char.isprintable():  # nearly always
        return False
    # Joiners (Cf), which names in several scripts and emoji need, stay as they are.
    is_control = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
    return is_control or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"


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
