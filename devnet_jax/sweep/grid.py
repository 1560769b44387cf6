"""A grid of runs: data sets × protocols × shots × methods × seeds, each as one command."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devnet_jax import config as config_module
from devnet_jax.config import Config, require_setting, setting_names
from devnet_jax.data.builders import DATASETS
from devnet_jax.errors import UserError, nearest
from devnet_jax.sweep.methods import METHODS

ALL = "all"


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
        return "/".join(re.sub(r"[^\w.=+-]+", "_", part) for part in parts)

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
        """Equal for jobs that share what JAX compiles: what tells them apart is left out."""
        nothing = dataclasses.replace(Config().dataset, image_size=self.config.dataset.image_size)
        return dataclasses.replace(self.config, seed=0, dataset=nothing)


def make_grid(
    base: Config,
    *,
    datasets: Sequence[str],
    known_classes: Sequence[str],
    contaminations: Sequence[float],
    shots: Sequence[int],
    methods: Sequence[str],
    variations: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    data: Path | None,
    classes_of: Callable[[Config], Sequence[str]],
) -> list[Job]:
    """All combinations, seeds outermost, so that a table is complete before it is sharp.

    Args:
      base: what the jobs have in common.
      datasets: names, "mvtec_ad:carpet" for one category; a name alone stands for all of its
        categories.
      known_classes: of the hard setting; "" is the general setting, `ALL` each class in turn.
      contaminations: shares of unlabelled anomalies.
      shots: numbers of labelled anomalies.
      methods: keys of `METHODS`.
      variations: other settings by dotted name, with the values that each takes.
      seeds: of the runs.
      data: the folder of the raw folders, each called like its data set; `None` where the data
        sets are prepared already or fetched.
      classes_of: the defect classes of a job's data set; asked for `ALL` only.

    Raises:
      UserError: an unknown data set, category, method or setting, or a value it cannot have.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods={method}: no such method; {nearest(method, METHODS)}")
    places = [place for name in datasets for place in _places(name, base, data)]
    jobs: dict[str, Job] = {}
    varied = [
        tuple(zip(variations, values, strict=True))
        for values in itertools.product(*variations.values())
    ]
    for seed, place, contamination, n_anomaly, method, variation in itertools.product(
        seeds, places, contaminations, shots, methods, varied
    ):
        for known_class in _known_classes(known_classes, place, classes_of):
            settings = {
                "seed": seed,
                "dataset.known_class": known_class or None,
                "dataset.contamination": contamination,
                "dataset.n_anomaly": n_anomaly,
                **METHODS[method],
                **dict(variation),
            }
            job = Job(with_settings(place, settings), method, variation)
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The settings with some of them changed, by dotted name; checked as any are."""
    values = config.to_dict()
    for name, value in settings.items():
        require_setting(name)
        *groups, last = name.split(".")
        group = values
        for part in groups:
            group = group[part]
        group[last] = value
    return Config.from_dict(values)


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
        if data is not None and builder.NEEDS_FOLDER:
            settings["dataset.manual_dir"] = str(data / name)
        yield with_settings(base, settings)


def _known_classes(
    asked: Sequence[str], place: Config, classes_of: Callable[[Config], Sequence[str]]
) -> Iterator[str]:
    for known_class in asked:
        if known_class == ALL:
            yield from classes_of(place)
        else:
            yield known_class


def _other_than_default(config: Config) -> Iterator[tuple[str, Any]]:
    for name in setting_names():
        value: Any = config
        default: Any = Config()
        for part in name.split("."):
            value, default = getattr(value, part), getattr(default, part)
        if value != default:
            yield name, value
