"""A grid of runs: data sets × protocols × shots × methods × seeds, each as one command."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devnet_jax import config as config_module
from devnet_jax.config import Config, DatasetConfig, get_setting, setting_names, with_settings
from devnet_jax.data.datasets import DATASETS
from devnet_jax.data.datasets.builder import GOOD
from devnet_jax.data.source import is_at_hand, open_source
from devnet_jax.errors import UserError, nearest
from devnet_jax.sweep.methods import METHODS
from devnet_jax.sweep.published import published_known_classes

GENERAL, ALL, PUBLISHED = "none", "all", "published"  # what stands for known classes

# Settings that the grid's axes set, by the flag that says how.
AXES = {
    "seed": "seeds",
    "dataset.name": "datasets",
    "dataset.category": "datasets",
    "dataset.n_anomaly": "shots",
    "dataset.known_class": "known_classes",
    "dataset.contamination": "contaminations",
    "loss.name": "methods",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the grid.

    Attributes:
      config: its settings.
      method: a key of `METHODS`.
      variation: the varied settings and their values, by dotted name.
    """

    config: Config
    method: str
    variation: tuple[tuple[str, Any], ...] = ()

    @property
    def variation_name(self) -> str:
        """The varied settings in words: "loss.margin=3.0 loss.prior_std=2.0"."""
        return " ".join(f"{name}={value}" for name, value in self.variation)

    @property
    def name(self) -> str:
        """Its folder in the sweep's: unique in any grid over the same base settings."""
        dataset = self.config.dataset
        protocol = f"hard-{dataset.known_class}" if dataset.known_class else "general"
        if dataset.contamination:
            protocol += f"-contamination-{dataset.contamination}"
        method = "-".join([self.method, *self.variation_name.split()])
        parts = (
            "-".join(filter(None, (dataset.name, dataset.category))),
            protocol,
            f"{dataset.n_anomaly}-shot",
            method,
            f"seed-{self.config.seed}",
        )
        return "/".join(urllib.parse.quote(part, safe="=+") for part in parts)

    def command(self, workdir: Path) -> list[str]:
        """The command that runs it: `devnet_jax.main` with every setting that is not a default."""
        return [
            sys.executable,
            "-m",
            "devnet_jax.main",
            f"--config={config_module.__file__}",
            *(f"--config.{name}={value}" for name, value in _other_than_default(self.config)),
            f"--workdir={workdir}",
        ]

    @property
    def shape(self) -> Config:
        """Equal for jobs that share what JAX compiles: of one data set, whoever of it trains."""
        dataset = dataclasses.replace(
            self.config.dataset, n_anomaly=1, known_class=None, contamination=0.0
        )
        return dataclasses.replace(self.config, seed=0, dataset=dataset)


@dataclasses.dataclass(frozen=True)
class Axes:
    """What a grid varies.

    Attributes:
      datasets: names, "mvtec_ad:carpet" for one category; a name alone stands for all of its
        categories.
      known_classes: of the hard setting; `GENERAL` is the general one, `ALL` each class in turn,
        `PUBLISHED` those of them that published means are over.
      contaminations: shares of unlabelled anomalies.
      shots: numbers of labelled anomalies.
      methods: keys of `METHODS`.
      variations: other settings by dotted name, with the values that each takes.
      seeds: of the runs.
    """

    datasets: Sequence[str]
    known_classes: Sequence[str] = (GENERAL,)
    contaminations: Sequence[float] = (0.0,)
    shots: Sequence[int] = (10,)
    methods: Sequence[str] = ("devnet",)
    variations: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)


