"""Drift: the scores of good pictures are no longer distributed as those of calibration."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from devnet_jax.inference.thresholds import Threshold

MIN_PICTURES = 20  # in each of both samples
# A shift is said if it is not chance, and large enough to matter: among thousands of pictures,
# differences of no importance are significant, too.
_SIGNIFICANCE = 0.001
_MIN_DISTANCE = 0.2  # Kolmogorov-Smirnov
_MIN_SHIFT = 0.5  # of the median, in standard deviations of the scores of calibration
_MAX_EXACT = 10**6  # product of both numbers up to which the p-value is exact; it takes that long
MAX_REFERENCE = 512


class Shift(NamedTuple):
    """The difference between the scores of calibration and later ones.

    Attributes:
      n_before: number of scores of calibration.
      n_now: number of later scores.
      median_before: median of the scores of calibration.
      median_now: median of the later ones.
      distance: Kolmogorov–Smirnov distance, in [0, 1].
      p_value: probability of such a distance or a larger one if both are of one distribution.
    """

    n_before: int
    n_now: int
    median_before: float
    median_now: float
    distance: float
    p_value: float

    def __str__(self) -> str:
        """Returns the warning of a drift, as one sentence without a full stop."""
        return (
            "the scores of pictures that pass have moved: median "
            f"{self.median_before:.3g} at calibration ({self.n_before} pictures), "
            f"{self.median_now:.3g} now ({self.n_now}): look at the pictures; if the parts are "
            "good, --mode=recalibrate"
        )


def compare(before: np.ndarray, now: np.ndarray) -> Shift:
    """Compares two samples of scores by the two-sample Kolmogorov–Smirnov test.

    Args:
      before: float [n], scores of calibration, n ≥ 1.
      now: float [m], later scores, m ≥ 1.
    """
    from scipy import stats  # takes long to import, and most uses of a detector do without

    before, now = np.asarray(before, np.float64), np.asarray(now, np.float64)
    method = "exact" if len(before) * len(now) <= _MAX_EXACT else "asymp"
    test = stats.ks_2samp(before, now, method=method)
    medians = float(np.median(before)), float(np.median(now))
    return Shift(len(before), len(now), *medians, float(test.statistic), float(test.pvalue))


def find_drift(reference: np.ndarray, passed: np.ndarray, threshold: Threshold) -> Shift | None:
    """Returns the shift of the scores that raise no alarm if they have drifted, else `None`.

    Both samples end at the threshold, so that defects do not count. It takes `MIN_PICTURES` of
    each, p below 0.001, and a distance of 0.2 or a median moved by half a standard deviation. Where
    nothing has changed, at most one prediction in 400 has the warning (benchmarks/drift.py).

    Args:
      reference: float [n], scores of calibration, or quantiles of them (`reference_scores`).
      passed: float [m], scores of pictures that raise no alarm and are not odd.
      threshold: threshold in force.
    """
    below = np.asarray(reference, np.float64)
    below = below[~threshold.alarms(below)]
    if min(len(below), len(passed)) < MIN_PICTURES:
        return None
    shift = compare(below, passed)
    moved = abs(shift.median_now - shift.median_before)
    large = shift.distance >= _MIN_DISTANCE or moved >= _MIN_SHIFT * below.std()
    return shift if shift.p_value < _SIGNIFICANCE and large else None


def reference_scores(scores: np.ndarray) -> np.ndarray:
    """Returns the scores of calibration, or `MAX_REFERENCE` evenly spaced of them, sorted."""
    ordered = np.sort(scores)
    n = min(len(ordered), MAX_REFERENCE)
    return ordered[((np.arange(n) + 0.5) * len(ordered) / max(n, 1)).astype(int)]
