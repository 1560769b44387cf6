"""Every setting: its type, its default (the paper's value where it has one), its meaning.

The dataclasses below are the only place where a setting is declared. Files in
`configs/` start from `get_config()` and change what a data set needs; the
command line overrides single values (`--config.train.batch_size=16`); `Config.from_dict`
checks the result once, and the rest of the package sees only typed, valid settings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from devnet_jax.errors import UserError, nearest


def setting(
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    may_change: bool = False,
) -> Any:
    """Declares one setting: a dataclass field with its meaning and its range (both ends included).

    `may_change` marks what may differ when a run is resumed without making the result wrong.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "meaning": meaning,
            "minimum": minimum,
            "maximum": maximum,
            "may_change": may_change,
        },
    )


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Which images, and which of them are shown to the network with a label."""

    name: str = setting("synthetic_textures", "the data set: a builder in devnet_jax/data/datasets")
    category: str | None = setting(None, "its category, where the data set has several")
    manual_dir: str | None = setting(None, "the raw folder, as published", may_change=True)
    data_dir: str | None = setting(
        None,
        "where the prepared data lies; none is ~/tensorflow_datasets",
        may_change=True,
    )
    image_size: int = setting(
        448, "height and width in pixels that images are resized to", minimum=8
    )
    n_anomaly: int = setting(10, "labelled anomalies to train with (shots)", minimum=1)
    known_class: str | None = setting(
        None,
        "the hard setting: all labelled anomalies are of this defect class, "
        "which then leaves the test set; none is the general setting",
    )
    contamination: float = setting(
        0.0,
        "share of unlabelled anomalies among the images that train as normal ones",
        minimum=0,
        maximum=0.5,
    )
    calibration: float = setting(
        0.0,
        "share of the normal training images that do not train: the threshold is calibrated on "
        "them",
        minimum=0,
        maximum=0.9,
    )
    store: Literal["auto", "device", "host", "stream"] = setting(
        "auto",
        "where the decoded training images are kept: in device memory, in host memory, on disk "
        "and read batch by batch, or chosen by their size",
        may_change=True,
    )
    memory_gib: float = setting(
        0.0,
        "host memory for the training images, in GiB, beyond which they are streamed; "
        "0 is automatic: a quarter of what there is",
        minimum=0,
        may_change=True,
    )
    cache: bool = setting(
        True,
        "whether decoded images are kept on disk beside the prepared data, for the next run",
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: feature extractor, image pyramid and top-K multiple-instance head."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "alexnet"] = setting(
        "resnet18", "the feature extractor"
    )
    n_scales: int = setting(
        2, "resolutions in the image pyramid, each half the one before", minimum=1
    )
    head: Literal["topk"] = setting("topk", "from scores of positions to the image's score")
    topk: float = setting(
        0.1,
        "share of the positions, those with the largest absolute scores, whose mean is the image's "
        "score; 0 is the signed mean of all",
        minimum=0,
        maximum=1,
    )
    pretrained: str = setting(
        "imagenet",
        "where the feature extractor starts: imagenet, none, or a .safetensors, .npz or .pth file",
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type the network computes in")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, and the prior that normal scores are compared with."""

    name: Literal["deviation", "focal", "bce"] = setting("deviation", "the loss")
    margin: float = setting(
        5.0,
        "standard deviations that an anomaly's score is pushed past (a in the paper)",
        minimum=0,
    )
    prior_mean: float = setting(0.0, "mean of the Gaussian prior of normal scores")
    prior_std: float = setting(1.0, "its standard deviation", minimum=1e-6)
    prior_samples: int = setting(5000, "scores drawn from the prior at each step", minimum=2)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with L2, clipping by the global norm and a stepwise decay."""

    learning_rate: float = setting(2e-4, "Adam's learning rate in the first epoch", minimum=0)
    weight_decay: float = setting(1e-5, "L2 coefficient, added to every gradient", minimum=0)
    clip_norm: float = setting(1.0, "largest global norm of the gradient", minimum=1e-6)
    decay_rate: float = setting(
        0.1, "factor of each decay of the learning rate", minimum=1e-6, maximum=1
    )
    decay_epochs: int = setting(10, "epochs from one decay to the next", minimum=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how."""

    batch_size: int = setting(48, "images a step, over all devices; half are anomalies", minimum=2)
    epochs: int = setting(50, "epochs", minimum=1, may_change=True)
    steps_per_epoch: int = setting(20, "steps an epoch", minimum=1)
    rotation: float = setting(
        180.0, "images are rotated by up to so many degrees either way", minimum=0, maximum=180
    )
    steps_per_call: int = setting(
        0,
        "steps in one call to the device; 0 is automatic: an epoch on accelerators, 1 on a CPU",
        minimum=0,
        may_change=True,
    )
    checkpoint_epochs: int = setting(
        1, "epochs from one checkpoint to the next", minimum=1, may_change=True
    )
    keep: int = setting(2, "newest checkpoints that are kept", minimum=1, may_change=True)
    keep_best: Literal["none", "loss", "gradient_norm"] = setting(
        "none",
        "what makes the best checkpoint, which is kept besides: the lowest mean of an epoch",
        may_change=True,
    )

    @property
    def best_by(self) -> str | None:
        """The metric of `keep_best`, if it names one."""
        return None if self.keep_best == "none" else self.keep_best


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How images are scored, judged and explained."""

    checkpoint: Literal["newest", "best"] = setting(
        "newest",
        "which checkpoint is restored; the best is that of train.keep_best",
        may_change=True,
    )
    batch_size: int = setting(
        32, "images scored at once, by each process", minimum=1, may_change=True
    )
    confidence: float = setting(
        0.95,
        "the prior's threshold is this quantile of the prior",
        minimum=0.5,
        maximum=1 - 1e-9,
        may_change=True,
    )
    false_alarm_rate: float = setting(
        0.05,
        "what the calibrated threshold promises of normal images",
        minimum=1e-6,
        maximum=0.5,
        may_change=True,
    )
    explanation: Literal["gradient", "smoothgrad", "score_map", "none"] = setting(
        "gradient",
        "the maps of where an anomaly is: the paper's input gradients, the same averaged over "
        "noisy copies, the head's scores of the positions (quickest), or none",
        may_change=True,
    )
    smoothgrad_samples: int = setting(
        16, "noisy copies of each image, for smoothgrad", minimum=1, may_change=True
    )
    smoothgrad_noise: float = setting(
        0.05,
        "their noise, as a share of the image's range of values",
        minimum=0,
        maximum=1,
        may_change=True,
    )
    overlays: Literal["all", "anomalous", "none"] = setting(
        "all", "images whose overlay --mode=predict writes", may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = setting(42, "everything random is a function of it", minimum=0, maximum=2**31 - 1)
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = None) -> Config:
        """Settings from nested dictionaries.

        Raises:
          UserError: names the first wrong setting, and the file it stands in if that is given
            as `source`.
        """
        return _from_dict(cls, values, "config" if source is None else f"{source}: config")

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries of plain values, as written to config.json."""
        return dataclasses.asdict(self)


