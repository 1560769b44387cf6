"""Thresholds on anomaly scores, the false-alarm rates that they promise, and p-values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
from scipy import special  # scipy.stats takes long to import

from devnet_jax.errors import UserError
from devnet_jax.prior import Prior

Kind = Literal["given", "calibrated", "prior"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # the first that is known is in force


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A score threshold and the false-alarm rate that it promises.

    Attributes:
      kind: origin of the threshold: a value given by the user, calibration on held-out normal
        images, or the prior.
      value: lowest score that raises an alarm.
      false_alarm_rate: promised share of normal images that raise an alarm. That of a given
        threshold is the p-value of a score that equals it; `None` if there are no p-values.
      n_calibration: number of held-out normal images; `None` without any, and for the prior's
        threshold.
      likely_rate: 90 % quantile of the false-alarm rate over draws of the held-out images; `None`
        unless calibrated. The promise holds on average over these draws.
    """

    kind: Kind
    value: float
    false_alarm_rate: float | None
    n_calibration: int | None = None
    likely_rate: float | None = None

    def alarms(self, scores: np.ndarray | float) -> np.ndarray:
        """Returns True for each score that raises an alarm: bool, of the same shape."""
        # In float64: compared with float32 scores, NumPy would round the threshold.
        return np.asarray(scores, np.float64) >= self.value


def prior_threshold(prior: Prior | None, confidence: float) -> Threshold | None:
    """Returns the quantile of the prior as a threshold, or `None` without a prior.

    The paper takes the prior for the distribution of normal scores (section 3.3). Training pulls
    normal scores to the prior's mean, but nothing gives them its spread. The actual false-alarm
    rate is therefore lower where normal images are learnt well, and higher where they are not.

    Args:
      prior: prior of normal scores.
      confidence: probability that a draw from the prior stays below the threshold.
    """
    if prior is None:
        return None
    rate = round(1 - confidence, 12)  # 0.05, not 0.050000000000000044
    return Threshold("prior", prior.quantile(confidence), rate)


def calibrated_threshold(scores: np.ndarray, false_alarm_rate: float) -> Threshold | None:
    """Returns the threshold of split conformal prediction (Vovk et al. 2005; arXiv 2107.07511).

    Let the held-out images and one further normal image be drawn from the same distribution. The
    further image then raises an alarm with probability at most `false_alarm_rate`, for any
    distribution, network and number of images. Given the held-out images, the rate is fixed; over
    their draws it follows Beta(k, n+1-k) if no two scores are equal.

    Args:
      scores: float32 [n], scores of held-out normal images, in any order.
      false_alarm_rate: promised rate, in (0, 1).

    Returns:
      A threshold just above the k-th largest score, k = ⌊false_alarm_rate·(n+1)⌋, so that at most
      k - 1 of the scores raise an alarm. With fewer scores than `n_calibration_needed`, the one
      above all scores, which promises the nearest rate, 1/(n+1). `None` without scores.
    """
    n = len(scores)
    if not n:
        return None
    k = math.floor(false_alarm_rate * (n + 1) * (1 + 1e-9))
    if k < 1:
        k, false_alarm_rate = 1, 1 / (n + 1)
    value = _just_above(np.sort(np.asarray(scores, np.float32))[-k])
    likely_rate = float(special.betaincinv(k, n + 1 - k, 0.9))
    return Threshold("calibrated", value, false_alarm_rate, n, likely_rate)


def given_threshold(value: float, good_scores: np.ndarray, prior: Prior | None) -> Threshold:
    """Returns the threshold of a value that the user has chosen.

    Args:
      value: lowest score that raises an alarm; float32 is taken as written.
      good_scores: float [n], scores of held-out normal images; may be empty.
      prior: prior of normal scores, if there is one.

    Raises:
      UserError: if the value is not finite.
    """
    value = float(str(value))
    if not math.isfinite(value):
        raise UserError(f"threshold = {value}: give a score, which is a finite number")
    found = p_values(np.array([value]), good_scores, prior)
    rate = None if found is None else float(found[0])
    return Threshold("given", value, rate, len(good_scores) or None)


