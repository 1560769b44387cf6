"""Contents of a results document as plain text: tables, curves, legend and sources."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from devnet_jax.sweep.cells import (
    INCOMPLETE,
    NOT_MEASURED,
    Cell,
    count_cell,
    difference_cell,
    format_mean_std,
    format_range,
    name_cell,
    published_cell,
    published_column,
    setting_cell,
    summary_cell,
)
from devnet_jax.sweep.comparison import COMPARED_METHODS, Column, Row, make_rows
from devnet_jax.sweep.methods import METHODS
from devnet_jax.sweep.published import PublishedValue, Source
from devnet_jax.sweep.results import RunResult
from devnet_jax.sweep.shots_chart import Points


@dataclass(frozen=True)
class Context:
    """Information about a sweep that is not in its results.

    Attributes:
      settings: settings of our runs, such as "ResNet-18, 224×224, batch 16, 10 epochs × 20 steps".
      departures: differences of our settings from the published protocol, such as "smaller images,
        fewer steps"; "" if there are none. They are shown as a warning.
      environment: date, machine and software versions.
      command: command that made the results.
      title: title of the document.
      categories: names of all categories of a data set, by the data set's name. Only a mean over
        all of them is compared with the published mean.
      known_classes: all known classes that a published mean of the hard setting is over, by data
        set or "data set/category". Only a mean over all of them is compared.
      seeds: seeds of the sweep; by default those of the results.
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
    """A table as text.

    Attributes:
      caption: title of the table.
      groups: heading and column titles of each group of columns; the columns of the first group
        label the rows.
      rows: cells of each row, and True if the row is a mean over other rows.
    """

    caption: str
    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[Sequence[Cell], bool]]

    @property
    def n_labels(self) -> int:
        return len(self.groups[0][1]) if self.groups else 0


@dataclass(frozen=True)
class Curves:
    """Our and published image AUROC over the number of labelled anomalies, for one data set.

    Attributes:
      name: data set and setting.
      ours: points of our curves, by their labels.
      published: points of the published methods, by their labels.
    """

    name: str
    ours: Mapping[str, Points]
    published: Mapping[str, Points]

    def table(self) -> Table:
        """Returns a table with a row for each curve and a column for each number of anomalies."""
        curves = {**self.ours, **self.published}
        shots = sorted({n for points in curves.values() for n in points})
        rows = [
            [Cell(name), *(Cell(format_mean_std(*points[n]) if n in points else "") for n in shots)]
            for name, points in curves.items()
        ]
        return Table(
            f"Image AUROC over labelled anomalies: {self.name}",
            [("", ["Method"]), ("Shots", [str(n) for n in shots])],
            [(cells, False) for cells in rows],
        )


