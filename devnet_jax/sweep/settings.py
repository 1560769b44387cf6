"""A sweep's common settings in words, and how they depart from the published protocol."""

from __future__ import annotations

from pathlib import Path

from devnet_jax.config import Config, changed_settings

# What a grid varies, and where weights and data lie.
_NO_DEPARTURES = ("config.dataset.name", "config.dataset.category", "config.model.pretrained")


def describe_settings(config: Config) -> str:
    """The network, the images and the length of the training, in a line."""
    model, train = config.model, config.train
    weights = {"imagenet": "ImageNet weights", "none": "random weights"}.get(
        model.pretrained, Path(model.pretrained).name
    )
    scales = "one scale" if model.n_scales == 1 else f"{model.n_scales} scales"
    size = config.dataset.image_size
    return (
        f"{model.backbone} from {weights}, {scales}, {size}×{size}, batch {train.batch_size}, "
        f"{train.epochs} epochs × {train.steps_per_epoch} steps"
    )


def departures(config: Config) -> str:
    """Settings that are not the paper's: "train.batch_size 16 instead of 48"; "" if all are."""
    paper = Config()
    changed = {
        name.removeprefix("config."): (new, old)
        for name, (old, new) in changed_settings(paper, config).items()
        if name not in _NO_DEPARTURES
    }
    if config.train.epochs != paper.train.epochs:
        changed["train.epochs"] = (config.train.epochs, paper.train.epochs)
    if config.model.pretrained == "none":
        changed["model.pretrained"] = ("none", paper.model.pretrained)
    return ", ".join(f"{name} {new} instead of {old}" for name, (new, old) in changed.items())