def make_grid(base: Config, axes: Axes, data: Path | None = None) -> list[Job]:
    """All combinations, seeds outermost, so that a table is complete before it is sharp.

    A data set is read where its defect classes are asked for and not published.

    Args:
      base: what the jobs have in common.
      axes: what they differ in.
      data: the folder of the raw folders, each called like its data set; `None` where the data
        sets are prepared already or fetched.

    Raises:
      UserError: an unknown data set, category, method or setting, a value it cannot have, a
        setting that is given twice, or no jobs.
    """
    _check_axes(base, axes)
    places = [place for name in axes.datasets for place in _places(name, base, data)]
    settings = [
        (place, known_class)
        for place in places
        for asked in axes.known_classes
        for known_class in _known_classes(asked, place)
    ]
    varied = [
        tuple(zip(axes.variations, values, strict=True))
        for values in itertools.product(*axes.variations.values())
    ]
    jobs: dict[str, Job] = {}
    for seed, setting, contamination, n_anomaly, method, variation in itertools.product(
        axes.seeds, settings, axes.contaminations, axes.shots, axes.methods, varied
    ):
        place, known_class = setting
        changes = {
            "seed": seed,
            "dataset.known_class": known_class,
            "dataset.contamination": contamination,
            "dataset.n_anomaly": n_anomaly,
            **METHODS[method],
            **dict(variation),
        }
        job = Job(with_settings(place, changes), method, variation)
        jobs.setdefault(job.name, job)
    if not jobs:
        raise UserError("no runs: the data sets have no such defect classes, or a list is empty")
    return list(jobs.values())


def _check_axes(base: Config, axes: Axes) -> None:
    for method in axes.methods:
        if method not in METHODS:
            raise UserError(f"--methods={method}: no such method; {nearest(method, METHODS)}")
    for name, flag in AXES.items():
        if get_setting(base, name) != get_setting(Config(), name):
            raise UserError(f"config.{name} is what the runs differ in: give it as --{flag}")
        if name in axes.variations:
            raise UserError(f"--vary={name}: give it as --{flag}")
    for name in axes.variations:
        get_setting(base, name)
        for method in axes.methods:
            if name in METHODS[method]:
                raise UserError(f"--vary={name}: is set by --methods={method}; leave one out")


def _places(name: str, base: Config, data: Path | None) -> Iterator[Config]:
    """The base settings for each category that a data set's name stands for."""
    name, _, category = name.partition(":")
    if name not in DATASETS:
        raise UserError(f"--datasets={name}: no such data set; {nearest(name, DATASETS)}")
    builder = DATASETS[name]
    if category and category not in builder.CATEGORIES:
        hint = nearest(category, builder.CATEGORIES) if builder.CATEGORIES else "it has none"
        raise UserError(f"--datasets={name}:{category}: no such category of {name}; {hint}")
    for one in [category] if category else builder.CATEGORIES or [None]:
        settings: dict[str, Any] = {"dataset.name": name, "dataset.category": one}
        if data is not None and (data / name).is_dir():
            settings["dataset.manual_dir"] = str(data / name)
        place = with_settings(base, settings)
        dataset = place.dataset
        if dataset.manual_dir is None and not is_at_hand(name, one, dataset.data_dir):
            where = f"not in --data={data}" if data else "no --data is given"
            raise UserError(
                f"--datasets={name}: it is not prepared yet, and {where}: expected a folder"
                f" '{name}' with {builder.LAYOUT}"
            )
        yield place


def _known_classes(asked: str, place: Config) -> Iterator[str | None]:
    """The known classes that a value of --known_classes stands for."""
    dataset = place.dataset
    if asked == GENERAL:
        yield None
    elif asked == PUBLISHED:
        row = "/".join(filter(None, (dataset.name, dataset.category)))
        yield from published_known_classes().get(row, ())
    elif asked == ALL:
        classes = defect_classes(dataset)
        if len(classes) > 1:  # of one alone, none would be left for the test
            yield from classes
    else:
        yield asked


def defect_classes(dataset: DatasetConfig) -> list[str]:
    """The defect classes of a data set, sorted; it is read if they are not published."""
    published = DATASETS[dataset.name].PUBLISHED_COUNTS.get(dataset.category, {})
    classes = set(published) - {GOOD}
    if not classes:
        examples = open_source(
            dataset.name,
            category=dataset.category,
            manual_dir=dataset.manual_dir,
            data_dir=dataset.data_dir,
        ).examples
        classes = {example.defect for example in examples if example.label == 1}
    return sorted(classes)


def _other_than_default(config: Config) -> Iterator[tuple[str, Any]]:
    for name in setting_names():
        value = get_setting(config, name)
        if value != get_setting(Config(), name):
            yield name, value
