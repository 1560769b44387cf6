"""Matplotlib figures as inline SVG with the colours of the page."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

N_COLOURS = 8
# Placeholder colours for Matplotlib, replaced by the CSS colours of the page.
TEXT, GRID, PAPER = "#010101", "#020202", "#040404"
SERIES = [f"#0300{i:02x}" for i in range(N_COLOURS)]
_CSS = {TEXT: "currentColor", GRID: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text elements, which screen readers and searches can read
    "svg.hashsalt": "devnet_jax",  # makes identifiers reproducible
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
    """Returns a context in which figures are drawn and written in the style of the pages."""
    return matplotlib.rc_context(_STYLE)


def to_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an <svg> element.

    Its colours are currentColor and the CSS variables --line, --paper and --series-0 to --series-7
    of the page.

    Args:
      figure: figure, drawn within `style()` in the colours TEXT, GRID, PAPER and SERIES.
      name: name of the figure, unique on the page; prefix of the identifiers in the SVG.
    """
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style():
        figure.savefig(file, format="svg", metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub("|".join(_CSS), lambda match: _CSS[match[0]], svg)
