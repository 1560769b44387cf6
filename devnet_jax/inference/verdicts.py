"""Verdicts: alarm, p-value and severity of each score, computed in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from devnet_jax.inference.thresholds import Threshold, p_values
from devnet_jax.prior import Prior


class Verdicts(NamedTuple):
    """Verdicts on N scores.

    Attributes:
      is_anomaly: bool [N], True at or above the threshold in force; `None` without a threshold.
      p_values: float64 [N], see `devnet_jax.inference.thresholds.p_values`; `None` with neither
        held-out images nor a prior. With a threshold that promises the rate α, an alarm has p ≤ α
        and every other image p > α.
      severity: float64 [N], see `severity`; `None` without a threshold.
    """

    is_anomaly: np.ndarray | None
    p_values: np.ndarray | None
    severity: np.ndarray | None

    def numbers(self, i: int) -> dict[str, Any]:
        """Returns the p-value and the severity of score i, by their names."""
        p, severity = self.p_values, self.severity
        return {
            "p_value": None if p is None else float(p[i]),
            "severity": None if severity is None else float(severity[i]),
        }


def judge(
    scores: np.ndarray, threshold: Threshold | None, good_scores: np.ndarray, prior: Prior | None
) -> Verdicts:
    """Judges scores.

    Args:
      scores: float64 [N], as written (`devnet_jax.inference.scores.as_written`).
      threshold: threshold in force; `None` if there is none.
      good_scores: float64 [n], scores of held-out normal images, as written; may be empty.
      prior: prior of normal scores; `None` if the loss has none.
    """
    p = p_values(scores, good_scores, prior)
    if threshold is None:
        return Verdicts(None, p, None)
    alarms = threshold.alarms(scores)
    rate = threshold.false_alarm_rate
    if p is not None and rate is not None and threshold.n_calibration != len(good_scores):
        # The prior's are rounded at its quantile, and a file of earlier versions has a calibrated
        # threshold with at most 512 quantiles of its scores: neither may contradict the verdict.
        p = np.where(alarms, np.minimum(p, rate), np.maximum(p, np.nextafter(rate, 1)))
    typical = typical_score(good_scores, prior)
    return Verdicts(alarms, p, severity(scores, threshold.value, typical))


def typical_score(good_scores: np.ndarray, prior: Prior | None) -> float:
    """Returns the median score of held-out normal images, or else the prior's mean, or 0.

    A single held-out image, at which the calibrated threshold is, tells no spread: the typical
    score is then a standard deviation of the prior below it.
    """
    if len(good_scores):
        spread = prior.std if prior is not None and len(good_scores) == 1 else 0.0
        return float(np.median(good_scores)) - spread
    return 0.0 if prior is None else prior.mean


def severity(scores: np.ndarray, threshold: float, typical: float) -> np.ndarray:
    """Returns the severity of scores in (0, 1), float64 [N]: 0.5 at the threshold, 0.25 at a
    typical good part.

    With x = (score - threshold) / w, where w is the distance from the typical score to the
    threshold, it is 0.5 + 0.5 x / (1 + |x|). So 0.75 is as far above the threshold as a typical
    good part is below it. It rises with the score, and no two float32 scores up to 100,000 become
    equal, so it ranks images as the scores do. w is at least 0.001 max(1, |threshold|).

    Args:
      scores: float64 [N], as written.
      threshold: threshold in force.
      typical: result of `typical_score`.
    """
    width = max(abs(threshold - typical), 1e-3 * max(1.0, abs(threshold)))
    x = (np.asarray(scores, np.float64) - threshold) / width
    values = 0.5 + 0.5 * x / (1 + np.abs(x))
    # Of a score next to the threshold, x may be lost in 0.5 + x.
    return np.where(x < 0, np.minimum(values, np.nextafter(0.5, 0)), values)
