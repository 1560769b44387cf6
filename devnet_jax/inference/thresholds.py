"""Where a score becomes an alarm, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Protocol

import numpy as np
from scipy import stats


class Loss(Protocol):
    """What is known of the loss that a network was trained with: `LossConfig` in the settings."""

    @property
    def name(self) -> str: ...
    @property
    def prior_mean(self) -> float: ...
    @property
    def prior_std(self) -> float: ...
    @property
    def margin(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A score from which on an image counts as anomalous, and what it promises.

    Attributes:
      kind: where it comes from.
      value: the score; an image at or above it raises an alarm.
      false_alarm_rate: the promise: the share of normal images that raise an alarm.
      n_calibration: held-out normal images behind a calibrated one.
      likely_rate: of a calibrated one, what the false-alarm rate lies below in nine of ten draws
        of the held-out images: the promise is kept on average over them.
    """

    kind: Literal["prior", "calibrated"]
    value: float
    false_alarm_rate: float
    n_calibration: int | None = None
    likely_rate: float | None = None

    def alarms(self, scores: np.ndarray | float) -> np.ndarray:
        """Which scores raise an alarm: bool, of the same shape."""
        # As float64: beside float32 scores, NumPy would round the threshold.
        return np.asarray(scores, np.float64) >= self.value


def prior_threshold(loss: Loss, confidence: float) -> Threshold | None:
    """The score that a draw from the prior stays below with the given probability.

    The paper reads the prior as the distribution of normal scores (section 3.3). Training pulls
    them to its mean, and nothing makes them spread as it does: few normal images are above the
    threshold where they are learnt well, many where they are not. The other losses know no prior:
    `None`.
    """
    if loss.name != "deviation":
        return None
    value = float(stats.norm.ppf(confidence, loss.prior_mean, loss.prior_std))
    return Threshold("prior", value, round(1 - confidence, 12))  # 0.05, not 0.050000000000000044


def calibrated_threshold(scores: np.ndarray, false_alarm_rate: float) -> Threshold | None:
    """The threshold of split conformal prediction (Vovk et al. 2005; arXiv 2107.07511).

    Over draws of the held-out images and of a further normal image from one distribution, the
    latter raises an alarm with a probability of at most `false_alarm_rate`, whatever the
    distribution, the network and the number of images. One draw of the held-out images fixes a
    rate, itself a draw from Beta(k, n+1-k) where no scores are equal, that all later images have.

    Args:
      scores: float32 [n] of held-out normal images, in any order.
      false_alarm_rate: the rate promised, in (0, 1).

    Returns:
      A number just above the k-th largest score, k = ⌊false_alarm_rate·(n+1)⌋, which no more than
      k - 1 of them reach; `None` with fewer images than `n_calibration_needed`.
    """
    n = len(scores)
    k = math.floor(false_alarm_rate * (n + 1) * (1 + 1e-9))
    if k < 1:
        return None
    value = _just_above(np.sort(np.asarray(scores, np.float32))[-k])
    likely_rate = float(stats.beta.ppf(0.9, k, n + 1 - k))
    return Threshold("calibrated", value, false_alarm_rate, n, likely_rate)


def _just_above(score: np.float32) -> float:
    """A short number that no float32 but those above the score reach.

    Whether compared as float32 or as float64, as it rounds to the next float32. Of that one the
    written text may lie below: as written, its image would raise no alarm.
    """
    following = float(np.nextafter(score, np.float32(np.inf)))
    middle = (float(score) + following) / 2
    numbers = (float(f"{(middle + following) / 2:.{digits}g}") for digits in range(1, 18))
    return next((number for number in numbers if middle < number <= following), following)


def n_calibration_needed(false_alarm_rate: float) -> int:
    """The least number of held-out images with which a false-alarm rate can be promised."""
    return math.ceil(1 / (false_alarm_rate * (1 + 1e-9))) - 1


def shortage(n_calibration: int, false_alarm_rate: float) -> str | None:
    """Says that the images held out are too few to calibrate with; `None` if they are not."""
    needed = n_calibration_needed(false_alarm_rate)
    if n_calibration >= needed:
        return None
    return (
        f"the threshold is not calibrated: a false-alarm rate of {false_alarm_rate:g} needs "
        f"{needed} normal images held out, and there are {n_calibration} (copies of training "
        "images do not count); allow more false alarms (config.evaluation.false_alarm_rate), or "
        "train anew, with more normal images or more of them held out (config.dataset.calibration)"
    )


def p_values(loss: Loss, scores: np.ndarray) -> np.ndarray | None:
    """Upper-tail p-values float64 [N]: how likely a draw from the prior scores as high or higher.

    `None` for a loss that knows no prior.
    """
    if loss.name != "deviation":
        return None
    scores = np.asarray(scores, np.float64)
    return np.asarray(stats.norm.sf(scores, loss.prior_mean, loss.prior_std))
