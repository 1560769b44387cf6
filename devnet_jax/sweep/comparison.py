"""Rows of a results table: means over seeds, categories and known classes, and their differences
from published values."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from devnet_jax.errors import UserError
from devnet_jax.sweep.published import PublishedValue, published_values
from devnet_jax.sweep.results import RunResult

COMPARED_METHODS = {"devnet": "DevNet", "flos": "FLOS"}  # our method: the published method


class Column(NamedTuple):
    """A column of our results: a method and its variation."""

    method: str
    variation: str


class RowKey(NamedTuple):
    """Key of a row; the category or the known class is "" in the key of a mean over them."""

    dataset: str
    hard: bool
    contamination: float
    n_anomaly: int
    category: str
    known_class: str

    def __str__(self) -> str:
        return "/".join(filter(None, (self.dataset, self.category)))

    @property
    def mean_key(self) -> RowKey:
        """Key of the mean that this row is a part of; the key itself if there is none."""
        return self._replace(known_class="") if self.hard else self._replace(category="")


class Summary(NamedTuple):
    """Mean and sample standard deviation over seeds; `std` is None for a single seed."""

    mean: float
    std: float | None
    n_seeds: int


def summarise(values: Sequence[float]) -> Summary | None:
    """Summarises the values of the seeds; `None` without any."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


class Difference(NamedTuple):
    """Our mean minus the published mean.

    Attributes:
      value: difference of the means.
      exceeds_two_errors: True if the absolute difference is more than two standard errors,
        √(s₁²/n₁ + s₂²/n₂) with the standard deviations s and the numbers of runs n of both; False
        if a standard deviation is missing.
    """

    value: float
    exceeds_two_errors: bool


Runs = dict[Column, dict[int, RunResult]]  # results of a row or of a part, by column and seed


@dataclass(frozen=True)
class Row:
    """A row of a table: one data set, category or known class, or the mean over several.

    Attributes:
      key: key of the row.
      parts: results of each category or known class of a mean, by its name; for other rows one
        entry with the name "".
      expected: names of all categories or known classes; empty if unknown.
      published: published values of this row; none for a mean over only some of the categories or
        known classes.
    """

    key: RowKey
    parts: Mapping[str, Runs]
    expected: frozenset[str]
    published: tuple[PublishedValue, ...]

    @property
    def is_mean(self) -> bool:
        return "" not in self.parts

    @property
    def columns(self) -> set[Column]:
        """Columns with at least one result in this row."""
        return {column for runs in self.parts.values() for column in runs}

    @property
    def results(self) -> list[RunResult]:
        """All results of the row."""
        return [
            result
            for runs in self.parts.values()
            for by_seed in runs.values()
            for result in by_seed.values()
        ]

    def is_unmeasured(self, column: Column, metric: str) -> bool:
        """Returns True if a run of the column could not measure the metric."""
        return any(
            getattr(result, metric) is None
            for runs in self.parts.values()
            for result in runs.get(column, {}).values()
        )

    def summary(self, column: Column, metric: str = "image_auroc") -> Summary | None:
        """Averages over the parts for each seed, then over the seeds; None without results.

        Only seeds with results for all parts count: otherwise the columns of a row would be means
        over different parts. A run that could not measure the metric has no result.
        """
        by_part = [
            {
                seed: value
                for seed, result in runs.get(column, {}).items()
                if (value := getattr(result, metric)) is not None
            }
            for runs in self.parts.values()
        ]
        seeds = sorted(set.intersection(*map(set, by_part)))
        return summarise([statistics.fmean(part[seed] for part in by_part) for seed in seeds])

    def compared_value(self, method: str) -> PublishedValue | None:
        """Returns the published value that one of our methods is compared with."""
        published_method = COMPARED_METHODS.get(method)
        return next((value for value in self.published if value.method == published_method), None)

    def difference(self, column: Column) -> Difference | None:
        """Returns our mean minus the published one; None if one is missing, or for a variation."""
        ours, theirs = self.summary(column), self.compared_value(column.method)
        if ours is None or theirs is None or column.variation:
            return None
        value = ours.mean - theirs.mean
        if ours.std is None or theirs.std is None:
            return Difference(value, False)
        error = math.sqrt(ours.std**2 / ours.n_seeds + theirs.std**2 / theirs.source.runs)
        return Difference(value, abs(value) > 2 * error)


def make_rows(
    results: Iterable[RunResult],
    *,
    categories: Mapping[str, Collection[str]],
    known_classes: Mapping[str, Collection[str]],
) -> list[Row]:
    """Makes the sorted rows of a table; a mean comes after the rows that it averages.

    Args:
      results: results of all runs, in any order.
      categories: names of all categories of a data set, by the data set's name.
      known_classes: all known classes that a published mean of the hard setting is over, by data
        set or "data set/category".

    Raises:
      UserError: if two results are of the same run.
    """
    runs: dict[RowKey, Runs] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        key, column = _row_key(result), Column(result.method, result.variation)
        first = runs[key][column].setdefault(result.seed, result)
        if first is not result:
            raise UserError(
                f"'{first.workdir}' and '{result.workdir}' are two results of one run ({key}, "
                f"{' '.join(filter(None, column))}, seed {result.seed}): remove one"
            )
    means: dict[RowKey, dict[str, Runs]] = defaultdict(dict)
    for key, runs_of_key in runs.items():
        if key.mean_key != key:
            means[key.mean_key][key.known_class if key.hard else key.category] = runs_of_key
    rows = [
        # Published values of the hard setting are means over known classes.
        Row(key, {"": runs_of_key}, frozenset(), () if key.hard else _published_values(key))
        for key, runs_of_key in runs.items()
    ]
    for key, parts in means.items():
        if len(parts) > 1:
            expected = frozenset((known_classes if key.hard else categories).get(str(key), ()))
            published = _published_values(key) if expected == parts.keys() else ()
            rows.append(Row(key, parts, expected, published))
    # "" would sort first, but means come last.
    return sorted(rows, key=lambda row: [(part == "", part) for part in row.key])


def _row_key(result: RunResult) -> RowKey:
    return RowKey(
        dataset=result.dataset,
        hard=result.known_class != "",
        contamination=result.contamination,
        n_anomaly=result.n_anomaly,
        category=result.category,
        known_class=result.known_class,
    )


def _published_values(key: RowKey) -> tuple[PublishedValue, ...]:
    if key.contamination:
        return ()
    return published_values(
        key.dataset,
        key.category,
        setting="hard" if key.hard else "general",
        n_anomaly=key.n_anomaly,
    )