class Document:
    """Contents of the Markdown and the HTML document.

    Attributes:
      context: information about the sweep.
      rows: rows of the tables.
      columns: columns of our results.
      published: one value of each published column; the compared columns come first.
      compared: one value of each published column that ours are compared with.
    """

    def __init__(self, results: Iterable[RunResult], context: Context) -> None:
        """Collects the contents.

        Args:
          results: results of all finished runs.
          context: information about the sweep.

        Raises:
          UserError: if two results are of the same run.
        """
        self.context = context
        self._results = list(results)
        self.rows = make_rows(
            self._results, categories=context.categories, known_classes=context.known_classes
        )
        self.columns = sorted({c for row in self.rows for c in row.columns}, key=_column_order)
        self._n_seeds = len(set(context.seeds) or {result.seed for result in self._results})
        compared = {
            published_column(value)
            for row in self.rows
            for value in map(row.compared_value, COMPARED_METHODS)
            if value
        }
        published = {published_column(value): value for row in self.rows for value in row.published}
        self.published = [
            published[key]
            for key in sorted(
                published,
                key=lambda key: (key not in compared, _sort_rank(key[1], _PUBLISHED_METHODS)),
            )
        ]
        self.compared = [value for value in self.published if published_column(value) in compared]

    @property
    def our_settings(self) -> str:
        """Settings, number and length of our runs."""
        if not self._results:
            return f"{self.context.settings} (no runs yet)"
        runs = "1 run" if len(self._results) == 1 else f"{len(self._results)} runs"
        steps = format_range(result.steps for result in self._results)
        return f"{self.context.settings} ({runs} of {steps} training steps)"

    @property
    def sources(self) -> dict[Source, list[str]]:
        """Notes on the values of each source, such as their protocol."""
        methods: dict[Source, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for value in self.published:
            methods[value.source][f"{value.origin}, {value.protocol}"].append(value.method)
        return {
            source: [
                f"means over {source.runs} runs, ± standard deviation if published",
                *(f"{', '.join(names)}: {how}" for how, names in by_protocol.items()),
            ]
            for source, by_protocol in methods.items()
        }

    @property
    def warning(self) -> str:
        """Warning that our settings differ from the published protocol; "" if they do not."""
        if not (self.context.departures and self.compared):
            return ""
        return (
            f"our settings depart from the published protocol: {self.context.departures}. "
            "The differences below are also due to that."
        )

    @property
    def auroc_table(self) -> Table:
        """Image AUROC: our results, the differences, and all published columns."""
        return self._make_auroc_table(self.published)

    @property
    def auroc_table_compared(self) -> Table:
        """Image AUROC, with only those published columns that ours are compared with."""
        return self._make_auroc_table(self.compared)

    @property
    def other_published_table(self) -> Table:
        """Image AUROC of the published columns that ours are not compared with."""
        others = {
            published_column(value): value for value in self.published if value not in self.compared
        }
        rows = [
            row
            for row in self.rows
            if any(published_column(value) in others for value in row.published)
        ]
        return _make_table(
            "Other published values of image AUROC", rows, _published_groups(others.values())
        )

    @property
    def details_table(self) -> Table:
        """Average precision and numbers of test images."""
        counts = {"normal": "n_test_normal", "anomalous": "n_test_anomaly"}
        if any(result.n_test_duplicates for result in self._results):
            counts["also in training"] = "n_test_duplicates"
        return _make_table(
            "Average precision and test images",
            self.rows,
            {
                "Average precision": self._summary_columns("image_ap"),
                "Test images": {title: partial(count_cell, key) for title, key in counts.items()},
            },
        )

    @property
    def curves(self) -> list[Curves]:
        """Curves of the data sets with three numbers of labelled anomalies or more.

        If there is a mean over categories or known classes, only the mean has curves.
        """
        mean_keys = {row.key for row in self.rows if row.is_mean}
        groups: dict[tuple[Cell, Cell, frozenset[str]], list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[name_cell(row), setting_cell(row), frozenset(row.parts)].append(row)
        curves = [
            _make_curves(f"{name}, {setting}", rows, self.columns)
            for (name, setting, _), rows in groups.items()
            if not all(row.key.mean_key in mean_keys - {row.key} for row in rows)
        ]
        return [c for c in curves if len({n for points in c.ours.values() for n in points}) >= 3]

    @property
    def legend(self) -> list[str]:
        """Explanations of the AUROC table; only those that its cells need."""
        ours = self._make_auroc_table([])
        cells = [cell for row, _ in ours.rows for cell in row[ours.n_labels :]]
        keys = [row.key for row in self.rows]
        lines = {
            "Ours: mean ± sample standard deviation over the seeds; a value without ± is of one "
            "seed. A mean over categories or known classes is computed for each seed first.": bool(
                cells
            ),
            "2 of 3 seeds: a result is missing for the third seed. Incomplete: results are missing "
            "for every seed.": any(cell.note or cell.text == INCOMPLETE for cell in cells),
            "Not measured: there are no normal images or no anomalies to test with.": any(
                cell.text == NOT_MEASURED for cell in cells
            ),
            "Bold: the best of our results in a row.": any(cell.mark == "best" for cell in cells),
            "▼ lower, ▲ higher than published by more than two standard errors of the difference, "
            "√(s₁²/n₁ + s₂²/n₂), where s is the standard deviation over n runs (1: ours, 2: "
            "published). Unmarked: within two standard errors, or unknown, as with one seed. With "
            "few runs this is a rough guide.": bool(self.compared),
            "Hard: all labelled anomalies are of the known class, and the test set has the other "
            "classes only. Published values are means over known classes.": any(
                key.hard for key in keys
            ),
            "Contamination: share of unlabelled anomalies among the normal training images. "
            "Published values are without contamination.": any(key.contamination for key in keys),
            "A mean is compared with a published one only if it is over the same categories or "
            "known classes.": any(row.is_mean and not row.published for row in self.rows),
        }
        return [line for line, applies in lines.items() if applies]

    def _make_auroc_table(self, published: Iterable[PublishedValue]) -> Table:
        differences = {
            _column_title(column): partial(difference_cell, column)
            for column in self.columns
            if column.method in COMPARED_METHODS
        }
        return _make_table(
            "Image AUROC",
            self.rows,
            {
                "Ours": self._summary_columns("image_auroc"),
                "Ours − published": differences,
                **_published_groups(published),
            },
        )

    def _summary_columns(self, metric: str) -> _Columns:
        return {
            _column_title(column): partial(summary_cell, column, metric, self._n_seeds)
            for column in self.columns
        }


_Columns = Mapping[str, Callable[[Row], Cell]]  # functions that make the cell of a row, by title
_PUBLISHED_METHODS = tuple(COMPARED_METHODS.values())


def _make_table(caption: str, rows: Sequence[Row], groups: Mapping[str, _Columns]) -> Table:
    """Makes a table with labelled rows and without empty columns."""
    labels: _Columns = {
        "Data set": name_cell,
        "Setting": setting_cell,
        "Shots": lambda row: Cell(str(row.key.n_anomaly)),
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


def _published_groups(published: Iterable[PublishedValue]) -> dict[str, _Columns]:
    groups: dict[str, dict[str, Callable[[Row], Cell]]] = defaultdict(dict)
    for value in published:
        groups[f"Published, {value.source.name}"][value.method] = partial(
            published_cell, published_column(value)
        )
    return {**groups}


def _make_curves(name: str, rows: Sequence[Row], columns: Sequence[Column]) -> Curves:
    ours = {
        _column_title(column): {
            row.key.n_anomaly: (summary.mean, summary.std)
            for row in rows
            if (summary := row.summary(column))
        }
        for column in columns
    }
    published = {
        f"{published_method}, published": {
            row.key.n_anomaly: (value.mean, value.std)
            for row in rows
            if (value := row.compared_value(method))
        }
        for method, published_method in COMPARED_METHODS.items()
    }
    return Curves(
        name,
        {label: points for label, points in ours.items() if points},
        {label: points for label, points in published.items() if points},
    )


def _column_title(column: Column) -> str:
    return " ".join(filter(None, column))


def _column_order(column: Column) -> tuple[int, str, list[str | float]]:
    """Sort key: methods in the order of `METHODS`, then variations, with 10 after 3."""
    parts = re.split(r"(\d+(?:\.\d+)?)", column.variation)
    natural = [float(part) if i % 2 else part for i, part in enumerate(parts)]
    return _sort_rank(column.method, tuple(METHODS)), column.method, natural


def _sort_rank(name: str, first: Sequence[str]) -> int:
    """Returns the position of a name in `first`, which all other names follow."""
    return first.index(name) if name in first else len(first)
