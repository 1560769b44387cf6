"""Colours of classes, which stay the same from one run to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from devnet_jax.report.html.figure import N_COLOURS

NORMAL = 0  # colour of normal images
OTHERS = N_COLOURS - 1  # colour of several classes together


def choose_colours(names: Collection[str], n: int = OTHERS) -> dict[str, int]:
    """Returns a colour for each name, no two alike, that depends on the names alone.

    Each name prefers the colours in an order of its own, drawn by a hash. All names first get the
    colour they like most; of those that like the same one, one gets it, and the others then choose
    among the colours left, and so on. So a name that comes or goes changes the colour of another
    one rarely: with three classes, a fourth recolours one of them in a quarter of the cases.

    Args:
      names: at most n names.
      n: number of colours.

    Returns:
      {name: colour}, colours of 1 to n.
    """
    if len(names) > n:
        raise ValueError(f"{len(names)} names for {n} colours")
    orders = {name: sorted(range(1, n + 1), key=lambda c: _draw(f"{c} {name}")) for name in names}
    waiting = sorted(names, key=_draw)
    chosen: dict[str, int] = {}
    for choice in range(n):
        for name in waiting:
            colour = orders[name][choice]
            if colour not in chosen.values():
                chosen[name] = colour
        waiting = [name for name in waiting if name not in chosen]
    return chosen


def _draw(text: str) -> bytes:
    """Returns a hash of text, which may be a file name of any bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