def p_values(scores: np.ndarray, good_scores: np.ndarray, prior: Prior | None) -> np.ndarray | None:
    """Returns p-values, float64 [N]: from held-out normal images, or else under the prior.

    From n held-out images it is the conformal p-value (Vovk et al. 2005): the share of these images
    and the new one that score at least as high as the new one, at least 1/(n+1). A normal image has
    p ≤ α with probability at most α. p ≤ α holds exactly at and above
    `calibrated_threshold(good_scores, α)`.

    Args:
      scores: float64 [N], as written (`devnet_jax.inference.scores.as_written`).
      good_scores: float64 [n], scores of held-out normal images, as written; may be empty.
      prior: prior of normal scores; `None` if the loss has none.

    Returns:
      The p-values, or `None` with neither held-out images nor a prior.
    """
    n = len(good_scores)
    if n:
        n_as_high = n - np.searchsorted(np.sort(good_scores), scores, side="left")
        return np.asarray((1 + n_as_high) / (n + 1), np.float64)
    return None if prior is None else prior.p_values(scores)


def _just_above(score: np.float32) -> float:
    """Returns a number with few digits that only float32 values above the score reach.

    It rounds to the next float32, so comparisons in float32 and float64 agree. It is not that
    float32 itself, whose shortest text may be a smaller number.
    """
    following = float(np.nextafter(score, np.float32(np.inf)))
    middle = (float(score) + following) / 2
    numbers = (float(f"{(middle + following) / 2:.{digits}g}") for digits in range(1, 18))
    return next((number for number in numbers if middle < number <= following), following)


def n_calibration_needed(false_alarm_rate: float) -> int:
    """Returns the smallest number of held-out images that a false-alarm rate needs."""
    return math.ceil(1 / (false_alarm_rate * (1 + 1e-9))) - 1


def shortage(n_calibration: int, false_alarm_rate: float) -> str | None:
    """Returns a warning if there are too few held-out images for the wanted rate, else `None`."""
    needed = n_calibration_needed(false_alarm_rate)
    if n_calibration >= needed:
        return None
    wanted = (
        f"a false-alarm rate of {100 * false_alarm_rate:.3g}% needs {needed} normal images held "
        f"out, not {n_calibration} (copies of training images are not counted)"
    )
    advice = "train anew with more normal images, or more of them held out"
    advice += " (config.dataset.calibration)"
    if not n_calibration:
        return f"the threshold is not calibrated: {wanted}; {advice}"
    nearest = 100 / (n_calibration + 1)
    allow = "1 image allows" if n_calibration == 1 else f"{n_calibration} images allow"
    return (
        f"the calibrated threshold promises at most {nearest:.3g}% false alarms, the nearest rate "
        f"that {allow}: {wanted}; for less, {advice}"
    )


def results_at(results: dict[str, Any], thresholds: Iterable[Threshold]) -> dict[str, Any]:
    """Returns the results of an evaluation without those at former thresholds.

    Args:
      results: content of metrics.json.
      thresholds: present thresholds, the one in force first.
    """
    present = {threshold.kind: threshold.value for threshold in thresholds}
    measured = {
        kind: results[f"{kind}_threshold"] for kind in KINDS if f"{kind}_threshold" in results
    }
    former = [f"{kind}_" for kind, value in measured.items() if value != present.get(kind)]
    if "calibrated_" in former:
        former += ["n_calibration"]
    if next(iter(measured.items()), None) != next(iter(present.items()), None):
        former += ["kinds", "kind_accuracy", "n_kind_accuracy"]  # at the threshold in force
    return {name: value for name, value in results.items() if not name.startswith(tuple(former))}
