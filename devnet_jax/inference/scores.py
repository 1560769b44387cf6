"""The results of scoring images: what a network returns, and what a caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class RawScores(NamedTuple):
    """Output of a network for N images.

    Attributes:
      scores: float32 [N], anomaly scores.
      maps: float32 [N, h, w], or with tiles [N, T, h, w], position scores of the finest scale.
      kinds: int32 [N], index of the labelled kind of defect that each image is like, or -1; `None`
        for the deviation network.
      likeness: float32 [N], likeness of each image to labelled defects, at most 1; `None` for the
        deviation network, and for older exported files.
    """

    scores: np.ndarray
    maps: np.ndarray
    kinds: np.ndarray | None = None
    likeness: np.ndarray | None = None


class Scores(NamedTuple):
    """Result of `ImageScorer.score` for N images.

    Attributes:
      scores: float32 [N], anomaly scores. The deviation loss pulls normal images to the prior's
        mean; they are standard deviations from normal only if normal scores spread as the prior
        does, too.
      maps: float32 [N, h, w], or with tiles [N, T, h, w], signed position scores of the finest
        scale.
      p_values: float64 [N], p-values from the held-out good images, or else under the prior
        (`devnet_jax.inference.thresholds.p_values`); `None` with neither.
      is_anomaly: bool [N], True at or above the threshold in force; `None` without a threshold.
      reasons: for each alarm "like the labelled KIND (LIKENESS%)" or "like no labelled kind", or
        without labelled kinds "unlike the good parts"; "" for the other images, and for all of the
        deviation network.
      kinds: labelled kind that each image is like, alarm or not; `None` for an image that is like
        none of them; empty without labelled kinds.
      odd: for each image that is unlike the training images as a whole a short reason, and "" for
        the others; the score of an odd image means little.
      severity: float64 [N] in (0, 1), 0.5 at the threshold in force
        (`devnet_jax.inference.verdicts.severity`); `None` without a threshold.
      errors: for each image that could not be read, the reason why, and "" for the others. Such an
        image has NaN as its score, map, p-value and severity, and is an alarm: it is not known to
        be good.
    """

    scores: np.ndarray
    maps: np.ndarray
    p_values: np.ndarray | None = None
    is_anomaly: np.ndarray | None = None
    reasons: Sequence[str] = ()
    kinds: Sequence[str | None] = ()
    odd: Sequence[str] = ()
    severity: np.ndarray | None = None
    errors: Sequence[str] = ()

    def with_errors(self, errors: Sequence[str]) -> Scores:
        """Returns the scores with `errors`, and without values of images that could not be read."""
        if not any(errors):
            return self._replace(errors=errors)
        unreadable = np.array([bool(error) for error in errors])

        def blank(values: np.ndarray | None, other: float) -> Any:
            if values is None:
                return None
            where = unreadable.reshape(-1, *[1] * (values.ndim - 1))
            return np.where(where, np.asarray(other, values.dtype), values)

        def blank_texts(values: Sequence[Any], other: str | None) -> list[Any]:
            # `strict=False`: there are no kinds without labelled ones.
            return [other if error else value for error, value in zip(errors, values, strict=False)]

        return Scores(
            scores=blank(self.scores, np.nan),
            maps=blank(self.maps, np.nan),
            p_values=blank(self.p_values, np.nan),
            is_anomaly=blank(self.is_anomaly, True),
            reasons=blank_texts(self.reasons, "cannot be read"),
            kinds=blank_texts(self.kinds, None),
            odd=blank_texts(self.odd, ""),
            severity=blank(self.severity, np.nan),
            errors=errors,
        )


def as_written(scores: np.ndarray) -> np.ndarray:
    """Returns float32 scores [N] as the float64 numbers that their shortest texts denote.

    Tables contain these texts. Comparing these numbers with a threshold gives the same alarms as
    comparing the texts; the float32 values can differ from the texts in the ninth digit.
    """
    return np.array([float(str(score)) for score in scores])
