"""`DevNet`, a scikit-learn estimator, for cross-validation, parameter searches and pipelines."""

from __future__ import annotations

import dataclasses
import multiprocessing
import numbers
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from devnet_jax.config import (
    FOLDER_CALIBRATION,
    Config,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    TrainConfig,
    full_name,
    with_settings,
)
from devnet_jax.data.decode import Batch
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.split import hold_out
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.fitting import train_devcore, train_devnet
from devnet_jax.inference.image_list import ImageListReader, batches, digest
from devnet_jax.inference.images import ImageLike
from devnet_jax.inference.scores import as_written
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.progress import COMPILING, Phase, showing
from devnet_jax.runtime.startup import keep_compiled
from devnet_jax.training.ordinary import summarise_images

# Settings that are parameters of the estimator, named by the last part of the setting's name.
_PARAMETERS = (
    "model.detector",
    "model.backbone",
    "model.pretrained",
    "model.n_scales",
    "dataset.image_size",
    "dataset.calibration",
    "train.epochs",
    "train.steps_per_epoch",
    "train.batch_size",
    "evaluation.false_alarm_rate",
    "evaluation.threshold",
)
# Settings of the data set that do not choose its images.
_IMAGE_SETTINGS = (
    "dataset.fit",
    "dataset.region",
    "dataset.tiles",
    "dataset.overlap",
    "dataset.white_level",
    "dataset.store",
    "dataset.memory_gib",
)


