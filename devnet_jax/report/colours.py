"""Colours of classes, which stay the same from one run to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from devnet_jax.report.html.figure import N_COLOURS

NORMAL = 0  # colour of normal images
OTHERS = N_COLOURS - 1  # grey: colour of several classes together


def choose_colours(names: Collection[str]) -> dict[str, int]:
    """Returns a colour for each name, no two alike, that depends on the names alone.

    Each name prefers the colours in an order of its own, drawn by a hash, and grey last. All names
    first get the colour they like most; of those that like the same one, one gets it, and the
    others then choose among the colours left, and so on. So a name that comes or goes seldom
    changes the colour of another one: a fourth class leaves the other three as they are in seven of
    ten cases.

    Args:
      names: at most `OTHERS` names.

    Returns:
      {name: colour}, colours of 1 to `OTHERS`; `OTHERS` itself only for the last of so many.
    """
    if len(names) > OTHERS:
        raise ValueError(f"{len(names)} names for {OTHERS} colours")
    orders = {
        name: [*sorted(range(1, OTHERS), key=lambda c: _draw(f"{c} {name}")), OTHERS]
        for name in names
    }
    waiting = sorted(names, key=_draw)
    chosen: dict[str, int] = {}
    for choice in range(OTHERS):
        for name in waiting:
            colour = orders[name][choice]
            if colour not in chosen.values():
                chosen[name] = colour
        waiting = [name for name in waiting if name not in chosen]
    return chosen


def _draw(text: str) -> bytes:
    """Returns a hash of text, which may be a file name of any bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
