"""The results of a sweep beside the published ones, as Markdown and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable

from devnet_jax.report.html.template import render
from devnet_jax.sweep.cells import Cell
from devnet_jax.sweep.document import Context, Page, Table
from devnet_jax.sweep.results import Result
from devnet_jax.sweep.shots_chart import draw_shots

__all__ = ["Context", "to_html", "to_markdown"]


def to_markdown(results: Iterable[Result], context: Context) -> str:
    """The results with the published ones beside them, as Markdown.

    Raises:
      UserError: two results are of one run.
    """
    page = Page(results, context)
    blocks = [f"# {_escape(context.title)}", _escape(context.environment)]
    blocks += [f"**Ours:** {_escape(page.ours)}"]
    for source, lines in page.sources.items():
        name = f"[{_escape(source.name)}]({source.url})"
        blocks += [f"**Published, {name}:** {_escape(source.citation)}", _bullets(lines)]
    if page.warning:
        blocks += [f"> **Warning:** {_escape(page.warning)}"]
    blocks += [*_markdown_table(page.main_compared), _bullets(page.legend)]
    for table in (page.others, *(curves.table() for curves in page.curves), page.details):
        blocks += _markdown_table(table)
    if context.command:
        blocks += ["## Command", re.sub("^", "    ", context.command, flags=re.MULTILINE)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def to_html(results: Iterable[Result], context: Context) -> str:
    """The results with the published ones beside them, as an HTML page that needs nothing else.

    Raises:
      UserError: two results are of one run.
    """
    page = Page(results, context)
    charts = [
        (curves.name, draw_shots(curves.ours, curves.published, f"chart-{i}"))
        for i, curves in enumerate(page.curves)
    ]
    return render("sweep/table.html.jinja", page=page, charts=charts)


def _markdown_table(table: Table) -> list[str]:
    """A heading and a table; there is one line of column titles, so each names its group."""
    if not table.rows:
        return []
    titles = [
        ": ".join(filter(None, (heading, title)))
        for heading, group in table.groups
        for title in group
    ]
    rules = ["---"] * table.n_labels + ["---:"] * (len(titles) - table.n_labels)
    lines = [map(_escape, titles), rules, *(map(_markdown_cell, cells) for cells, _ in table.rows)]
    return [f"## {_escape(table.caption)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _markdown_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.mark == "best":
        text = f"**{text}**"
    return f"{text} ({_escape(cell.note)})" if cell.note else text


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Plain text as Markdown; an underscore within a word is left alone, as it marks nothing."""
    text = re.sub(r"[\\`*|<\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.split())
