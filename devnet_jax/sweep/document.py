"""What a page of results says, as plain text: tables, a legend, where the figures are from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from devnet_jax.sweep.cells import (
    INCOMPLETE,
    Cell,
    column_key,
    count_cell,
    difference_cell,
    figure_cell,
    mean_std,
    name_cell,
    setting_cell,
    span,
    summary_cell,
)
from devnet_jax.sweep.comparison import COMPARED, Column, Row, compare
from devnet_jax.sweep.methods import METHODS
from devnet_jax.sweep.published import Published, Source
from devnet_jax.sweep.results import Result
from devnet_jax.sweep.shots_chart import Points


@dataclass(frozen=True)
class Context:
    """What a page says that the results do not.

    Attributes:
      settings: of our runs, as "ResNet-18, 224×224, batch 16, 10 epochs × 20 steps".
      departures: how these depart from the published protocol, as "smaller images, fewer steps";
        "" if they do not. The page warns of it.
      environment: machine, date and versions.
      command: that made the results.
      title: of the page.
      categories: all categories of a divided data set, by its name: a mean is compared with the
        published one only where it is over all of them.
      known_classes: all classes of the hard setting that the published mean is over, by data set
        or "data set/category", likewise.
      seeds: that were asked for; by default, those of any result.
    """

    settings: str
    departures: str = ""
    environment: str = ""
    command: str = ""
    title: str = "Results"
    categories: Mapping[str, Collection[str]] = field(default_factory=dict)
    known_classes: Mapping[str, Collection[str]] = field(default_factory=dict)
    seeds: Collection[int] = ()


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      caption: what it shows.
      groups: heading and column titles of each group of columns; the first one's label the rows.
      rows: the cells of each row, and whether it is a mean over other rows.
    """

    caption: str
    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[Sequence[Cell], bool]]

    @property
    def n_labels(self) -> int:
        return len(self.groups[0][1]) if self.groups else 0


@dataclass(frozen=True)
class Curves:
    """Image AUROC over labelled anomalies for one data set and setting: ours and published."""

    name: str
    ours: Mapping[str, Points]
    published: Mapping[str, Points]

    def table(self) -> Table:
        """A row for each curve, a column for each number of labelled anomalies."""
        curves = {**self.ours, **self.published}
        shots = sorted({n for points in curves.values() for n in points})
        rows = [
            [Cell(name), *(Cell(mean_std(*points[n]) if n in points else "") for n in shots)]
            for name, points in curves.items()
        ]
        return Table(
            f"Image AUROC over labelled anomalies: {self.name}",
            [("", ["Method"]), ("Shots", [str(n) for n in shots])],
            [(cells, False) for cells in rows],
        )


