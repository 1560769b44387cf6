"""Matplotlib figures as inline SVG in the colours of the page around them."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

N_COLOURS = 8
# Matplotlib knows no CSS: it draws with these, and the page's colours take their place.
TEXT, GRID, PAPER = "#010101", "#020202", "#040404"
SERIES = [f"#0300{i:02x}" for i in range(N_COLOURS)]
_CSS = {TEXT: "currentColor", GRID: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text that can be read aloud, searched and restyled
    "svg.hashsalt": "devnet_jax",  # or identifiers differ each time
    "text.parse_math": False,
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def style() -> contextlib.AbstractContextManager[None]:
    """Within it, figures are drawn and written in the pages' style."""
    return matplotlib.rc_context(_STYLE)


def to_svg(figure: Figure, name: str) -> str:
    """The <svg> of a figure; its colours are currentColor and the page's --line, --paper and
    --series-0 to --series-7.

      Args:
        figure: drawn within `style()` in the colours TEXT, GRID, PAPER and SERIES.
        name: unique on the page; what is named in the SVG begins with it.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub("|".join(_CSS), lambda match: _CSS[match[0]], svg)