class DevNet(OutlierMixin, BaseEstimator):
    """Few-shot anomaly detection with either detector, as a scikit-learn estimator.

    Unlike other outlier detectors, it is supervised: `fit` requires `y`. DevCore also learns from
    normal images alone. X is a sequence of images (paths, Pillow images or arrays, as `as_batch`
    accepts them) in a list or an array of objects, or an array [N, H, W, C]. Images have no fixed
    number of features, so `n_features_in_` does not exist.

    Use `StratifiedKFold` in cross-validation, so that each fold has normal images and anomalies;
    scikit-learn stratifies by default only for classifiers. Scikit-learn's scorers, such as
    "roc_auc", assume that the larger label has the larger decision function; give them labels 1 and
    -1. `score`, the default scorer, is the AUROC for both kinds of labels. With `n_jobs`, each job
    starts JAX, and all jobs share the memory of the accelerator.

    Args:
      detector: devnet, the paper's deviation network; or devcore, a frozen feature extractor with a
        memory of good parts and a learned head, which uses neither `n_scales` nor the parameters
        of the deviation network's training, `epochs`, `steps_per_epoch` and `batch_size`.
      backbone: feature extractor: resnet18, resnet34, resnet50 or alexnet.
      pretrained: initial weights of the feature extractor: imagenet, none, or a file.
      image_size: size in pixels of the network's input: one number, or a text such as "256x1024",
        height first; 0 means the detector's own: 448 for devnet, 224 for devcore.
      n_scales: number of levels of the image pyramid.
      epochs: number of epochs.
      steps_per_epoch: number of steps in an epoch.
      batch_size: training batch size over all devices; half of the images are anomalies.
      calibration: share of normal training images held out to calibrate the threshold.
      false_alarm_rate: false-alarm rate on normal images that the calibrated threshold promises.
      threshold: threshold in force, as a score; or auto: the calibrated threshold, or else the
        prior's.
      random_state: seed of all random draws; a `numpy.random.RandomState` or `None` draws a seed.
        Results also depend on the order of X.
      verbose: True to show the progress of what takes longer than a second: a bar on a terminal, a
        few lines elsewhere. Jobs of `n_jobs` and threads show nothing.
      settings: other settings by name, or by the last part of the name if it is unique:
        {"topk": 0.05, "loss.name": "focal"}.

    Attributes:
      detector_: the trained `TrainedDetector`, which also explains images.
      offset_: minus the threshold in force: `decision_function` is `score_samples` minus `offset_`.
        NaN if no threshold is in force: losses without a prior need calibration.
      loss_curve_: mean loss of each epoch; empty for devcore, which has none.
    """

    def __init__(
        self,
        *,
        detector: str = ModelConfig.detector,
        backbone: str = ModelConfig.backbone,
        pretrained: str = ModelConfig.pretrained,
        image_size: int | str = DatasetConfig.image_size,
        n_scales: int = ModelConfig.n_scales,
        epochs: int = TrainConfig.epochs,
        steps_per_epoch: int = TrainConfig.steps_per_epoch,
        batch_size: int = TrainConfig.batch_size,
        calibration: float = FOLDER_CALIBRATION,
        false_alarm_rate: float = EvaluationConfig.false_alarm_rate,
        threshold: float | str = EvaluationConfig.threshold,
        random_state: int | np.random.RandomState | None = Config.seed,
        verbose: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.detector = detector
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.n_scales = n_scales
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.calibration = calibration
        self.false_alarm_rate = false_alarm_rate
        self.threshold = threshold
        self.random_state = random_state
        self.verbose = verbose
        self.settings = settings

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = True
        return tags

    @standard_numerics()
    def fit(self, X: Any, y: Any) -> DevNet:
        """Trains on labelled images; leaves no files behind.

        If too few images are held out for the false-alarm rate, the threshold promises the nearest
        rate that they allow, with a warning; without any, the prior's threshold is in force.

        Args:
          X: N images.
          y: labels [N]: 1 for normal images and -1 for anomalies, as in scikit-learn; or 0 for
            normal images and 1 for anomalies, or bool. DevCore also takes labels of normal images
            alone: all 1, all 0 or all False.

        Raises:
          ValueError: if one of the kinds is missing (for DevCore, the normal one), if labels have
            other values or another length than X, or if X is not a sequence of images.
          UserError: for a mistake in a parameter, an image or the weights, or a loss that is not
            finite.
        """
        keep_compiled()
        with showing(self.verbose and _is_alone()):
            return self._fit(X, y)

    def _fit(self, X: Any, y: Any) -> DevNet:
        images = _as_list(X)
        check_consistent_length(images, y)
        anomalous = _is_anomaly(y, needs_anomalies=self.detector != "devcore")
        config = self._config(n_anomaly=int(anomalous.sum()))
        normal, held_out = _hold_out(np.flatnonzero(~anomalous), config)
        trained = [*normal, *np.flatnonzero(anomalous)]

        settings = Preprocessing.from_settings(config.dataset)
        reader = ImageListReader([images[i] for i in trained], settings, trained)
        held_out_reader = ImageListReader([images[i] for i in held_out], settings, held_out)
        train = train_devcore if config.model.detector == "devcore" else train_devnet
        detector, self.loss_curve_ = train(config, reader, len(normal))
        ordinary = summarise_images(reader, len(normal))
        detector = dataclasses.replace(detector, ordinary=ordinary)
        self.detector_ = _calibrate(detector, held_out_reader, reader.digests)
        if self.detector_.shortage:
            warnings.warn(self.detector_.shortage, stacklevel=4)
        threshold = self.detector_.threshold
        self.offset_ = np.nan if threshold is None else -threshold.value
        return self

    def fit_predict(self, X: Any, y: Any) -> np.ndarray:
        """Calls `fit`, then `predict` on the same images."""
        return self.fit(X, y).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns minus the anomaly scores, float64 [N]: lower is more anomalous.

        Raises:
          ValueError: if X is not a sequence of images.
          UserError: if an image cannot be read.
        """
        return self._map_batches(
            lambda detector, batch: -as_written(detector.score(batch).scores), X
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns `score_samples` minus `offset_`, float64 [N]: negative for anomalies.

        Raises:
          ValueError, UserError: as `score_samples`, or if no threshold is in force.
        """
        return self._map_batches(TrainedDetector.decision_function, X)

    def predict(self, X: Any) -> np.ndarray:
        """Returns 1 for normal images and -1 for anomalies, int64 [N].

        Raises:
          ValueError, UserError: as `decision_function`.
        """
        return self._map_batches(TrainedDetector.predict, X)

    def score(self, X: Any, y: Any) -> float:
        """Returns the AUROC, which depends on no threshold; `y` as for `fit`."""
        anomalous = _is_anomaly(y)
        return float(roc_auc_score(anomalous, -self.score_samples(X)))

    def _map_batches(
        self, function: Callable[[TrainedDetector, Batch], np.ndarray], X: Any
    ) -> np.ndarray:
        """Applies a function of detector and images to X batch by batch, in bounded memory."""
        check_is_fitted(self)
        detector = self.detector_
        reader = ImageListReader(_as_list(X), detector.preprocessing)
        read = batches(reader, detector.config.evaluation.batch_size)
        results = []
        with (
            showing(self.verbose and _is_alone()),
            Phase("scoring", len(reader), first=COMPILING) as phase,
        ):
            for batch in read:
                results.append(function(detector, batch))
                phase.update(len(batch))
        return np.concatenate(results)

    def _config(self, n_anomaly: int) -> Config:
        """Returns all settings, checked."""
        others = {full_name(name): value for name, value in (self.settings or {}).items()}
        for name in others:
            last = name.rpartition(".")[2]
            if name in _PARAMETERS:
                raise UserError(f"settings: {name} is the parameter {last}; give it there")
            if name == "seed":
                raise UserError("settings: seed is the parameter random_state; give it there")
            if name.startswith("dataset.") and name not in _IMAGE_SETTINGS:
                raise UserError(
                    f"settings: {name} chooses images, which X and y do here; leave it out"
                )
        values = {name: getattr(self, name.rpartition(".")[2]) for name in _PARAMETERS}
        if "train.keep_best" not in others:  # only the last checkpoint is used
            values["train.checkpoint_epochs"] = self.epochs
        values |= others | {"seed": _seed(self.random_state), "dataset.n_anomaly": n_anomaly}
        # Parameter searches pass NumPy scalars.
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
        return with_settings(Config(), plain)


def _is_alone() -> bool:
    """Returns False in a job of joblib, whose lines would mix with those of the others."""
    is_main_process = multiprocessing.current_process().name == "MainProcess"
    return is_main_process and threading.current_thread() is threading.main_thread()


def _as_list(X: Any) -> list[ImageLike]:
    """Returns X as a list of images; raises `ValueError` if it is a single image or empty."""
    if isinstance(X, (str, os.PathLike, Image.Image)):
        raise ValueError("X is a single image; give a sequence of images: [image]")
    if isinstance(X, np.ndarray) and X.ndim not in (1, 4):
        raise ValueError(
            f"X is an array of shape {X.shape}; give images as an array [N, H, W, C], or as a "
            "sequence of paths, Pillow images and arrays"
        )
    images = list(X)
    if not images:
        raise ValueError("X contains no image; give at least one")
    return images


def _is_anomaly(y: Any, needs_anomalies: bool = True) -> np.ndarray:
    """Converts labels of either kind to bool [N], True for anomalies; else `ValueError`.

    Args:
      y: labels [N].
      needs_anomalies: if False, labels of normal images alone are taken: all 1, 0 or False.
    """
    if y is None:
        raise ValueError(
            "DevNet requires y to be passed, but the target y is None: 1 for normal images, -1 for "
            "anomalies"
        )
    labels = column_or_1d(y)
    kinds = set(labels.tolist())
    if kinds == {1, -1}:
        return np.asarray(labels == -1, bool)
    if kinds == {0, 1}:
        return np.asarray(labels == 1, bool)
    if len(kinds) == 1 and kinds <= {0, 1, -1}:
        only = kinds.pop()
        if not needs_anomalies and only is not True and only != -1:
            return np.zeros(len(labels), bool)
        needed = "normal images and anomalies" if needs_anomalies else "normal images"
        raise ValueError(
            f"all labels in y are {only}: training needs {needed}; in cross-validation, use "
            "StratifiedKFold"
        )
    shown = ", ".join(sorted(map(repr, kinds))[:5]) + (", …" if len(kinds) > 5 else "")
    raise ValueError(
        f"y contains the labels {shown}; give 1 for normal images and -1 for anomalies, or 0 for "
        "normal images and 1 for anomalies"
    )


def _seed(random_state: Any) -> Any:
    """Returns the seed of scikit-learn's `random_state`."""
    if isinstance(random_state, numbers.Integral):
        return random_state  # its range is checked with the other settings
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _hold_out(normal: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices of normal images into those for training and those held out, sorted."""
    share = config.dataset.calibration
    held_out = hold_out(normal.tolist(), share, config.seed)
    if len(held_out) == len(normal):
        raise ValueError(
            f"calibration = {share}: none of the {len(normal)} normal images would be left for "
            "training; use a smaller value"
        )
    calibration = np.array(sorted(held_out), normal.dtype)
    return np.setdiff1d(normal, calibration), calibration


def _calibrate(
    detector: TrainedDetector, held_out: ImageListReader, trained: set[bytes]
) -> TrainedDetector:
    """Returns the detector with the calibration scores of the held-out images.

    Images that equal a training image are left out, because they would score too low.

    Args:
      detector: trained detector.
      held_out: held-out normal images.
      trained: digests of the training images.
    """
    scores = [np.empty(0, np.float32)]
    with Phase("calibrating", len(held_out), first=COMPILING) as phase:
        for batch in batches(held_out, detector.config.evaluation.batch_size):
            new = np.array([digest(pixels) not in trained for pixels in batch.pixels])
            scores.append(detector.score(batch).scores[new])
            phase.update(len(batch))
    return dataclasses.replace(detector, calibration_scores=np.concatenate(scores))
