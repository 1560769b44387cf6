"""Cells of a results table as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from devnet_jax.sweep.comparison import Column, Row
from devnet_jax.sweep.published import PublishedValue, Source

INCOMPLETE = "incomplete"
NOT_MEASURED = "not measured"
_ARROWS = {"lower": "▼", "higher": "▲"}


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
      text: text of the cell.
      mark: "best", "lower", "higher" or "".
      note: explanation in parentheses, or "".
    """

    text: str
    mark: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


def name_cell(row: Row) -> Cell:
    """Data set and category; for a mean, the number of categories."""
    is_mean = row.is_mean and not row.key.hard
    return Cell(str(row.key), note=_describe_mean(row, "categories") if is_mean else "")


def setting_cell(row: Row) -> Cell:
    """General or hard setting, with the known class and the contamination."""
    key, notes = row.key, []
    if key.hard and row.is_mean:
        notes.append(_describe_mean(row, "known classes"))
    elif key.hard:
        notes.append(f"known class {key.known_class}")
    if key.contamination:
        notes.append(f"contamination {100 * key.contamination:g}%")
    return Cell("hard" if key.hard else "general", note=", ".join(notes))


def _describe_mean(row: Row, parts: str) -> str:
    count = f"{len(row.parts)}"
    if row.parts.keys() == row.expected:
        count = f"all {count}"
    elif row.parts.keys() < row.expected:
        count += f" of {len(row.expected)}"
    return f"mean of {count} {parts}"


def summary_cell(column: Column, metric: str, n_seeds: int, row: Row) -> Cell:
    """Mean and standard deviation of our runs; with a note if seeds are missing."""
    if column not in row.columns:
        return Cell("")
    summary = row.summary(column, metric)
    if summary is None:
        return Cell(NOT_MEASURED if row.is_unmeasured(column, metric) else INCOMPLETE)
    note = f"{summary.n_seeds} of {n_seeds} seeds" if summary.n_seeds < n_seeds else ""
    # Means that are equal to three decimals are equally good.
    shown = [f"{other.mean:.3f}" for c in row.columns if (other := row.summary(c, metric))]
    is_best = len(shown) > 1 and f"{summary.mean:.3f}" == max(shown)
    return Cell(format_mean_std(summary.mean, summary.std), "best" if is_best else "", note)


def difference_cell(column: Column, row: Row) -> Cell:
    """Our mean minus the published one, marked if it exceeds two standard errors."""
    difference = row.difference(column)
    if difference is None:
        return Cell("")
    text = f"{difference.value:+.3f}".replace("-", "−")
    if text[1:] == "0.000":
        text = "0.000"
    if not difference.exceeds_two_errors:
        return Cell(text)
    mark = "lower" if difference.value < 0 else "higher"
    return Cell(f"{text} {_ARROWS[mark]}", mark)


def published_cell(column: tuple[Source, str], row: Row) -> Cell:
    """Published value of one source and method."""
    texts = {
        published_column(value): format_mean_std(value.mean, value.std) for value in row.published
    }
    return Cell(texts.get(column, ""))


def count_cell(name: str, row: Row) -> Cell:
    """A count of test images, as a range if it varies between runs; empty for a mean row."""
    return Cell(
        "" if row.is_mean else format_range(getattr(result, name) for result in row.results)
    )


def published_column(value: PublishedValue) -> tuple[Source, str]:
    """Returns the key of the column that a published value belongs to."""
    return value.source, value.method


def format_mean_std(mean: float, std: float | None) -> str:
    """Formats to three decimals: "0.943 ± 0.008", or the mean alone."""
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def format_range(values: Iterable[int]) -> str:
    """Formats the least and the greatest value: "143–145", or "143" if they are equal."""
    distinct = sorted({*values})
    low, high = distinct[0], distinct[-1]
    return str(low) if low == high else f"{low}–{high}"
