"""Colours of classes, which stay the same from one run to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from devnet_jax.report.html.figure import N_COLOURS

NORMAL = 0  # colour of normal images
OTHERS = N_COLOURS - 1  # grey: colour of several classes together


def choose_colours(names: Collection[str]) -> dict[str, int]:
    """Returns a colour for each name, no two alike, that depends on the names alone.

    The names choose one after the other among the colours left, in orders that their hashes give.
    So a name that comes or goes seldom changes the colour of another one: a fourth class leaves the
    other three as they are in seven of ten cases.

    Args:
      names: at most `OTHERS` names.

    Returns:
      {name: colour}, colours of 1 to `OTHERS`; `OTHERS` itself only for the last of so many.
    """
    if len(names) > OTHERS:
        raise ValueError(f"{len(names)} names for {OTHERS} colours")
    chosen: dict[str, int] = {}
    for name in sorted(names, key=_hash):
        left = set(range(1, OTHERS)).difference(chosen.values())
        hashes = {_hash(f"{colour} {name}"): colour for colour in left}
        chosen[name] = hashes[min(hashes)] if hashes else OTHERS
    return chosen


def _hash(text: str) -> bytes:
    """Returns a hash of text, which may be a file name of any bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
