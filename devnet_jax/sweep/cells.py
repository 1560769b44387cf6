"""The cells of a table of results: what each says of a row, as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from devnet_jax.sweep.comparison import Column, Row
from devnet_jax.sweep.published import Published, Source

INCOMPLETE = "incomplete"
_ARROWS = {"lower": "▼", "higher": "▲"}


@dataclass(frozen=True)
class Cell:
    """The text of a cell, what marks it ("best", "lower", "higher" or "") and a note to it."""

    text: str
    mark: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


def name_cell(row: Row) -> Cell:
    """The data set and category, or over how many categories the row is a mean."""
    is_mean = row.is_mean and not row.place.hard
    return Cell(str(row.place), note=_mean_of(row, "categories") if is_mean else "")


def setting_cell(row: Row) -> Cell:
    """General or hard, with the known class and the contamination."""
    place, notes = row.place, []
    if place.hard and row.is_mean:
        notes.append(_mean_of(row, "known classes"))
    elif place.hard:
        notes.append(f"known class {place.known_class}")
    if place.contamination:
        notes.append(f"contamination {100 * place.contamination:g}%")
    return Cell("hard" if place.hard else "general", note=", ".join(notes))


def _mean_of(row: Row, parts: str) -> str:
    count = f"{len(row.parts)}"
    if row.parts.keys() == row.expected:
        count = f"all {count}"
    elif row.parts.keys() < row.expected:
        count += f" of {len(row.expected)}"
    return f"mean of {count} {parts}"


def summary_cell(column: Column, metric: str, n_seeds: int, row: Row) -> Cell:
    """Ours; with the number of seeds where there are fewer than `n_seeds`."""
    if column not in row.columns:
        return Cell("")
    summary = row.summary(column, metric)
    if summary is None:
        return Cell(INCOMPLETE)
    note = f"{summary.n_seeds} of {n_seeds} seeds" if summary.n_seeds < n_seeds else ""
    # As shown: what three decimals do not tell apart is equally good.
    shown = [f"{other.mean:.3f}" for c in row.columns if (other := row.summary(c, metric))]
    is_best = len(shown) > 1 and f"{summary.mean:.3f}" == max(shown)
    return Cell(mean_std(summary.mean, summary.std), "best" if is_best else "", note)


def difference_cell(column: Column, row: Row) -> Cell:
    """Ours minus published, with its sign; marked where it is beyond two standard errors."""
    difference = row.difference(column)
    if difference is None:
        return Cell("")
    text = f"{difference.value:+.3f}".replace("-", "−")
    if text[1:] == "0.000":
        text = "0.000"
    if not difference.beyond:
        return Cell(text)
    mark = "lower" if difference.value < 0 else "higher"
    return Cell(f"{text} {_ARROWS[mark]}", mark)


def figure_cell(key: tuple[Source, str], row: Row) -> Cell:
    """The published figure of a column."""
    figures = {column_key(value): mean_std(value.mean, value.std) for value in row.published}
    return Cell(figures.get(key, ""))


def count_cell(name: str, row: Row) -> Cell:
    """A count that every result has, as a span where it varies; a mean row has none."""
    return Cell("" if row.is_mean else span(getattr(result, name) for result in row.results))


def column_key(value: Published) -> tuple[Source, str]:
    """What makes two figures belong to one column."""
    return value.source, value.method


def mean_std(mean: float, std: float | None) -> str:
    """To three decimals: "0.943 ± 0.008", or the mean alone."""
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def span(values: Iterable[int]) -> str:
    """The one value, or the least and the greatest."""
    distinct = sorted({*values})
    low, high = distinct[0], distinct[-1]
    return str(low) if low == high else f"{low}–{high}"
