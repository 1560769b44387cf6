"""The axis that scores are shown and chosen on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devnet_jax.report.outcomes import Group


@dataclass(frozen=True)
class ScoreAxis:
    """An axis from a lowest to a highest score: about linear near 0, logarithmic far from it.

    Anomalies may score a thousand times what normal images do; here both have room.

    Attributes:
      low: the score at the left end.
      high: the score at the right end.
      width: up to about this distance from 0 the axis is linear.
    """

    low: float
    high: float
    width: float

    def position(self, scores: np.ndarray | float) -> np.ndarray:
        """Places on the axis: arsinh(score / width)."""
        return np.arcsinh(np.asarray(scores) / self.width)

    def score(self, positions: np.ndarray | float) -> np.ndarray:
        """The scores at those places."""
        return self.width * np.sinh(positions)

    def ticks(self) -> list[float]:
        """Round scores, not too near to one another: 0, and powers of ten on either side."""
        first = math.ceil(math.log10(2 * self.width))
        last = math.floor(math.log10(max(-self.low, self.high, 10.0**first)))
        sizes = [10.0**k for k in range(first, last + 1)]
        if len(sizes) < 3:
            sizes = [factor * 10.0**k for k in range(first, last + 1) for factor in (1, 2, 5)]
        return [x for x in (0.0, *sizes, *(-size for size in sizes)) if self.low <= x <= self.high]


def score_axis(groups: Sequence[Group], thresholds: Sequence[float]) -> ScoreAxis:
    """An axis with all scores and thresholds on it, and a little beyond."""
    scores = np.concatenate([one.scores for one in groups])
    ends = [float(scores.min()), float(scores.max()), *thresholds]
    largest = max(map(abs, ends)) or 1.0
    ordinary = np.concatenate([one.scores for one in groups if not one.is_anomaly] or [scores])
    axis = ScoreAxis(
        min(ends), max(ends), max(float(np.median(np.abs(ordinary))), largest / 10_000)
    )
    left, right = axis.position(axis.low), axis.position(axis.high)
    margin = 0.02 * (right - left) or 0.5
    return ScoreAxis(
        float(axis.score(left - margin)), float(axis.score(right + margin)), axis.width
    )
