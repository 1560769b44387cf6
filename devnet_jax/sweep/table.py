"""Writes the results of a sweep and published results as Markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable

from devnet_jax.report.html.template import render
from devnet_jax.sweep.cells import Cell
from devnet_jax.sweep.document import Context, Document, Table
from devnet_jax.sweep.results import RunResult
from devnet_jax.sweep.shots_chart import draw_shots

__all__ = ["Context", "markdown_table", "to_html", "to_markdown"]


def to_markdown(results: Iterable[RunResult], context: Context) -> str:
    """Returns a Markdown document that compares results with published ones.

    Args:
      results: results of all finished runs.
      context: information about the sweep.

    Raises:
      UserError: if two results are of the same run.
    """
    document = Document(results, context)
    blocks = [f"# {_escape(context.title)}", _escape(context.environment)]
    blocks += [f"**Ours:** {_escape(document.our_settings)}"]
    for source, lines in document.sources.items():
        name = f"[{_escape(source.name)}]({source.url})"
        blocks += [f"**Published, {name}:** {_escape(source.citation)}", _bullets(lines)]
    if document.warning:
        blocks += [f"> **Warning:** {_escape(document.warning)}"]
    blocks += [*markdown_table(document.auroc_table_compared), _bullets(document.legend)]
    blocks += markdown_table(document.other_published_table)
    for curves in document.curves:
        blocks += markdown_table(curves.table())
    blocks += markdown_table(document.details_table)
    if context.command:
        blocks += ["## Command", re.sub("^", "    ", context.command, flags=re.MULTILINE)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def to_html(results: Iterable[RunResult], context: Context) -> str:
    """Returns a self-contained HTML page that compares results with published ones.

    Args:
      results: results of all finished runs.
      context: information about the sweep.

    Raises:
      UserError: if two results are of the same run.
    """
    document = Document(results, context)
    charts = [
        (curves.name, draw_shots(curves.ours, curves.published, f"chart-{i}"))
        for i, curves in enumerate(document.curves)
    ]
    return render("sweep/table.html.jinja", document=document, charts=charts)


def markdown_table(table: Table) -> list[str]:
    """Returns a heading and a table; each column title is preceded by the heading of its group."""
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
    """Escapes plain text for Markdown; an underscore within a word needs no escape."""
    text = re.sub(r"[\\`*|<\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.split())
