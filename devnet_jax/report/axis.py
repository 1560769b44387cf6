"""The axis that scores are shown and chosen on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

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
        """Round scores with room for their labels: 0 and 1-2-5 times powers of ten, or even ones.

        The even ones are of a piece so short that too few of the others lie on it.
        """
        smallest = math.floor(math.log10(self.width)) - 1
        largest = math.floor(math.log10(max(abs(self.low), abs(self.high))))
        sizes = [
            factor * 10.0**power
            for factor in (1, 5, 2)  # the roundest first: the others stand between them
            for power in range(largest, smallest - 1, -1)
        ]
        kept = self._thinned([0.0, *(sign * size for size in sizes for sign in (1, -1))])
        if len(kept) < 3:
            kept = self._thinned(list(map(float, MaxNLocator(4).tick_values(self.low, self.high))))
        return kept

    def _thinned(self, scores: Sequence[float]) -> list[float]:
        """Those on the axis whose labels do not touch that of an earlier one."""
        length = float(self.position(self.high) - self.position(self.low))
        kept: list[float] = []
        for score in scores:
            n = len(tick_label(score)) + 2  # characters, each about a fiftieth of the axis
            if self.low <= score <= self.high and all(
                abs(float(self.position(score) - self.position(other)))
                >= length / 50 * (n + len(tick_label(other))) / 2
                for other in kept
            ):
                kept.append(score)
        return kept


def tick_label(score: float) -> str:
    """A score in all its digits but those that rounding errors make."""
    return f"{score:.12g}"


def score_axis(groups: Sequence[Group], thresholds: Sequence[float]) -> ScoreAxis:
    """An axis with all scores and thresholds on it, and a little beyond."""
    scores = np.concatenate([one.scores for one in groups])
    ends = [float(scores.min()), float(scores.max()), *thresholds]
    largest = max(map(abs, ends)) or 1.0
    normal = [one.scores for one in groups if one.is_anomaly is False]
    if normal:
        width = float(np.median(np.abs(np.concatenate(normal))))
    else:  # any of them may be anomalous, most likely the large ones
        width = float(np.quantile(np.abs(scores), 0.25))
    axis = ScoreAxis(min(ends), max(ends), max(width, largest / 10_000))
    left, right = axis.position(axis.low), axis.position(axis.high)
    margin = 0.02 * (right - left) or 0.5
    return ScoreAxis(
        float(axis.score(left - margin)), float(axis.score(right + margin)), axis.width
    )
