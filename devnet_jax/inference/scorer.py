"""What scores and explains images, whoever computes it: images in, scores, alarms and maps out."""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from devnet_jax.data.decode import fit_image, load_image, map_in_threads
from devnet_jax.errors import UserError
from devnet_jax.inference.overlay import lay_over
from devnet_jax.inference.thresholds import Loss, Threshold, p_values

AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray
Images = AnyImage | Sequence[AnyImage]

_one_loads = threading.Lock()  # one Pillow image may be given twice, and reads its file when used


class Scores(NamedTuple):
    """What `score` finds of N images.

    Attributes:
      scores: float32 [N], of which the deviation loss brings those of normal images to the prior's
        mean: with the standard prior they read as standard deviations from normal.
      maps: float32 [N, h, w], the signed scores of the positions of the finest level.
      p_values: float64 [N], upper-tail ones under the prior; `None` if the loss knows none.
      is_anomaly: bool [N], whether the threshold in force is reached; `None` if there is none.
    """

    scores: np.ndarray
    maps: np.ndarray
    p_values: np.ndarray | None = None
    is_anomaly: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Where the anomalies of N images are.

    Attributes:
      maps: float32 [N, S, S]: by "gradient" and "smoothgrad" in [0, 1], each relative to its own
        image; by "score_map" in units of the score.
    """

    maps: np.ndarray
    _draw: Callable[[], list[Image.Image]]

    @functools.cached_property
    def overlays(self) -> list[Image.Image]:
        """The images with their maps laid over them, S×S."""
        return self._draw()

    @property
    def overlay(self) -> Image.Image:
        """The overlay of the one image; raises `ValueError` if there are several."""
        (overlay,) = self.overlays
        return overlay


class ImageScorer(abc.ABC):
    """A trained detector in use: a `Detector` of a workdir or an `ExportedDetector` of a file.

    `image_size` is S, the height and width in pixels that images are resized to; `thresholds` are
    those that can be told, the one in force first; `explanation` names how it explains.
    """

    @property
    @abc.abstractmethod
    def image_size(self) -> int: ...

    @property
    @abc.abstractmethod
    def thresholds(self) -> list[Threshold]: ...

    @property
    @abc.abstractmethod
    def loss(self) -> Loss: ...

    @property
    @abc.abstractmethod
    def explanation(self) -> str: ...

    @abc.abstractmethod
    def _score(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and maps, as of `Scores`, of uint8 [N, S, S, 3]."""

    @abc.abstractmethod
    def _explain(self, images: np.ndarray, method: str | None) -> np.ndarray:
        """Maps, as of `Explanation`, of uint8 [N, S, S, 3]."""

    @property
    def threshold(self) -> Threshold | None:
        """The threshold in force; `None` if the loss knows no prior and nothing was calibrated."""
        return next(iter(self.thresholds), None)

    def p_values(self, scores: np.ndarray) -> np.ndarray | None:
        """Upper-tail p-values float64 [N] under the prior; `None` if the loss knows none."""
        return p_values(self.loss, scores)

    def score(self, images: Images) -> Scores:
        """Scores images.

        Args:
          images: what `as_batch` takes: files, Pillow images, arrays.

        Raises:
          UserError: an image cannot be read, or a score is not finite.
        """
        scores, maps = self._score(as_batch(images, self.image_size))
        written = as_written(scores)
        threshold = self.threshold
        return Scores(
            scores,
            maps,
            self.p_values(written),
            None if threshold is None else threshold.alarms(written),
        )

    def decision_function(self, images: Images) -> np.ndarray:
        """How far below the threshold in force images score, float64 [N]: what scikit-learn's
        outlier detectors mean by it, negative for anomalies.

        Raises:
          UserError: as `score`; or no threshold is in force.
        """
        if self.threshold is None:
            raise UserError(
                f"no threshold is in force: the loss {self.loss.name!r} knows no prior; train with "
                "config.dataset.calibration, which holds normal images out to calibrate one"
            )
        return self.threshold.value - as_written(self.score(images).scores)

    def predict(self, images: Images) -> np.ndarray:
        """1 for normal images and -1 for anomalies, int64 [N], as scikit-learn has it.

        An image that just reaches the threshold is an anomaly, as everywhere here.

        Raises:
          UserError: as `decision_function`.
        """
        return np.where(self.decision_function(images) > 0, 1, -1)

    def explain(self, images: Images, method: str | None = None) -> Explanation:
        """Maps of where an anomaly is, and overlays to look at.

        Args:
          images: as for `score`.
          method: "gradient", "smoothgrad" or "score_map"; by default that of the settings.

        Raises:
          UserError: no such method here, an image cannot be read, or a gradient is not finite.
        """
        batch = as_batch(images, self.image_size)
        maps = self._explain(batch, method)

        def draw() -> list[Image.Image]:
            scores = as_written(self._score(batch)[0])
            found = zip(batch, scores, maps, strict=True)
            return [Image.fromarray(self.overlay(*one, method=method)) for one in found]

        return Explanation(maps, draw)

    def heat(self, maps: np.ndarray, method: str | None = None) -> np.ndarray:
        """Maps of `explain` as they are drawn, in [0, 1], of the same shape.

        A score map is in units of the score: a position at the margin is as hot as can be. The
        others are in [0, 1] as they are.
        """
        if (method or self.explanation) == "score_map":
            maps = np.clip(maps / max(self.loss.margin, 1e-6), 0, 1)
        return maps

    def overlay(
        self, image: np.ndarray, score: float, heat: np.ndarray, method: str | None = None
    ) -> np.ndarray:
        """An image with its map laid over it: uint8 [S, S, 3].

        That of an image below the threshold is faint: a map that is relative to its image has a
        hottest place on a good part, too.

        Args:
          image: uint8 [S, S, 3].
          score: its score.
          heat: float [S, S], its map of `explain`.
          method: how it was explained; by default that of the settings.
        """
        heat = self.heat(heat, method)
        alarm = self.threshold is None or self.threshold.alarms(score)
        return lay_over(image, heat, 0.8 if alarm else 0.25)


def as_batch(images: Images, image_size: int) -> np.ndarray:
    """Images of any kind as they are scored: uint8 [N, S, S, 3], S = image_size.

    Args:
      images: one image or a sequence of them: the path of a file, a Pillow image, or an array
        [H, W], [H, W, 1] or [H, W, C] (uint8, uint16, bool, or floats in [0, 1]); or an array of
        them [N, H, W, C]. All are decoded and resized alike; uint8 [N, S, S, 3] stays as it is.
      image_size: S.

    Raises:
      UserError: there is none, or one cannot be read.
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


def _pixels(numbered: tuple[int, AnyImage], image_size: int) -> np.ndarray:
    i, image = numbered
    name = f"number {i}"
    if isinstance(image, np.ndarray):
        return fit_image(image, name, image_size)
    if isinstance(image, Image.Image):
        try:
            with _one_loads:
                image.load()
        except OSError as error:
            raise UserError(f"image {name} cannot be read: {error}") from None
        return fit_image(ImageOps.exif_transpose(image), name, image_size)
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
    """float32 scores [N] as float64: the numbers that their shortest texts are.

    Tables hold those texts. Compared with a threshold, they decide as these numbers do; the float32
    itself, a billionth aside, might not.
    """
    return np.array([float(str(score)) for score in scores])
