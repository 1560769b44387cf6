"""All settings: types, defaults (the paper's values where it has them), ranges and meanings.

The dataclasses below declare each setting once. Files in `configs/` start from `get_config()` and
change what a data set needs. The command line overrides single values
(`--config.train.batch_size=16`). `Config.from_dict` checks the result once; the rest of the package
sees only typed, valid settings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from devnet_jax.errors import UserError, nearest, printable
from devnet_jax.notation import parse_region, parse_size, write_size
from devnet_jax.schema import find_changes, from_dict, setting, to_config_dict


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The data set: its images, and the split into training and test images."""

    name: str = setting(
        "synthetic_textures", "name of the data set: a builder in devnet_jax/data/datasets"
    )
    category: str | None = setting(None, "category of the data set, if it has several")
    manual_dir: str | None = setting(
        None, "folder of the raw data set, as published", may_change=True
    )
    labels: str | None = setting(
        None,
        "table of the pictures and their labels (CSV), for the data set image_list; its paths "
        "start from manual_dir, or from the folder of the table",
        may_change=True,
    )
    data_dir: str | None = setting(
        None,
        "folder of the prepared data; none means $TFDS_DATA_DIR or ~/tensorflow_datasets",
        may_change=True,
    )
    image_size: int | str = setting(
        0,
        "size in pixels of the network's input: one number, or HEIGHTxWIDTH, such as 256x1024, at "
        "least 8; 0 means the detector's own: 448 for devnet (the paper's), 224 for devcore",
        minimum=0,
    )
    fit: Literal["stretch", "letterbox", "crop"] = setting(
        "stretch",
        "fitting of images of another shape: stretch changes their aspect ratio; letterbox keeps "
        "it and adds padding, which is never scored; crop keeps it and cuts off what does not fit",
    )
    region: str = setting(
        "",
        "part of each image that is used, as left,top,right,bottom in pixels or per cent of the "
        "image (10%,0%,90%,100%); empty means all",
    )
    tiles: str = setting(
        "1x1",
        "tiles that a large image is divided into, as ROWSxCOLUMNS; each has the size image_size, "
        "and together they are one bag of positions",
    )
    overlap: float = setting(
        0.1, "share of a tile that the next one overlaps", minimum=0, maximum=0.5
    )
    white_level: int = setting(
        0,
        "value that is white in images of 16 bits, such as 1023 for a camera of 10 bits; 0 takes "
        "it from the data set",
        minimum=0,
        maximum=65535,
    )
    n_anomaly: int | str = setting(
        10,
        "number of labelled anomalies for training (shots), or all; of your own pictures, at most "
        "so many are drawn, evenly over the kinds, and none if there is train/<defect>; 0 trains "
        "from good images alone, with model.detector=devcore",
        minimum=0,
    )
    known_class: str | None = setting(
        None,
        "defect class of all labelled anomalies, which is left out of the test set (the hard "
        "setting); none means the general setting",
    )
    contamination: float = setting(
        0.0,
        "share of unlabelled anomalies among the training images treated as normal",
        minimum=0,
        maximum=0.5,
    )
    calibration: float = setting(
        0.0,
        "share of normal training images held out to calibrate the threshold",
        minimum=0,
        maximum=0.9,
    )
    store: Literal["auto", "device", "host", "stream"] = setting(
        "auto",
        "location of the decoded training images: device memory, host memory, disk (stream: read "
        "batch by batch), or chosen by their size (auto)",
        may_change=True,
    )
    memory_gib: float = setting(
        0.0,
        "largest size in GiB of training images kept in host memory; larger sets are streamed; "
        "0 means a quarter of the host's memory",
        minimum=0,
        may_change=True,
    )
    cache: bool = setting(
        True,
        "cache of decoded images on disk, beside the prepared data, for later runs",
        may_change=True,
    )

    @property
    def n_to_draw(self) -> int | None:
        """Number of labelled anomalies to draw; `None` for all."""
        return None if isinstance(self.n_anomaly, str) else self.n_anomaly


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The detector and its network: feature extractor, image pyramid, multiple-instance head."""

    detector: Literal["devnet", "devcore"] = setting(
        "devnet",
        "detector: the paper's deviation network (devnet), or a frozen feature extractor with a "
        "memory of good parts and a learned head (devcore)",
    )
    backbone: Literal["resnet18", "resnet34", "resnet50", "alexnet"] = setting(
        "resnet18", "feature extractor"
    )
    n_scales: int = setting(
        2,
        "number of levels of the image pyramid, each half the size of the previous; devnet only",
        minimum=1,
    )
    head: Literal["topk"] = setting(
        "topk", "head of devnet: combines position scores into the image's score"
    )
    topk: float = setting(
        0.1,
        "share of positions, those with the largest absolute scores, whose mean is the image's "
        "score; 0 means the signed mean of all; devnet only",
        minimum=0,
        maximum=1,
    )
    pretrained: str = setting(
        "imagenet",
        "initial weights of the feature extractor: imagenet, none, or a .safetensors, .npz or .pth "
        "file",
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "compute dtype of the network")


@dataclasses.dataclass(frozen=True)
class DevCoreConfig:
    """The memory of good parts, and how its head is learned; for model.detector = devcore only."""

    memory_size: int = setting(2000, "number of feature vectors in the memory", minimum=1)
    memory_samples: int = setting(
        30_000,
        "number of random positions of the normal training images that the memory is chosen from",
        minimum=1,
    )
    projection: int = setting(
        128, "dimensions of the random projection on which the memory is chosen", minimum=1
    )
    top_positions: float = setting(
        0.01,
        "share of positions, those with the largest scores, whose mean is the image's local score",
        minimum=0,
        maximum=1,
    )
    learning_images: int = setting(
        512,
        "largest number of normal training images that the head is learned from; it bounds the "
        "memory that training needs",
        minimum=20,  # fewer could all fall into one fold
    )
    head_steps: int = setting(150, "number of steps of the head's training", minimum=1)
    head_batch_size: int = setting(
        24, "batch size of the head's training; half of the images are anomalies", minimum=2
    )
    head_learning_rate: float = setting(0.03, "learning rate of Adam for the head", minimum=0)
    head_penalty: float = setting(
        0.01,
        "L2 penalty of the head's weights, divided by the number of labelled anomalies",
        minimum=0,
    )
    folds: int = setting(
        5,
        "largest number of folds of the cross-validation over labelled anomalies and normal images",
        minimum=2,
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, and the prior of normal scores."""

    name: Literal["deviation", "focal", "bce"] = setting("deviation", "training loss")
    margin: float = setting(
        5.0,
        "margin of anomalous scores above the prior's mean, in standard deviations (a in the "
        "paper)",
        minimum=0,
    )
    prior_mean: float = setting(0.0, "mean of the Gaussian prior of normal scores")
    prior_std: float = setting(
        1.0, "standard deviation of the Gaussian prior of normal scores", minimum=1e-6
    )
    prior_samples: int = setting(
        5000, "number of scores drawn from the prior at each step", minimum=2
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with L2 regularisation, gradient clipping and stepwise learning-rate decay."""

    learning_rate: float = setting(2e-4, "initial learning rate of Adam", minimum=0)
    weight_decay: float = setting(
        1e-5, "L2 coefficient: this multiple of each parameter is added to its gradient", minimum=0
    )
    clip_norm: float = setting(1.0, "largest global norm of the gradient", minimum=1e-6)
    decay_rate: float = setting(0.1, "factor of each learning-rate decay", minimum=1e-6, maximum=1)
    decay_epochs: int = setting(10, "number of epochs between two learning-rate decays", minimum=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training: batches, epochs, augmentation and checkpoints."""

    batch_size: int = setting(
        48, "training batch size over all devices; half of the images are anomalies", minimum=2
    )
    epochs: int = setting(50, "number of epochs", minimum=1, may_change=True)
    steps_per_epoch: int = setting(20, "number of steps in an epoch", minimum=1)
    warm_start: bool = setting(
        False,
        "go on from the newest checkpoint, up to train.epochs, with the images that are new since "
        "the run began; devcore learns anew with them in any case",
        may_change=True,
    )
    rotation: float = setting(
        180.0,
        "largest angle of the random rotations, in degrees in either direction",
        minimum=0,
        maximum=180,
    )
    steps_per_call: int = setting(
        0,
        "number of steps in one call to the devices; 0 means automatic: an epoch on accelerators, "
        "1 on a CPU",
        minimum=0,
        may_change=True,
    )
    checkpoint_epochs: int = setting(
        1, "number of epochs between two checkpoints", minimum=1, may_change=True
    )
    keep: int = setting(2, "number of newest checkpoints to keep", minimum=1, may_change=True)
    keep_best: Literal["none", "loss", "gradient_norm"] = setting(
        "none",
        "metric whose lowest epoch mean marks the best checkpoint, which is kept as well",
        may_change=True,
    )

    @property
    def best_by(self) -> str | None:
        """The metric of `keep_best`; `None` for "none"."""
        return None if self.keep_best == "none" else self.keep_best


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Scoring, thresholds and explanations."""

    checkpoint: Literal["newest", "best"] = setting(
        "newest",
        "checkpoint to restore: the newest, or the best by train.keep_best",
        may_change=True,
    )
    batch_size: int = setting(
        32, "batch size of scoring and explaining, per process", minimum=1, may_change=True
    )
    confidence: float = setting(
        0.95,
        "probability whose quantile of the prior is the prior's threshold",
        minimum=0.5,
        maximum=1 - 1e-9,
        may_change=True,
    )
    threshold: float | str = setting(
        "auto",
        "threshold in force, as a score, or auto: the calibrated threshold, or else the prior's",
        may_change=True,
    )
    false_alarm_rate: float = setting(
        0.05,
        "false-alarm rate on normal images that the calibrated threshold promises",
        minimum=1e-6,
        maximum=0.5,
        may_change=True,
    )
    prior_p_values: bool = setting(
        False,
        "tables of scores also have the column prior_p_value, the p-value under the prior",
        may_change=True,
    )
    explanation: Literal["auto", "gradient", "smoothgrad", "score_map", "none"] = setting(
        "auto",
        "explanation method: the paper's input gradients, their average over noisy copies "
        "(smoothgrad), the position scores (score_map, the fastest), none, or the detector's own "
        "(auto): gradient for devnet, score_map for devcore",
        may_change=True,
    )
    smoothgrad_samples: int = setting(
        16, "number of noisy copies of each image, for smoothgrad", minimum=1, may_change=True
    )
    smoothgrad_noise: float = setting(
        0.05,
        "standard deviation of smoothgrad's noise, as a share of the image's range of values",
        minimum=0,
        maximum=1,
        may_change=True,
    )
    map_size: Literal["input", "original"] = setting(
        "input",
        "size of maps and overlays, and of the masks they are compared with: that of the network's "
        "input, or the image's own (original)",
        may_change=True,
    )
    overlays: Literal["all", "anomalous", "none"] = setting(
        "all", "images whose overlays --mode=predict writes", may_change=True
    )

    @property
    def given_threshold(self) -> float | None:
        """The threshold given as a score; `None` for "auto"."""
        return None if isinstance(self.threshold, str) else self.threshold


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The name of the run's detector."""

    name: str = setting(
        "",
        "name of the detector in reports, in the card of its file and of the service; empty means "
        "that of the folder or list of your own pictures, or of the published data set",
        may_change=True,
    )


# Image size and explanation method of each detector.
_DETECTOR_DEFAULTS: Mapping[str, tuple[int, Literal["gradient", "score_map"]]] = {
    "devnet": (448, "gradient"),
    "devcore": (224, "score_map"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = setting(42, "seed of all random draws", minimum=0, maximum=2**31 - 1)
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    devcore: DevCoreConfig = dataclasses.field(default_factory=DevCoreConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Replaces the values 0 and "auto" by those of the detector; writes sizes in one way."""
        image_size, explanation = _DETECTOR_DEFAULTS[self.model.detector]
        object.__setattr__(self, "dataset", _with_plain_values(self.dataset, image_size))
        evaluation = _with_plain_threshold(self.evaluation)
        if evaluation.explanation == "auto":
            evaluation = dataclasses.replace(evaluation, explanation=explanation)
        object.__setattr__(self, "evaluation", evaluation)

    @property
    def detector_name(self) -> str:
        """Name of the detector, on one line: `run.name`, or else that of its data.

        A folder of one's own is called by its name, a list by its file or, if that is called
        labels, by its folder; a published data set as "mvtec_ad / carpet".
        """
        data = self.dataset
        published = " / ".join(filter(None, (data.name, data.category)))
        return printable(self.run.name.strip() or _name_of_own_data(data) or published)

    @property
    def n_labelled(self) -> int:
        """Number of labelled anomalies that the detector learns from.

        Raises:
          ValueError: before `with_labels`, if `dataset.n_anomaly` is "all".
        """
        return int(self.dataset.n_anomaly)

    @property
    def last_step(self) -> int:
        """The step of the finished run's checkpoint: the number of training steps.

        A memory that no labelled anomalies teach counts as one step.
        """
        if self.model.detector == "devcore":
            return self.devcore.head_steps if self.dataset.n_anomaly else 1
        return self.train.epochs * self.train.steps_per_epoch

    def with_labels(self, n_labelled: int) -> Config:
        """Returns the settings of a detector that learns from so many labelled anomalies.

        `dataset.n_anomaly` says how many are wanted; the split says how many there are.
        """
        return dataclasses.replace(
            self, dataset=dataclasses.replace(self.dataset, n_anomaly=n_labelled)
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = None) -> Config:
        """Builds settings from nested dictionaries; missing settings get their defaults.

        Args:
          values: nested dictionaries of settings.
          source: file that the settings come from, to be named in errors.

        Raises:
          UserError: if a setting is unknown or has a wrong value; names the first one.
        """
        return from_dict(cls, values, "config" if source is None else f"{source}: config")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as nested dictionaries of plain values, as in config.json."""
        return dataclasses.asdict(self)


def _name_of_own_data(settings: DatasetConfig) -> str:
    """Returns the name of a folder or list of one's own pictures, or ""."""
    if settings.name == "image_folder" and settings.manual_dir:
        return _last_parts(settings.manual_dir).name
    if settings.name == "image_list" and settings.labels:
        table = _last_parts(settings.labels)
        return table.parent.name if table.stem.lower() == "labels" else table.stem
    return ""


def _last_parts(path: str) -> Path:
    """Returns the absolute path without "..", whose last part then is a name."""
    return Path(os.path.normpath(_absolute(path)))


def _with_plain_values(settings: DatasetConfig, default: int) -> DatasetConfig:
    """Returns the settings with their values written in one way, so that equal ones compare equal.

    Args:
      settings: settings of the data set.
      default: image size in place of 0.

    Raises:
      UserError: if a size, the region or `n_anomaly` has a wrong form, or images would be too
        small.
    """
    n_anomaly = settings.n_anomaly
    if isinstance(n_anomaly, str) and n_anomaly != "all":
        if not n_anomaly.isdecimal():
            raise UserError(f"config.dataset.n_anomaly = {n_anomaly!r}: give a number, or all")
        n_anomaly = int(n_anomaly)
    given = settings.image_size
    size = parse_size(default if str(given) == "0" else given, "config.dataset.image_size")
    if min(size) < MIN_IMAGE_SIZE:
        raise UserError(f"config.dataset.image_size = {given!r}: give at least {MIN_IMAGE_SIZE}")
    rows, columns = parse_size(settings.tiles, "config.dataset.tiles")
    if settings.region:
        parse_region(settings.region)
    return dataclasses.replace(
        settings, image_size=write_size(size), tiles=f"{rows}x{columns}", n_anomaly=n_anomaly
    )


def _with_plain_threshold(settings: EvaluationConfig) -> EvaluationConfig:
    """Returns the settings with the threshold as a number, or "auto"; else raises `UserError`."""
    given = settings.threshold
    if given == "auto":
        return settings
    try:
        value = float(str(given))  # a float32 score is the number that tables have
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"config.evaluation.threshold = {given!r}: give a score, or auto")
    return dataclasses.replace(settings, threshold=value)


def get_config() -> ConfigDict:
    """Returns the default settings as the `ConfigDict` that files in `configs/` start from."""
    return to_config_dict(Config)


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


# Pixels; smaller images have no position in any backbone.
MIN_IMAGE_SIZE = 8

# Default share of normal training images held out for calibration when training on one's own
# folder: a calibrated threshold is worth more there than a few more training images.
FOLDER_CALIBRATION = 0.2


def for_folder(folder: str | os.PathLike[str]) -> Config:
    """Returns the settings of configs/folder.py for a folder of one's own images."""
    return _for_own_images({"name": "image_folder", "manual_dir": _absolute(folder)})


def for_list(labels: str | os.PathLike[str]) -> Config:
    """Returns the settings of configs/image_list.py for a table of one's own images."""
    return _for_own_images({"name": "image_list", "labels": _absolute(labels)})


def _for_own_images(dataset: Mapping[str, Any]) -> Config:
    settings = {f"dataset.{name}": value for name, value in dataset.items()}
    settings |= {"model.detector": "devcore", "dataset.calibration": FOLDER_CALIBRATION}
    return with_settings(Config(), settings)


def _absolute(path: str | os.PathLike[str]) -> str:
    # Path.expanduser would raise an error for ~ if the home folder is not known.
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111


def require_setting(name: str) -> None:
    """Raises `UserError` with the nearest names unless `name` is a setting or a group of them.

    Args:
      name: dotted name, such as train.epochs or train.
    """
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
    """Returns the dotted names of all settings: seed, dataset.name, …

    Args:
      section: dataclass of the settings.
      prefix: prefix of the names.
    """
    hints = typing.get_type_hints(section)
    names: list[str] = []
    for field in dataclasses.fields(section):
        name = f"{prefix}{field.name}"
        is_group = dataclasses.is_dataclass(hints[field.name])
        names += setting_names(hints[field.name], f"{name}.") if is_group else [name]
    return tuple(names)


def full_name(name: str) -> str:
    """Returns the dotted name of a setting given its last part: dataset.n_anomaly for n_anomaly.

    Raises:
      UserError: if no setting, or several, have that last part.
    """
    if name in setting_names():
        return name
    same = [known for known in setting_names() if known.rpartition(".")[2] == name]
    if len(same) == 1:
        return same[0]
    if same:
        raise UserError(f"{name}: there are {' and '.join(same)}; give the whole name")
    raise _not_a_setting(name)


def get_setting(config: Config, name: str) -> Any:
    """Returns the value of a setting by its dotted name.

    Raises:
      UserError: if there is no such setting, or it is a group of settings.
    """
    if name not in setting_names():
        raise _not_a_setting(name)
    return functools.reduce(getattr, name.split("."), config)


def _not_a_setting(name: str) -> UserError:
    """Returns the error for the name of a group; raises it for an unknown name."""
    require_setting(name)
    return UserError(f"config.{name}: a group of settings, not one")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns a copy of the settings with some of them changed, and checks them.

    Args:
      config: settings to start from.
      settings: new values by dotted name.

    Raises:
      UserError: if a name is unknown, or a value has the wrong type or is out of range.
    """
    values = config.to_dict()
    if settings.get("model.detector", config.model.detector) != config.model.detector:
        # What the old detector chose, the new one chooses anew.
        image_size, explanation = _DETECTOR_DEFAULTS[config.model.detector]
        if config.dataset.image_size == image_size:
            values["dataset"]["image_size"] = 0
        if config.evaluation.explanation == explanation:
            values["evaluation"]["explanation"] = "auto"
    for name, value in settings.items():
        get_setting(config, name)
        *groups, last = name.split(".")
        functools.reduce(lambda group, part: group[part], groups, values)[last] = value
    return Config.from_dict(values)


def parse_setting(name: str, text: str) -> Any:
    """Parses the text of a setting's value by the type of its default.

    Returns:
      A number, a bool, a string, or `None` for "none" if the default is `None`. Text that does not
      parse is returned unchanged, for `with_settings` to reject.

    Raises:
      UserError: if the name is unknown.
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
    """Returns the settings that differ although a resumed run must not change them.

    Returns:
      {dotted name: (old value, new value)}.
    """
    return dict(find_changes(old, new, "config"))


def describe_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns the result of `changed_settings` in words, for a message."""
    return ", ".join(f"{name} is {new!r}, was {old!r}" for name, (old, new) in changed.items())
