"""The method as an outlier detector of scikit-learn: for cross-validation, searches, pipelines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.split import hold_out
from devnet_jax.data.store import make_store
from devnet_jax.distributed.cluster import is_rank_zero
from devnet_jax.distributed.sharding import replicated
from devnet_jax.distributed.stopping import Stopped
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import ImageLike, as_batch, as_written
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.log import TrainingLog
from devnet_jax.training.loop import fit
from devnet_jax.training.run import first_state, require_trainable, training_checkpoints

_PARAMETERS = (  # the settings that are parameters, each called by the last part of its name
    "model.backbone",
    "model.pretrained",
    "model.n_scales",
    "dataset.image_size",
    "dataset.calibration",
    "train.epochs",
    "train.steps_per_epoch",
    "train.batch_size",
    "evaluation.false_alarm_rate",
)
_OF_STORES = ("dataset.store", "dataset.memory_gib")  # others of dataset say which images there are


class DevNet(OutlierMixin, BaseEstimator):
    """Few-shot anomaly detection with a deviation network, as a scikit-learn estimator.

    Unlike other outlier detectors it learns from labels: `fit` wants `y`. X is a sequence of
    images: paths, Pillow images and arrays, as `as_batch` takes them, in a list or in an array of
    objects; or an array [N, H, W, C]. Images have no fixed number of features, so that there is no
    `n_features_in_`.

    In cross-validation let `StratifiedKFold` give each part both kinds: scikit-learn stratifies by
    itself for classifiers only. Its own scorers, such as "roc_auc", take the larger label for the
    one with the larger decision function: give them labels 1 and -1. `score`, which is used where
    no scorer is named, is the AUROC for either kind of label. Several jobs (`n_jobs`) each start
    JAX, and would share one accelerator's memory.

    Args:
      backbone: the feature extractor: resnet18, resnet34, resnet50 or alexnet.
      pretrained: where it starts: imagenet, none, or a file of weights.
      image_size: height and width in pixels that images are resized to.
      n_scales: resolutions in the image pyramid.
      epochs: of training.
      steps_per_epoch: batches of each.
      batch_size: images a step, over all devices; half are anomalies.
      calibration: share of the normal images that do not train: the threshold is calibrated on
        them.
      false_alarm_rate: what the calibrated threshold promises of normal images.
      random_state: everything random is a function of an int, and of the order of X; a
        `numpy.random.RandomState` or `None` draws the int.
      settings: any other settings, by the last part of their names where it is unique:
        {"topk": 0.05, "loss.name": "focal"}.

    Attributes:
      detector_: the trained `TrainedDetector`, which also explains images.
      offset_: minus the threshold in force, so that `decision_function` is `score_samples` minus
        it; NaN where none is in force: other losses than the deviation loss need calibration.
      loss_curve_: the mean loss of each epoch.
    """

    def __init__(
        self,
        *,
        backbone: str = ModelConfig.backbone,
        pretrained: str = ModelConfig.pretrained,
        image_size: int = DatasetConfig.image_size,
        n_scales: int = ModelConfig.n_scales,
        epochs: int = TrainConfig.epochs,
        steps_per_epoch: int = TrainConfig.steps_per_epoch,
        batch_size: int = TrainConfig.batch_size,
        calibration: float = FOLDER_CALIBRATION,
        false_alarm_rate: float = EvaluationConfig.false_alarm_rate,
        random_state: int | np.random.RandomState | None = Config.seed,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.n_scales = n_scales
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.calibration = calibration
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.settings = settings

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any) -> DevNet:
        """Trains on labelled images; nothing stays on the disk.

        Where too few images are held out for the rate of false alarms, a warning says so, and the
        prior's threshold is in force.

        Args:
          X: N images.
          y: [N], 1 for normal images and -1 for anomalies, as scikit-learn has it; or 0 for normal
            images and 1 for anomalies, or bool.

        Raises:
          ValueError: labels are of one kind alone, or none of these, or not as many as images; or
            X is no sequence of images.
          UserError: a mistake in a parameter, an image or the weights, or a loss that is no longer
            finite.
        """
        images = _listed(X)
        check_consistent_length(images, y)
        anomalous = _is_anomaly(y)
        config = self._config(n_anomaly=int(anomalous.sum()))
        normal, held_out = _hold_out(np.flatnonzero(~anomalous), config)
        trained = [*normal, *np.flatnonzero(anomalous)]

        size = config.dataset.image_size
        reader = PictureReader([images[i] for i in trained], size, trained)
        kept = PictureReader([images[i] for i in held_out], size, held_out)
        with tempfile.TemporaryDirectory(prefix="devnet-") as folder:
            workdir = Workdir(folder)
            _train(config, workdir, reader, len(normal))
            detector = TrainedDetector.restore(folder, config, calibrated=False)
            lines = workdir.metrics.read_text().splitlines()
        self.loss_curve_ = [json.loads(line)["loss"] for line in lines]
        self.detector_ = _calibrated(detector, kept, reader.digests)
        if self.detector_.shortage:
            warnings.warn(self.detector_.shortage, stacklevel=2)
        threshold = self.detector_.threshold
        self.offset_ = np.nan if threshold is None else -threshold.value
        return self

    def fit_predict(self, X: Any, y: Any) -> np.ndarray:
        """`fit`, then `predict` of the same images; labels are needed as for `fit`."""
        return self.fit(X, y).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the anomaly scores, float64 [N]: lower is more abnormal.

        Raises:
          ValueError: X is no sequence of images.
          UserError: an image cannot be read.
        """
        return self._of_batches(
            lambda detector, batch: -as_written(detector.score(batch).scores), X
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` minus `offset_`, float64 [N]: negative for anomalies.

        Raises:
          ValueError, UserError: as `score_samples`; or no threshold is in force.
        """
        return self._of_batches(TrainedDetector.decision_function, X)

    def predict(self, X: Any) -> np.ndarray:
        """1 for normal images and -1 for anomalies, int64 [N].

        Raises:
          ValueError, UserError: as `decision_function`.
        """
        return self._of_batches(TrainedDetector.predict, X)

    def score(self, X: Any, y: Any) -> float:
        """The AUROC, in which no threshold plays a part; labels as for `fit`, of both kinds."""
        anomalous = _is_anomaly(y)
        return float(roc_auc_score(anomalous, -self.score_samples(X)))

    def _of_batches(
        self, function: Callable[[TrainedDetector, np.ndarray], np.ndarray], X: Any
    ) -> np.ndarray:
        """What the detector finds of X, which is decoded part by part."""
        check_is_fitted(self)
        detector = self.detector_
        reader = PictureReader(_listed(X), detector.image_size)
        parts = _batches(reader, detector.config.evaluation.batch_size)
        return np.concatenate([function(detector, batch) for batch in parts])

    def _config(self, n_anomaly: int) -> Config:
        """All settings, checked."""
        others = {full_name(name): value for name, value in (self.settings or {}).items()}
        for name in others:
            last = name.rpartition(".")[2]
            if name in _PARAMETERS:
                raise UserError(f"settings: {name} is the parameter {last}; give it there")
            if name == "seed":
                raise UserError("settings: seed is the parameter random_state; give it there")
            if name.startswith("dataset.") and name not in _OF_STORES:
                raise UserError(
                    f"settings: {name} says which images there are; X and y do here, leave it out"
                )
        values = {name: getattr(self, name.rpartition(".")[2]) for name in _PARAMETERS}
        if "train.keep_best" not in others:  # of the checkpoints only the last is used
            values["train.checkpoint_epochs"] = self.epochs
        values |= others | {"seed": _seed(self.random_state), "dataset.n_anomaly": n_anomaly}
        # Searches over parameters draw NumPy's numbers.
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
        return with_settings(Config(), plain)


class PictureReader:
    """Images at hand, decoded when they are read, on all cores: what a store is made of.

    Attributes:
      image_size: S, of images uint8 [S, S, 3].
      digests: of the images read so far, equal for images that are equal once decoded.
    """

    is_cached = False  # what is decoded is decoded again

    def __init__(
        self,
        images: Sequence[ImageLike],
        image_size: int,
        positions: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
          images: what `as_batch` takes one by one.
          image_size: S.
          positions: where they stand in X, for messages; by default in this order.
        """
        self.image_size = image_size
        self.digests: set[bytes] = set()
        self._images = images
        self._positions = range(len(images)) if positions is None else positions

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3], for integers [n]; a description comes with a progress bar.

        Raises:
          UserError: an image cannot be read.
        """
        batch = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)

        def load(n: int) -> None:
            i = int(indices[n])
            try:
                batch[n] = as_batch([self._images[i]], self.image_size)[0]
            except UserError as error:
                raise UserError(f"X[{self._positions[i]}]: {error}") from None
            self.digests.add(digest(batch[n]))

        for _ in map_in_threads(load, range(len(indices)), description):
            pass
        return batch


def digest(pixels: np.ndarray) -> bytes:
    """Equal for equal pixels."""
    return hashlib.blake2b(pixels.data, digest_size=16).digest()


def _listed(X: Any) -> list[ImageLike]:
    """X as a list of images; raises `ValueError` if it is one image, or none."""
    if isinstance(X, (str, os.PathLike, Image.Image)):
        raise ValueError("X is a single image; give a sequence of images: [image]")
    if isinstance(X, np.ndarray) and X.ndim not in (1, 4):
        raise ValueError(
            f"X is an array of the shape {X.shape}; images are an array [N, H, W, C], or a "
            "sequence of paths, Pillow images and arrays"
        )
    images = list(X)
    if not images:
        raise ValueError("X holds no image; give one at least")
    return images


def _is_anomaly(y: Any) -> np.ndarray:
    """bool [N] from labels of either kind; raises `ValueError` if they are of neither."""
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
        raise ValueError(
            f"all labels in y are {kinds.pop()}: images of both kinds are needed, normal ones and "
            "anomalies; in cross-validation StratifiedKFold gives both to each part"
        )
    shown = ", ".join(sorted(map(repr, kinds))[:5]) + (", …" if len(kinds) > 5 else "")
    raise ValueError(
        f"y holds the labels {shown}; give 1 for normal images and -1 for anomalies, or 0 for "
        "normal images and 1 for anomalies"
    )


def _seed(random_state: Any) -> Any:
    if isinstance(random_state, numbers.Integral):
        return random_state  # whether it is in the range is checked with the other settings
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _hold_out(normal: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Of the normal images those that train, and those that calibrate, each sorted."""
    share = config.dataset.calibration
    held_out = hold_out(normal.tolist(), share, config.seed)
    if len(held_out) == len(normal):
        raise ValueError(
            f"calibration = {share}: none of the {len(normal)} normal images would be left for the "
            "training; ask for less"
        )
    kept = np.array(sorted(held_out), normal.dtype)
    return np.setdiff1d(normal, kept), kept


def _train(config: Config, workdir: Workdir, reader: PictureReader, n_normal: int) -> None:
    """Leaves a run in a workdir that is to be restored and then removed.

    Args:
      config: all settings.
      workdir: its folder is there, and empty.
      reader: of the normal images, then of the anomalies.
      n_normal: how many of them are normal.
    """
    require_trainable(config)
    state = first_state(config)
    store = make_store(reader, config.dataset, replicated())
    write_json(workdir.config, config.to_dict())
    with training_checkpoints(config, workdir) as checkpoints:
        try:
            with TrainingLog(config, workdir, silent=not is_rank_zero()) as log:
                fit(config, store, n_normal, state, checkpoints, log)
        except Stopped:
            raise Stopped(
                "told to stop: the estimator is not fitted, and nothing is kept"
            ) from None


def _calibrated(
    detector: TrainedDetector, held_out: PictureReader, trained: set[bytes]
) -> TrainedDetector:
    """The detector with its scores of the images held out, but for those that equal an image that
    trained: they would score too low."""
    scores = [np.empty(0, np.float32)]
    for batch in _batches(held_out, detector.config.evaluation.batch_size):
        new = np.array([digest(pixels) not in trained for pixels in batch])
        scores.append(detector.score(batch).scores[new])
    return dataclasses.replace(detector, calibration_scores=np.concatenate(scores))


def _batches(reader: PictureReader, size: int) -> Iterator[np.ndarray]:
    """All images in their order, so many at once; the next are decoded while some are in use."""
    starts = range(0, len(reader), size)
    return prefetch(reader.read(np.arange(s, min(s + size, len(reader)))) for s in starts)
