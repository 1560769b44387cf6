"""Describes a sweep in words: its settings, their differences from the paper's, the machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from devnet_jax.config import Config, changed_settings, with_settings
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.sweep.results import RunResult


def describe_settings(config: Config) -> str:
    """Describes the detector, its network, the image size and the training in one line."""
    model, train = config.model, config.train
    weights = {"imagenet": "ImageNet weights", "none": "random weights"}.get(
        model.pretrained, Path(model.pretrained).name
    )
    size = "×".join(map(str, Preprocessing.from_settings(config.dataset).size))
    if model.detector == "devcore":
        memory = config.devcore.memory_size
        return f"devcore: {model.backbone} from {weights}, {size}, memory of {memory} vectors"
    scales = "one scale" if model.n_scales == 1 else f"{model.n_scales} scales"
    return (
        f"{model.backbone} from {weights}, {scales}, {size}, batch {train.batch_size}, "
        f"{train.epochs} epochs × {train.steps_per_epoch} steps"
    )


def describe_detectors(base: Config, detectors: Iterable[str]) -> str:
    """Describes the settings of several detectors, as `describe_settings`.

    Args:
      base: settings that all runs share.
      detectors: values of model.detector.
    """
    # The deviation network comes first.
    names = sorted(set(detectors), reverse=True) or [base.model.detector]
    return "; ".join(
        describe_settings(with_settings(base, {"model.detector": name})) for name in names
    )


def describe_departures(config: Config) -> str:
    """Lists the settings that differ from the paper's: "train.batch_size 16 instead of 48"."""
    paper = Config()
    changed = {
        name.removeprefix("config."): (new, old)
        for name, (old, new) in changed_settings(paper, config).items()
        if name != "config.model.pretrained"  # a path, which says nothing about the weights
    }
    if config.train.epochs != paper.train.epochs:
        changed["train.epochs"] = (config.train.epochs, paper.train.epochs)
    if config.model.pretrained == "none":
        changed["model.pretrained"] = ("none", paper.model.pretrained)
    return ", ".join(f"{name} {new} instead of {old}" for name, (new, old) in changed.items())


def describe_environment(results: Sequence[RunResult]) -> str:
    """Describes when the runs were started, on which devices and with which software."""
    dates = sorted({result.started for result in results} - {""})
    machines = sorted(
        {f"{result.device}, {result.software}" for result in results if result.device}
    )
    period = dates[:1] + (["to", dates[-1]] if len(dates) > 1 else [])
    return "; ".join(filter(None, [" ".join(period), *machines]))