def get_config() -> ConfigDict:
    """The default settings as the `ConfigDict` that files in `configs/` start from."""
    return _to_config_dict(Config)


def for_dataset(name: str, category: str | None = None) -> ConfigDict:
    """Returns the paper's settings for a data set, as the files in `configs/` do.

    Args:
      name: name of the data set, a key of `devnet_jax.data.datasets.DATASETS`.
      category: category of the data set, if it has several.
    """
    config = get_config()
    config.dataset.name = name
    if category is not None:
        config.dataset.category = category
    return config


# The share of a folder's good pictures that the threshold is calibrated on: without others to
# compare with, one's own detector needs a threshold more than the last picture to train with.
FOLDER_CALIBRATION = 0.2


def of_folder(folder: str | os.PathLike[str]) -> Config:
    """The paper's settings for a folder of one's own pictures: those of configs/folder.py."""
    return with_settings(
        Config(),
        {
            "dataset.name": "image_folder",
            "dataset.manual_dir": str(Path(folder).expanduser().absolute()),
            "dataset.calibration": FOLDER_CALIBRATION,
        },
    )


def require_setting(name: str) -> None:
    """Raises `UserError` with the nearest names unless `name`, such as train.epochs, is a setting
    or a group of them."""
    known = set(setting_names())
    groups = {known_name.partition(".")[0] for known_name in known}
    if name in known or name in groups:
        return
    last = name.rpartition(".")[2]
    same = sorted(known_name for known_name in known if known_name.rpartition(".")[2] == last)
    hint = f"did you mean {' or '.join(same)}?" if same else nearest(name, known)
    raise UserError(f"config.{name}: no such setting; {hint}")


