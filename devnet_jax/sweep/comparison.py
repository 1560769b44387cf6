"""Results by row and column of a table: means over seeds, categories and known classes, and how
they differ from what was published."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from devnet_jax.errors import UserError
from devnet_jax.sweep.published import Published, published_values
from devnet_jax.sweep.results import Result

COMPARED = {"devnet": "DevNet", "flos": "FLOS"}  # our method and the published one


class Column(NamedTuple):
    """A method of ours with its variation."""

    method: str
    variation: str


class Place(NamedTuple):
    """What a row is about; category and known class are "" where it is a mean over them."""

    dataset: str
    hard: bool
    contamination: float
    n_anomaly: int
    category: str
    known_class: str

    def __str__(self) -> str:
        return "/".join(filter(None, (self.dataset, self.category)))

    @property
    def whole(self) -> Place:
        """The mean that this place is a part of; itself if there is none."""
        return self._replace(known_class="") if self.hard else self._replace(category="")


class Summary(NamedTuple):
    """Mean and sample standard deviation over seeds; one seed has no deviation."""

    mean: float
    std: float | None
    n_seeds: int


class Difference(NamedTuple):
    """Ours minus the published mean.

    `beyond` says whether it is more than two standard errors, √(s²/n + s²/n) of ours and theirs;
    False where either has no standard deviation.
    """

    value: float
    beyond: bool


Runs = dict[Column, dict[int, Result]]  # the runs of a place, by column and seed


@dataclass(frozen=True)
class Row:
    """A row of a table: one data set, category or known class, or the mean over several.

    Attributes:
      place: what the row is about.
      parts: what it is a mean over, by name; one part, named "", where it is no mean.
      expected: names of all parts that there are; () where that is not known.
      published: figures that it may be compared with; none for a mean over some parts only.
    """

    place: Place
    parts: Mapping[str, Runs]
    expected: frozenset[str]
    published: tuple[Published, ...]

    @property
    def is_mean(self) -> bool:
        return "" not in self.parts

    @property
    def columns(self) -> set[Column]:
        """The columns that have any result in this row."""
        return {column for runs in self.parts.values() for column in runs}

    @property
    def results(self) -> list[Result]:
        """All results of the row."""
        return [
            result
            for runs in self.parts.values()
            for by_seed in runs.values()
            for result in by_seed.values()
        ]

    def summary(self, column: Column, metric: str = "image_auroc") -> Summary | None:
        """The mean over the parts for each seed, then over the seeds; None if there are none.

        Only seeds that have all parts count, or the columns of a row would be means over
        different parts.
        """
        by_part = [runs.get(column, {}) for runs in self.parts.values()]
        seeds = sorted(set.intersection(*map(set, by_part)))
        if not seeds:
            return None
        means = [statistics.fmean(getattr(part[s], metric) for part in by_part) for s in seeds]
        std = statistics.stdev(means) if len(means) > 1 else None
        return Summary(statistics.fmean(means), std, len(means))

    def compared(self, method: str) -> Published | None:
        """The published figure that a method of ours is compared with."""
        wanted = COMPARED.get(method)
        return next((value for value in self.published if value.method == wanted), None)

    def difference(self, column: Column) -> Difference | None:
        """Ours minus the published mean; None where either is missing, or ours is a variation."""
        ours, theirs = self.summary(column), self.compared(column.method)
        if ours is None or theirs is None or column.variation:
            return None
        value = ours.mean - theirs.mean
        if ours.std is None or theirs.std is None:
            return Difference(value, False)
        error = math.sqrt(ours.std**2 / ours.n_seeds + theirs.std**2 / theirs.source.runs)
        return Difference(value, abs(value) > 2 * error)


def compare(
    results: Iterable[Result],
    *,
    categories: Mapping[str, Collection[str]],
    known_classes: Mapping[str, Collection[str]],
) -> list[Row]:
    """The rows of a table, in their order, whatever the order of the results.

    A mean over categories, or over known classes, comes after the rows that it is a mean of.

    Args:
      results: of runs, each once.
      categories: all categories of a divided data set, by its name.
      known_classes: all classes of the hard setting that a published mean is over, by data set or
        "data set/category".

    Raises:
      UserError: two results are of one run.
    """
    runs: dict[Place, Runs] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        place, column = _place(result), Column(result.method, result.variation)
        twin = runs[place][column].setdefault(result.seed, result)
        if twin is not result:
            raise UserError(
                f"'{twin.workdir}' and '{result.workdir}' are two results of one run ({place}, "
                f"{' '.join(filter(None, column))}, seed {result.seed}): remove one"
            )
    means: dict[Place, dict[str, Runs]] = defaultdict(dict)
    for place, found in runs.items():
        if place.whole != place:
            means[place.whole][place.known_class if place.hard else place.category] = found
    rows = [
        # A published figure of the hard setting is a mean over known classes.
        Row(place, {"": found}, frozenset(), () if place.hard else _published(place))
        for place, found in runs.items()
    ]
    for place, parts in means.items():
        if len(parts) > 1:
            expected = frozenset((known_classes if place.hard else categories).get(str(place), ()))
            published = _published(place) if expected == parts.keys() else ()
            rows.append(Row(place, parts, expected, published))
    # "" sorts first, but the means come last.
    return sorted(rows, key=lambda row: [(part == "", part) for part in row.place])


def _place(result: Result) -> Place:
    return Place(
        dataset=result.dataset,
        hard=result.known_class != "",
        contamination=result.contamination,
        n_anomaly=result.n_anomaly,
        category=result.category,
        known_class=result.known_class,
    )


def _published(place: Place) -> tuple[Published, ...]:
    if place.contamination:
        return ()
    return published_values(
        place.dataset,
        place.category,
        setting="hard" if place.hard else "general",
        n_anomaly=place.n_anomaly,
    )
