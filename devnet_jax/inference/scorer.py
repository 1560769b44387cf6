"""`ImageScorer`, the interface that `Detector` and `ExportedDetector` share."""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from devnet_jax.data.decode import load_image, map_in_threads, resize_image
from devnet_jax.errors import UserError
from devnet_jax.inference.overlay import lay_over
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prior import Prior

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
ImagesLike = ImageLike | Sequence[ImageLike]

# A Pillow image reads its file lazily, and the same one may be given twice to two threads.
_pillow_lock = threading.Lock()


class RawScores(NamedTuple):
    """Output of a network for N images.

    Attributes:
      scores: float32 [N], anomaly scores.
      maps: float32 [N, h, w], position scores of the finest scale.
      kinds: int32 [N], index of the labelled kind of defect that each image is like, or -1; `None`
        for the deviation network.
    """

    scores: np.ndarray
    maps: np.ndarray
    kinds: np.ndarray | None = None


class Scores(NamedTuple):
    """Result of `ImageScorer.score` for N images.

    Attributes:
      scores: float32 [N], anomaly scores. The deviation loss pulls normal images to the prior's
        mean; with the standard prior, scores read as standard deviations from normal.
      maps: float32 [N, h, w], signed position scores of the finest scale.
      p_values: float64 [N], upper-tail p-values under the prior; `None` without a prior.
      is_anomaly: bool [N], True at or above the threshold in force; `None` without a threshold.
      reasons: for each alarm "like the labelled KIND" or "unlike the good parts", and "" for the
        other images; all "" for the deviation network.
    """

    scores: np.ndarray
    maps: np.ndarray
    p_values: np.ndarray | None = None
    is_anomaly: np.ndarray | None = None
    reasons: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Result of `ImageScorer.explain` for N images.

    Attributes:
      maps: float32 [N, S, S]. Maps by "gradient" and "smoothgrad" are in [0, 1], relative to their
        own image; maps by "score_map" are in units of the score.
    """

    maps: np.ndarray
    _draw: Callable[[], list[Image.Image]]

    @functools.cached_property
    def overlays(self) -> list[Image.Image]:
        """The images with their maps drawn over them, S×S."""
        return self._draw()

    def __reduce__(self) -> tuple[Any, ...]:
        # With its overlays, because to draw them later takes the detector.
        return Explanation, (self.maps, functools.partial(list, self.overlays))

    @property
    def overlay(self) -> Image.Image:
        """The overlay of a single image; raises `ValueError` if there are several."""
        (overlay,) = self.overlays
        return overlay


class ImageScorer(abc.ABC):
    """Scores and explains images: a `Detector` of a run or an `ExportedDetector` of a file."""

    @property
    @abc.abstractmethod
    def image_size(self) -> int:
        """S: height and width in pixels that images are resized to."""

    @property
    @abc.abstractmethod
    def thresholds(self) -> list[Threshold]:
        """All known thresholds, the one in force first."""

    @property
    @abc.abstractmethod
    def prior(self) -> Prior | None:
        """The prior that normal scores follow; `None` if the training loss has no prior."""

    @property
    @abc.abstractmethod
    def margin(self) -> float:
        """The score that training pushes anomalies to; the least upper end of drawn score maps."""

    @property
    @abc.abstractmethod
    def explanation(self) -> str:
        """Default explanation method: "gradient", "smoothgrad", "score_map" or "none"."""

    @property
    @abc.abstractmethod
    def kinds(self) -> Sequence[str]:
        """Names of the labelled kinds that an image can be like; empty for devnet."""

    @abc.abstractmethod
    def _score(self, images: np.ndarray) -> RawScores:
        """Scores images uint8 [N, S, S, 3]."""

    @abc.abstractmethod
    def _explain(
        self, images: np.ndarray, method: str | None, maps: np.ndarray | None
    ) -> np.ndarray:
        """Returns `Explanation.maps` of images uint8 [N, S, S, 3]; see `explain`."""

    @property
    def threshold(self) -> Threshold | None:
        """The threshold in force; `None` without a prior and without calibration."""
        return next(iter(self.thresholds), None)

    def p_values(self, scores: np.ndarray) -> np.ndarray | None:
        """Returns upper-tail p-values float64 [N] under the prior, or `None` without a prior."""
        return None if self.prior is None else self.prior.p_values(scores)

    def score(self, images: ImagesLike) -> Scores:
        """Scores images.

        Args:
          images: paths, Pillow images or arrays, as `as_batch` accepts them.

        Raises:
          UserError: if an image cannot be read or a score is not finite.
        """
        scores, maps, kinds = self._score(as_batch(images, self.image_size))
        written = as_written(scores)
        alarms = None if self.threshold is None else self.threshold.alarms(written)
        reasons = self._reasons(kinds, np.ones(len(scores), bool) if alarms is None else alarms)
        return Scores(scores, maps, self.p_values(written), alarms, reasons)

    def _reasons(self, kinds: np.ndarray | None, alarms: np.ndarray) -> list[str]:
        """Returns `Scores.reasons`."""
        if kinds is None:
            return [""] * len(alarms)
        texts = [f"like the labelled {kind}" for kind in self.kinds]
        return [
            (texts[kind] if 0 <= kind < len(texts) else "unlike the good parts") if alarm else ""
            for kind, alarm in zip(kinds.tolist(), alarms.tolist(), strict=True)
        ]

    def decision_function(self, images: ImagesLike) -> np.ndarray:
        """Returns threshold minus score, float64 [N]: negative for anomalies, as in scikit-learn.

        Raises:
          UserError: as `score`, or if no threshold is in force.
        """
        if self.threshold is None:
            raise UserError(
                "no threshold is in force: the training loss has no prior, and none was "
                "calibrated; train with config.dataset.calibration, which holds normal images out"
            )
        return self.threshold.value - as_written(self.score(images).scores)

    def predict(self, images: ImagesLike) -> np.ndarray:
        """Returns 1 for normal images and -1 for anomalies, int64 [N], as in scikit-learn.

        An image whose score equals the threshold is an anomaly.

        Raises:
          UserError: as `decision_function`.
        """
        return np.where(self.decision_function(images) > 0, 1, -1)

    def explain(
        self, images: ImagesLike, method: str | None = None, *, maps: np.ndarray | None = None
    ) -> Explanation:
        """Locates anomalies: maps, and overlays of the maps on the images.

        Args:
          images: as for `score`.
          method: "gradient", "smoothgrad" or "score_map"; the default is `explanation`.
          maps: `Scores.maps` of the images, which spare a forward pass for "score_map".

        Raises:
          UserError: if the method is unknown or unavailable, an image cannot be read, or a
            gradient is not finite.
        """
        batch = as_batch(images, self.image_size)
        explained = self._explain(batch, method, maps)

        def draw() -> list[Image.Image]:
            scores = as_written(self._score(batch).scores)
            triples = zip(batch, scores, explained, strict=True)
            return [Image.fromarray(self.overlay(*triple, method=method)) for triple in triples]

        return Explanation(explained, draw)

    def heat(self, maps: np.ndarray, method: str | None = None) -> np.ndarray:
        """Returns maps of `explain` scaled to [0, 1] for drawing.

        Score maps are divided by `margin`, or by their own maximum if that is higher, so that the
        core of a strong defect stands out. The other maps are in [0, 1] already.

        Args:
          maps: float [..., S, S].
          method: explanation method of the maps; the default is `explanation`.
        """
        if (method or self.explanation) == "score_map":
            highest = maps.max(axis=(-2, -1), keepdims=True)
            maps = np.clip(maps / np.maximum(highest, max(self.margin, 1e-6)), 0, 1)
        return maps

    def overlay(
        self, image: np.ndarray, score: float, heat: np.ndarray, method: str | None = None
    ) -> np.ndarray:
        """Draws a map over its image: uint8 [S, S, 3].

        Below the threshold the map is drawn faintly, because a map that is relative to its image
        has a maximum on a good part, too.

        Args:
          image: uint8 [S, S, 3].
          score: score of the image.
          heat: float [S, S], map of the image from `explain`.
          method: explanation method of the map; the default is `explanation`.
        """
        heat = self.heat(heat, method)
        alarm = self.threshold is None or self.threshold.alarms(score)
        return lay_over(image, heat, 0.8 if alarm else 0.25)


def as_batch(images: ImagesLike, image_size: int) -> np.ndarray:
    """Returns images of any kind as a batch uint8 [N, S, S, 3] with S = image_size.

    Args:
      images: one image or a sequence of images. An image is a path, a Pillow image, or an array
        [H, W], [H, W, 1] or [H, W, C] of uint8, uint16, bool, or floats in [0, 1]. An array
        [N, H, W, C] is a sequence. All are decoded and resized in the same way; uint8
        [N, S, S, 3] is returned unchanged.
      image_size: S.

    Raises:
      UserError: if there is no image, or one cannot be read.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4 and len(images):
        if images.dtype == np.uint8 and images.shape[1:] == (image_size, image_size, 3):
            return images
    elif isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)):
        images = [images] if not isinstance(images, np.ndarray) or images.size else []
    if not len(images):
        raise UserError("no image is given; give one, or a sequence of them")
    fitted = functools.partial(_pixels, image_size=image_size)
    return np.stack(list(map_in_threads(fitted, enumerate(images), None)))


def _pixels(numbered: tuple[int, ImageLike], image_size: int) -> np.ndarray:
    i, image = numbered
    name = f"number {i}"
    if isinstance(image, np.ndarray):
        return resize_image(image, name, image_size)
    if isinstance(image, Image.Image):
        try:
            with _pillow_lock:
                image.load()
        except OSError as error:
            raise UserError(f"image {name} cannot be read: {error}") from None
        return resize_image(ImageOps.exif_transpose(image), name, image_size)
    if not isinstance(image, (str, os.PathLike)):
        raise UserError(
            f"image {name} is a {type(image).__name__}; give a path, a Pillow image or an array"
        )
    try:
        content = Path(image).read_bytes()
    except OSError as error:
        raise UserError(f"image '{image}' cannot be read: {error.strerror or error}") from None
    return load_image(content, str(image), image_size)


def as_written(scores: np.ndarray) -> np.ndarray:
    """Returns float32 scores [N] as the float64 numbers that their shortest texts denote.

    Tables contain these texts. Comparing these numbers with a threshold gives the same alarms as
    comparing the texts; the float32 values can differ from the texts in the ninth digit.
    """
    return np.array([float(str(score)) for score in scores])