@functools.cache
def setting_names(section: type = Config, prefix: str = "") -> tuple[str, ...]:
    """The dotted names of all settings: seed, dataset.name, …"""
    hints = typing.get_type_hints(section)
    names: list[str] = []
    for field in dataclasses.fields(section):
        name = f"{prefix}{field.name}"
        is_group = dataclasses.is_dataclass(hints[field.name])
        names += setting_names(hints[field.name], f"{name}.") if is_group else [name]
    return tuple(names)


def full_name(name: str) -> str:
    """The dotted name of a setting from its last part: n_anomaly is dataset.n_anomaly.

    Raises:
      UserError: there is no such setting, or several.
    """
    if name in setting_names():
        return name
    same = [known for known in setting_names() if known.rpartition(".")[2] == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f"{name}: there are {' and '.join(same)}; give the whole name")
    require_setting(name)
    raise UserError(f"config.{name}: a group of settings, not one")


def get_setting(config: Config, name: str) -> Any:
    """The value of a setting by its dotted name.

    Raises:
      UserError: it is none, or a group of them.
    """
    if name not in setting_names():
        require_setting(name)
        raise UserError(f"config.{name}: a group of settings, not one")
    return functools.reduce(getattr, name.split("."), config)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The settings with some of them changed, by dotted name, and checked.

    Raises:
      UserError: an unknown name, or a value that it cannot have.
    """
    values = config.to_dict()
    for name, value in settings.items():
        get_setting(config, name)
        *groups, last = name.split(".")
        functools.reduce(lambda group, part: group[part], groups, values)[last] = value
    return Config.from_dict(values)


def parse_setting(name: str, text: str) -> Any:
    """A setting's value from text: a number or a truth where it is one, none where it may be
    nothing.

    Raises:
      UserError: an unknown name. Whether the value is allowed is said by `with_settings`.
    """
    default = get_setting(Config(), name)
    if default is None or isinstance(default, str):
        return None if default is None and text.lower() == "none" else text
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type(default)(text)
    except ValueError:
        return text


def changed_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and must not when a run is resumed: dotted name → (old, new)."""
    return dict(_changes(old, new, "config"))


def describe(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The result of `changed_settings` in words."""
    return ", ".join(f"{name} is {new!r}, was {old!r}" for name, (old, new) in changed.items())


def _changes(old: Any, new: Any, name: str) -> typing.Iterator[tuple[str, tuple[Any, Any]]]:
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            yield from _changes(before, after, f"{name}.{field.name}")
        elif before != after and not field.metadata["may_change"]:
            yield f"{name}.{field.name}", (before, after)


def _to_config_dict(section: type) -> ConfigDict:
    result = ConfigDict()
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            result[field.name] = _to_config_dict(typing.cast(type, hint))
        elif field.default is None:  # a typed hole, so that an override is parsed as that type
            result[field.name] = config_dict.placeholder(_alternatives(hint)[0])
        else:
            result[field.name] = field.default
    return result


def _from_dict(section: type, values: Mapping[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{name}.{key}: no such setting; {nearest(key, fields)}")
        hint = hints[key]
        if not dataclasses.is_dataclass(hint):
            checked[key] = _checked(value, hint, fields[key].metadata, f"{name}.{key}")
        elif isinstance(value, (Mapping, ConfigDict)):
            checked[key] = _from_dict(typing.cast(type, hint), value, f"{name}.{key}")
        else:
            raise UserError(f"{name}.{key} = {value!r}: must be a group of settings")
    return section(**checked)


def _checked(value: Any, hint: Any, metadata: Mapping[str, Any], name: str) -> Any:
    """The value as the declared type, or a `UserError` that names the setting."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{name} = {value!r}: unknown; {nearest(str(value), choices)}")
        return value
    allowed = _alternatives(hint)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        value = float(value)
    if type(value) not in allowed:
        wanted = " or ".join("none" if kind is type(None) else kind.__name__ for kind in allowed)
        raise UserError(f"{name} = {value!r}: must be {wanted}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value!r}: must be finite")
    low, high = metadata["minimum"], metadata["maximum"]
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise UserError(f"{name} = {value!r}: must be {bounds}")
    return value


def _alternatives(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
