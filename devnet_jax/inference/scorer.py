"""`ImageScorer`, the interface that `Detector` and `ExportedDetector` share."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

from devnet_jax.data.decode import Batch
from devnet_jax.data.description import describe_batch
from devnet_jax.data.ordinary import Ordinary
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.drift import Shift, find_drift, reference_scores
from devnet_jax.inference.images import Errors, ImagesLike, as_batch, read_images
from devnet_jax.inference.overlay import lay_over
from devnet_jax.inference.scores import RawScores, Scores, as_written
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.inference.verdicts import Verdicts, judge
from devnet_jax.prior import Prior


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Result of `ImageScorer.explain` for N images.

    Attributes:
      maps: float32 [N, h, w], or N arrays [h, w] if the images differ in shape. They cover the
        images: maps of part of an image are 0 elsewhere. Maps by "gradient" and "smoothgrad" are in
        [0, 1], relative to their own image; maps by "score_map" are in units of the score.
    """

    maps: np.ndarray | list[np.ndarray]
    _draw: Callable[[], list[Image.Image]]

    @functools.cached_property
    def overlays(self) -> list[Image.Image]:
        """The images with their maps drawn over them, of the size of the maps."""
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
    def name(self) -> str:
        """Name of the detector, for people, on one line."""

    @property
    @abc.abstractmethod
    def date(self) -> str | None:
        """Day of its training, as 2026-11-30; `None` if it was not recorded."""

    @property
    @abc.abstractmethod
    def preprocessing(self) -> Preprocessing:
        """Settings of the way from an image to the network's input, and back."""

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Height and width in pixels of the network's input; one number if they are equal."""
        height, width = self.preprocessing.size
        return height if height == width else (height, width)

    @property
    @abc.abstractmethod
    def original_maps(self) -> bool:
        """True if maps have the images' own size, False for that of the network's input."""

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

    @property
    @abc.abstractmethod
    def ordinary(self) -> Ordinary | None:
        """Summary of the training images; `None` for runs and files of earlier versions."""

    @property
    @abc.abstractmethod
    def good_scores(self) -> np.ndarray:
        """Scores of the normal images that calibrate, as written, float64 [n], ascending."""

    @abc.abstractmethod
    def with_threshold(self, value: float) -> Self:
        """Returns the detector with a given threshold in force, whatever else was.

        Raises:
          UserError: if the value is not finite.
        """

    @abc.abstractmethod
    def _score(self, images: np.ndarray) -> RawScores:
        """Scores images uint8 [N, *preprocessing.shape]."""

    @abc.abstractmethod
    def _explain(
        self, images: np.ndarray, method: str | None, maps: np.ndarray | None
    ) -> np.ndarray:
        """Returns maps of the network's input, float32 [N, H, W] or [N, T, H, W]; see `explain`.

        Args:
          images: uint8 [N, *preprocessing.shape].
          method: explanation method; the default is `explanation`.
          maps: `RawScores.maps`, if they are known.
        """

    @property
    def threshold(self) -> Threshold | None:
        """The threshold in force; `None` without a prior and without calibration."""
        return next(iter(self.thresholds), None)

    @property
    def tells_prior(self) -> bool:
        """True if tables also hold the p-values under the prior."""
        return False

    def judge(self, scores: np.ndarray) -> Verdicts:
        """Returns alarms, p-values and severity.

        Args:
          scores: float [N]; compared with the thresholds as they are written (`as_written`).
        """
        return judge(as_written(scores), self.threshold, self.good_scores, self.prior)

    def verdict_columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """Returns the columns severity, p_value and is_anomaly of tables; "" where there is none.

        With `tells_prior`, prior_p_value is a further column. All digits are written: severity
        ranks images, and no p-value rounds to the other side.

        Args:
          scores: float [N].
        """
        verdicts = self.judge(scores)
        alarms = verdicts.is_anomaly
        columns = {
            "severity": verdicts.severity,
            "p_value": verdicts.p_values,
            "is_anomaly": None if alarms is None else alarms.astype(int),
        }
        if self.tells_prior and self.prior is not None:
            columns["prior_p_value"] = self.prior.p_values(as_written(scores))
        return {
            name: [""] * len(scores) if values is None else values.tolist()
            for name, values in columns.items()
        }

    def prepare(self, images: ImagesLike) -> Batch:
        """Decodes images and fits them to the network's input, for several calls of the methods.

        Args:
          images: one image or a sequence of images, as `as_batch` accepts them.

        Raises:
          UserError: if an image cannot be read.
        """
        return as_batch(images, self.preprocessing)

    def score(self, images: ImagesLike, *, errors: Errors = "raise") -> Scores:
        """Scores images.

        Args:
          images: images as `as_batch` accepts them, or a `Batch` of `prepare`.
          errors: "raise" an error at an image that cannot be read, or "coerce" its score to NaN.

        Raises:
          UserError: if an image cannot be read or a score is not finite.
        """
        batch, why = read_images(images, self.preprocessing, errors)
        found = self.interpret(self._score(batch.pixels))._replace(odd=self.odd(batch))
        return found.with_errors(why)

    def odd(self, images: ImagesLike) -> list[str]:
        """Returns `Scores.odd`; all "" for runs and files of earlier versions.

        Args:
          images: as for `score`.

        Raises:
          UserError: if an image cannot be read.
        """
        batch = self.prepare(images)
        ordinary = self.ordinary
        if ordinary is None:
            return [""] * len(batch)
        sizes = batch.sizes if batch.sizes_known else [None] * len(batch)
        descriptions = describe_batch(batch.pixels, self.preprocessing.columns)
        return [ordinary.reason(*pair) for pair in zip(descriptions, sizes, strict=True)]

    def find_drift(self, passed: np.ndarray) -> Shift | None:
        """Returns the shift of scores since calibration if they have drifted, else `None`.

        Args:
          passed: float [m], scores of new images that raise no alarm and are not odd.
        """
        if self.threshold is None:
            return None
        return find_drift(reference_scores(self.good_scores), passed, self.threshold)

    def interpret(self, raw: RawScores) -> Scores:
        """Returns the output of the network with its verdicts and the reasons of alarms."""
        verdicts = self.judge(raw.scores)
        alarms = verdicts.is_anomaly
        kinds = self._named_kinds(raw)
        reasons = [""] * len(raw.scores)
        if raw.kinds is not None:
            shown = np.ones(len(raw.scores), bool) if alarms is None else alarms
            reasons = _reasons(kinds, raw.likeness, shown)
        return Scores(
            raw.scores,
            raw.maps,
            verdicts.p_values,
            alarms,
            reasons,
            kinds,
            severity=verdicts.severity,
        )

    def _named_kinds(self, raw: RawScores) -> list[str | None]:
        """Returns `Scores.kinds`."""
        names = self.kinds
        if raw.kinds is None or not names:
            return []
        return [names[kind] if 0 <= kind < len(names) else None for kind in raw.kinds.tolist()]

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
        batch = self.prepare(images)
        explained = self.input_maps(batch, method, maps=maps)
        laid = [self.lay(values, size) for values, size in zip(explained, batch.sizes, strict=True)]
        same = len({values.shape for values in laid}) == 1

        def draw() -> list[Image.Image]:
            scores = as_written(self._score(batch.pixels).scores)
            pictures = [self.picture(batch, i) for i in range(len(laid))]
            triples = zip(pictures, scores, laid, strict=True)
            return [Image.fromarray(self.overlay(*triple, method=method)) for triple in triples]

        return Explanation(np.stack(laid) if same else laid, draw)

    def input_maps(
        self, images: Batch, method: str | None = None, *, maps: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns maps of the network's input, float32 [N, H, W] or, with tiles, [N, T, H, W].

        For many large images: `lay` makes one of them as large as its image when it is needed.
        Arguments and errors are those of `explain`.
        """
        return self._explain(images.pixels, method, maps)

    def lay(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Lays a map of `input_maps` on its image: float32 [h, w], as in `Explanation`.

        Args:
          maps: float32 [H, W] or [T, H, W].
          size: height and width of the image.
        """
        return self.preprocessing.unfit(maps, size, self.original_maps)

    def seen(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Returns rows and columns of a map of `lay` that the network sees."""
        return self.preprocessing.frame_box(size, self.original_maps).slices

    def picture(self, batch: Batch, i: int) -> np.ndarray:
        """Returns image i of a batch as its map covers it: uint8 [h, w, 3].

        That is the network's input if it shows the whole image, else the image itself, reduced.
        """
        size, settings = batch.sizes[i], self.preprocessing
        height, width = settings.frame_size(size, self.original_maps)
        if settings.shows_all and not self.original_maps:
            if settings.shape == (height, width, 3):
                return batch.pixels[i]
            tiles = batch.pixels[i].reshape(-1, *settings.shape[-3:])
            channels = [settings.unfit(tiles[..., c].astype(np.float32), size) for c in range(3)]
            return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
        original = batch.original(i).convert("RGB")
        return np.asarray(original.resize((width, height), Image.Resampling.BILINEAR))

    def heat(self, maps: np.ndarray, method: str | None = None) -> np.ndarray:
        """Returns maps of `explain` scaled to [0, 1] for drawing.

        Score maps are divided by `margin`, or by their own maximum if that is higher, so that the
        core of a strong defect stands out. The other maps are in [0, 1] already.

        Args:
          maps: float [..., h, w].
          method: explanation method of the maps; the default is `explanation`.
        """
        if (method or self.explanation) == "score_map":
            highest = maps.max(axis=(-2, -1), keepdims=True)
            maps = np.clip(maps / np.maximum(highest, max(self.margin, 1e-6)), 0, 1)
        return maps

    def overlay(
        self, image: np.ndarray, score: float, heat: np.ndarray, method: str | None = None
    ) -> np.ndarray:
        """Draws a map over its image: uint8 [h, w, 3].

        Below the threshold the map is drawn faintly, because a map that is relative to its image
        has a maximum on a good part, too.

        Args:
          image: uint8 [h, w, 3].
          score: score of the image.
          heat: float [h, w], map of the image from `explain`.
          method: explanation method of the map; the default is `explanation`.
        """
        heat = self.heat(heat, method)
        alarm = self.threshold is None or self.threshold.alarms(score)
        return lay_over(image, heat, 0.8 if alarm else 0.25)


def _reasons(
    kinds: Sequence[str | None], likeness: np.ndarray | None, alarms: np.ndarray
) -> list[str]:
    """Returns `Scores.reasons` of DevCore; arguments are `Scores.kinds` and alarms bool [N]."""
    if not kinds:
        texts = ["unlike the good parts"] * len(alarms)
    else:
        measures = [""] * len(kinds)
        if likeness is not None:
            measures = [f" ({share:.0%})" for share in likeness.tolist()]
        texts = [
            "like no labelled kind" if kind is None else f"like the labelled {kind}{measure}"
            for kind, measure in zip(kinds, measures, strict=True)
        ]
    return [text if alarm else "" for text, alarm in zip(texts, alarms.tolist(), strict=True)]