class Page:
    """What both formats say.

    Attributes:
      context: as given.
      rows: of the tables.
      columns: of ours.
      published: one figure of each published column, those that ours are compared with first.
      compared: these alone.
    """

    def __init__(self, results: Iterable[Result], context: Context) -> None:
        """Raises `UserError` if two results are of one run."""
        self.context = context
        self._results = list(results)
        self.rows = compare(
            self._results, categories=context.categories, known_classes=context.known_classes
        )
        self.columns = sorted({c for row in self.rows for c in row.columns}, key=_column_order)
        self._n_seeds = len(set(context.seeds) or {result.seed for result in self._results})
        used = {column_key(v) for row in self.rows for v in map(row.compared, COMPARED) if v}
        published = {column_key(v): v for row in self.rows for v in row.published}
        self.published = [
            published[key]
            for key in sorted(published, key=lambda k: (k not in used, _rank(k[1], _COMPARED_WITH)))
        ]
        self.compared = [value for value in self.published if column_key(value) in used]

    @property
    def ours(self) -> str:
        """Our settings, and how much was run."""
        if not self._results:
            return f"{self.context.settings} (no runs yet)"
        runs = "1 run" if len(self._results) == 1 else f"{len(self._results)} runs"
        steps = span(result.steps for result in self._results)
        return f"{self.context.settings} ({runs} of {steps} training steps)"

    @property
    def sources(self) -> dict[Source, list[str]]:
        """What is to be known of each source's figures, their protocol above all; in lines."""
        methods: dict[Source, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for value in self.published:
            methods[value.source][f"{value.origin}, {value.protocol}"].append(value.method)
        return {
            source: [
                f"means over {source.runs} runs, ± standard deviation where it was published",
                *(f"{', '.join(names)}: {how}" for how, names in by_protocol.items()),
            ]
            for source, by_protocol in methods.items()
        }

    @property
    def warning(self) -> str:
        """That ours are not comparable as they stand; "" if they are."""
        if not (self.context.departures and self.compared):
            return ""
        return (
            f"our settings depart from the published protocol: {self.context.departures}. "
            "The differences below are also due to that."
        )

    @property
    def main(self) -> Table:
        """Image AUROC: ours, the differences, and all published columns."""
        return self._main(self.published)

    @property
    def main_compared(self) -> Table:
        """The same with only those published columns that ours are compared with."""
        return self._main(self.compared)

    @property
    def others(self) -> Table:
        """The published columns that ours are not compared with."""
        others = {column_key(v): v for v in self.published if v not in self.compared}
        rows = [row for row in self.rows if any(column_key(v) in others for v in row.published)]
        return _table(
            "Other published values of image AUROC", rows, _published_groups(others.values())
        )

    @property
    def details(self) -> Table:
        """Average precision, and how many images tested."""
        counts = {"normal": "n_test_normal", "anomalous": "n_test_anomaly"}
        if any(result.n_test_duplicates for result in self._results):
            counts["also in training"] = "n_test_duplicates"
        return _table(
            "Average precision and test images",
            self.rows,
            {
                "Average precision": self._ours("image_ap"),
                "Test images": {title: partial(count_cell, key) for title, key in counts.items()},
            },
        )

    @property
    def curves(self) -> list[Curves]:
        """Of data sets and settings with three shots or more, of a mean rather than its parts."""
        means = {row.place for row in self.rows if row.is_mean}
        groups: dict[tuple[Cell, Cell, frozenset[str]], list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[name_cell(row), setting_cell(row), frozenset(row.parts)].append(row)
        curves = [
            _curves(f"{name}, {setting}", rows, self.columns)
            for (name, setting, _), rows in groups.items()
            if not all(row.place.whole in means - {row.place} for row in rows)
        ]
        return [c for c in curves if len({n for points in c.ours.values() for n in points}) >= 3]

    @property
    def legend(self) -> list[str]:
        """How the main table is read; of what it has."""
        ours = self._main([])
        cells = [cell for row, _ in ours.rows for cell in row[ours.n_labels :]]
        places = [row.place for row in self.rows]
        lines = {
            "Ours: mean ± sample standard deviation over the seeds; without ±, one seed. A mean "
            "over categories or known classes is taken for each seed first.": bool(cells),
            "2 of 3 seeds, for example: the third lacks a result that the row needs; incomplete: "
            "all do.": any(cell.note or cell.text == INCOMPLETE for cell in cells),
            "Bold: the best of ours in a row.": any(cell.mark == "best" for cell in cells),
            "▼ lower, ▲ higher than published by more than two standard errors of the difference, "
            "√(s₁²/n₁ + s₂²/n₂), s being the standard deviation over n runs of ours and of theirs. "
            "Unmarked: within, or not known, as with one seed. With few runs, a rough guide.": bool(
                self.compared
            ),
            "Hard: all labelled anomalies are of the known class, the others test; published are "
            "means over known classes.": any(place.hard for place in places),
            "Contamination: share of unlabelled anomalies among the normal training images; the "
            "published values are without.": any(place.contamination for place in places),
            "A mean is compared with the published one only where it is over the same categories "
            "or known classes.": any(row.is_mean and not row.published for row in self.rows),
        }
        return [line for line, applies in lines.items() if applies]

    def _main(self, published: Iterable[Published]) -> Table:
        differences = {
            _title(column): partial(difference_cell, column)
            for column in self.columns
            if column.method in COMPARED
        }
        return _table(
            "Image AUROC",
            self.rows,
            {
                "Ours": self._ours("image_auroc"),
                "Ours − published": differences,
                **_published_groups(published),
            },
        )

    def _ours(self, metric: str) -> _Columns:
        return {_title(c): partial(summary_cell, c, metric, self._n_seeds) for c in self.columns}


_Columns = Mapping[str, Callable[[Row], Cell]]  # the cell of a row, by the column's title
_COMPARED_WITH = tuple(COMPARED.values())


def _table(caption: str, rows: Sequence[Row], groups: Mapping[str, _Columns]) -> Table:
    """A table with labelled rows; columns that would be empty are left out."""
    labels: _Columns = {
        "Data set": name_cell,
        "Setting": setting_cell,
        "Shots": lambda row: Cell(str(row.place.n_anomaly)),
    }
    headings = []
    columns: list[list[Cell]] = []
    for heading, group in {"": labels, **groups}.items():
        cells = {title: [cell(row) for row in rows] for title, cell in group.items()}
        shown = {t: column for t, column in cells.items() if any(cell.text for cell in column)}
        if shown:
            headings.append((heading, list(shown)))
            columns += shown.values()
    body = zip(*columns, strict=True)
    return Table(caption, headings, [(c, r.is_mean) for c, r in zip(body, rows, strict=True)])


def _published_groups(published: Iterable[Published]) -> dict[str, _Columns]:
    groups: dict[str, dict[str, Callable[[Row], Cell]]] = defaultdict(dict)
    for value in published:
        groups[f"Published, {value.source.name}"][value.method] = partial(
            figure_cell, column_key(value)
        )
    return {**groups}


def _curves(name: str, rows: Sequence[Row], columns: Sequence[Column]) -> Curves:
    ours = {
        _title(column): {
            row.place.n_anomaly: (summary.mean, summary.std)
            for row in rows
            if (summary := row.summary(column))
        }
        for column in columns
    }
    published = {
        f"{COMPARED[method]}, published": {
            row.place.n_anomaly: (value.mean, value.std)
            for row in rows
            if (value := row.compared(method))
        }
        for method in COMPARED
    }
    return Curves(
        name,
        {label: points for label, points in ours.items() if points},
        {label: points for label, points in published.items() if points},
    )


def _title(column: Column) -> str:
    return " ".join(filter(None, column))


def _column_order(column: Column) -> tuple[int, str, list[str | float]]:
    """Methods in their order, then variations; 10 comes after 3."""
    parts = re.split(r"(\d+(?:\.\d+)?)", column.variation)
    natural = [float(part) if i % 2 else part for i, part in enumerate(parts)]
    return _rank(column.method, tuple(METHODS)), column.method, natural


def _rank(name: str, leading: Sequence[str]) -> int:
    return leading.index(name) if name in leading else len(leading)
