"""The grid of a sweep: a job for each combination of data set, protocol, shots, method and seed."""

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
from devnet_jax.data.source import is_available, open_source
from devnet_jax.errors import UserError, nearest
from devnet_jax.sweep.methods import METHODS
from devnet_jax.sweep.published import published_known_classes

GENERAL, ALL, PUBLISHED = "none", "all", "published"  # special values of --known_classes

# The flag of each setting that the axes of the grid set.
AXIS_FLAGS = {
    "seed": "seeds",
    "dataset.name": "datasets",
    "dataset.category": "datasets",
    "dataset.n_anomaly": "shots",
    "dataset.known_class": "known_classes",
    "dataset.contamination": "contaminations",
    "loss.name": "methods",
    "model.detector": "methods",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the grid.

    Attributes:
      config: settings of the run.
      method: key of `METHODS`.
      variation: dotted names and values of the settings that --vary varies.
    """

    config: Config
    method: str
    variation: tuple[tuple[str, Any], ...] = ()

    @property
    def variation_name(self) -> str:
        """Varied settings as text: "loss.margin=3.0 loss.prior_std=2.0"."""
        return " ".join(f"{name}={value}" for name, value in self.variation)

    @property
    def name(self) -> str:
        """Folder of the job, relative to the sweep's; unique for given base settings."""
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
        """Returns the command of the job: `devnet_jax.main` with all non-default settings."""
        return [
            sys.executable,
            "-m",
            "devnet_jax.main",
            f"--config={config_module.__file__}",
            *(f"--config.{name}={value}" for name, value in _non_default_settings(self.config)),
            f"--workdir={workdir}",
        ]

    @property
    def compile_key(self) -> Config:
        """Equal for jobs that compile the same functions: those that differ only in the seed and
        in the choice of training images; for DevCore, whose functions take all of these images at
        once, in the seed and the known class."""
        dataset = dataclasses.replace(self.config.dataset, known_class=None)
        if self.config.model.detector == "devnet":
            dataset = dataclasses.replace(dataset, n_anomaly=1, contamination=0.0)
        return dataclasses.replace(self.config, seed=0, dataset=dataset)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a grid.

    Attributes:
      datasets: names of data sets; "mvtec_ad:carpet" is one category, "mvtec_ad" all categories.
      known_classes: known classes of the hard setting; `GENERAL` is the general setting, `ALL` is
        every defect class, `PUBLISHED` is every class that published means are over.
      contaminations: shares of unlabelled anomalies among the normal training images.
      shots: numbers of labelled anomalies.
      methods: keys of `METHODS`.
      variations: values of other settings, by their dotted names.
      seeds: seeds of the runs.
    """

    datasets: Sequence[str]
    known_classes: Sequence[str] = (GENERAL,)
    contaminations: Sequence[float] = (0.0,)
    shots: Sequence[int] = (10,)
    methods: Sequence[str] = ("devnet",)
    variations: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)


def make_grid(base: Config, axes: Axes, data: Path | None = None) -> list[Job]:
    """Makes a job for each combination, ordered by seed: all rows of the table get a first result
    before any gets a second.

    A data set is read only if all its defect classes are requested and are not published.

    Args:
      base: settings that all jobs share.
      axes: axes of the grid.
      data: folder with the raw folder of each data set, named like the data set; `None` if the data
        sets are already prepared or can be downloaded.

    Raises:
      UserError: for an unknown data set, category, method or setting; an invalid value; a setting
        that is given twice; or an empty grid.
    """
    _check_axes(base, axes)
    dataset_settings = [
        settings for name in axes.datasets for settings in _expand_dataset(name, base, data)
    ]
    protocols = [
        (settings, known_class)
        for settings in dataset_settings
        for value in axes.known_classes
        for known_class in _expand_known_class(value, settings)
    ]
    variations = [
        tuple(zip(axes.variations, values, strict=True))
        for values in itertools.product(*axes.variations.values())
    ]
    jobs: dict[str, Job] = {}
    for seed, protocol, contamination, n_anomaly, method, variation in itertools.product(
        axes.seeds, protocols, axes.contaminations, axes.shots, axes.methods, variations
    ):
        settings, known_class = protocol
        changes = {
            "seed": seed,
            "dataset.known_class": known_class,
            "dataset.contamination": contamination,
            "dataset.n_anomaly": n_anomaly,
            **METHODS[method],
            **dict(variation),
        }
        job = Job(with_settings(settings, changes), method, variation)
        jobs.setdefault(job.name, job)
    if not jobs:
        raise UserError(
            "no runs: the data sets have no such defect classes, or a flag is an empty list"
        )
    return list(jobs.values())


def _check_axes(base: Config, axes: Axes) -> None:
    for method in axes.methods:
        if method not in METHODS:
            raise UserError(f"--methods={method}: no such method; {nearest(method, METHODS)}")
    for name, flag in AXIS_FLAGS.items():
        if get_setting(base, name) != get_setting(Config(), name):
            raise UserError(f"config.{name}: set it with --{flag} in a sweep")
        if name in axes.variations:
            raise UserError(f"--vary={name}: set it with --{flag}")
    for name in axes.variations:
        get_setting(base, name)
        for method in axes.methods:
            if name in METHODS[method]:
                raise UserError(f"--vary={name}: --methods={method} sets it, too; remove one")


def _expand_dataset(name: str, base: Config, data: Path | None) -> Iterator[Config]:
    """Yields the settings of a value of --datasets, for each of its categories."""
    name, _, category = name.partition(":")
    if name not in DATASETS:
        raise UserError(f"--datasets={name}: no such data set; {nearest(name, DATASETS)}")
    builder = DATASETS[name]
    if category and category not in builder.CATEGORIES:
        hint = nearest(category, builder.CATEGORIES) if builder.CATEGORIES else "it has none"
        raise UserError(f"--datasets={name}:{category}: no such category of {name}; {hint}")
    for one_category in [category] if category else builder.CATEGORIES or [None]:
        changes: dict[str, Any] = {"dataset.name": name, "dataset.category": one_category}
        if data is not None and (data / name).is_dir():
            changes["dataset.manual_dir"] = str(data / name)
        settings = with_settings(base, changes)
        dataset = settings.dataset
        has_files = dataset.manual_dir is not None or dataset.labels is not None
        if not has_files and not is_available(name, one_category, dataset.data_dir):
            where = f"it is not in --data={data}" if data else "--data is not given"
            raise UserError(
                f"--datasets={name}: the data set is not prepared, and {where}: expected a folder"
                f" '{name}' with {builder.LAYOUT}"
            )
        yield settings


def _expand_known_class(value: str, settings: Config) -> Iterator[str | None]:
    """Yields the known classes of a value of --known_classes; `None` is the general setting."""
    dataset = settings.dataset
    if value == GENERAL:
        yield None
    elif value == PUBLISHED:
        row = "/".join(filter(None, (dataset.name, dataset.category)))
        yield from published_known_classes().get(row, ())
    elif value == ALL:
        classes = defect_classes(dataset)
        if len(classes) > 1:  # the known class leaves the test set, which must keep another one
            yield from classes
    else:
        yield value


def defect_classes(dataset: DatasetConfig) -> list[str]:
    """Returns the sorted defect classes of a data set; reads it if they are not published."""
    published = DATASETS[dataset.name].PUBLISHED_COUNTS.get(dataset.category, {})
    classes = set(published) - {GOOD}
    if not classes:
        examples = open_source(
            dataset.name,
            category=dataset.category,
            manual_dir=dataset.manual_dir,
            data_dir=dataset.data_dir,
            labels=dataset.labels,
        ).examples
        classes = {example.defect for example in examples if example.label == 1}
    return sorted(classes)


def _non_default_settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Yields the names and values of settings that are not the detector's defaults."""
    first = Config()
    defaults = with_settings(first, {"model.detector": config.model.detector})
    for name in setting_names():
        value = get_setting(config, name)
        if value != get_setting(first if name == "model.detector" else defaults, name):
            yield name, value
