"""The score axis of the histogram and the slider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from devnet_jax.report.outcomes import Group


@dataclass(frozen=True)
class ScoreAxis:
    """An axis of scores: about linear near 0 and logarithmic far from it.

    Scores of anomalies can be a thousand times those of normal images; this axis shows both.

    Attributes:
      low: score at the left end.
      high: score at the right end.
      linear_width: distance from 0 up to which the axis is about linear.
    """

    low: float
    high: float
    linear_width: float

    def position(self, scores: np.ndarray | float) -> np.ndarray:
        """Returns the positions of scores on the axis: arsinh(score / linear_width)."""
        return np.arcsinh(np.asarray(scores) / self.linear_width)

    def score(self, positions: np.ndarray | float) -> np.ndarray:
        """Returns the scores at positions on the axis."""
        return self.linear_width * np.sinh(positions)

    def ticks(self) -> list[float]:
        """Returns scores for tick marks whose labels do not overlap.

        They are 0 and 1, 2 and 5 times powers of ten. If fewer than three of them are on the axis,
        they are evenly spaced round scores instead.
        """
        smallest = math.floor(math.log10(self.linear_width)) - 1
        largest = math.floor(math.log10(max(abs(self.low), abs(self.high))))
        sizes = [
            factor * 10.0**power
            for factor in (1, 5, 2)  # powers of ten have priority
            for power in range(largest, smallest - 1, -1)
        ]
        kept = self._without_overlaps([0.0, *(sign * size for size in sizes for sign in (1, -1))])
        if len(kept) < 3:
            even = MaxNLocator(4).tick_values(self.low, self.high)
            kept = self._without_overlaps(list(map(float, even)))
        return kept

    def _without_overlaps(self, scores: Sequence[float]) -> list[float]:
        """Drops scores that are not on the axis, or whose label overlaps that of an earlier one."""
        length = float(self.position(self.high) - self.position(self.low))
        kept: list[float] = []
        for score in scores:
            n = len(tick_label(score)) + 2  # characters, each about 1/50 of the axis wide
            if self.low <= score <= self.high and all(
                abs(float(self.position(score) - self.position(other)))
                >= length / 50 * (n + len(tick_label(other))) / 2
                for other in kept
            ):
                kept.append(score)
        return kept


def tick_label(score: float) -> str:
    """Formats a score with all its digits, without rounding errors."""
    return f"{score:.12g}"


def score_axis(groups: Sequence[Group], thresholds: Sequence[float]) -> ScoreAxis:
    """Makes an axis that contains all scores and thresholds, with a margin."""
    scores = np.concatenate([group.scores for group in groups])
    ends = [float(scores.min()), float(scores.max()), *thresholds]
    largest = max(map(abs, ends)) or 1.0
    normal = [group.scores for group in groups if group.is_anomaly is False]
    if normal:
        width = float(np.median(np.abs(np.concatenate(normal))))
    else:  # without labels, large scores are probably anomalies
        width = float(np.quantile(np.abs(scores), 0.25))
    axis = ScoreAxis(min(ends), max(ends), max(width, largest / 10_000))
    left, right = axis.position(axis.low), axis.position(axis.high)
    margin = 0.02 * (right - left) or 0.5
    return ScoreAxis(
        float(axis.score(left - margin)), float(axis.score(right + margin)), axis.linear_width
    )
