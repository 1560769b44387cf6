"""Confidence intervals of rates, AUROCs and average precisions, and of paired differences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats


def rate_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a rate (Wilson 1927).

    Args:
      count: number of cases.
      total: number of trials, at least 1.
      confidence: probability that the interval covers the true rate.
    """
    return _wilson(count / total, total, confidence)


def average_precision_interval(
    average_precision: float, n_anomaly: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns an interval of an average precision, for the share of anomalies that was measured.

    Boyd, Eng and Page (2013, doi 10.1007/978-3-642-40994-3_29) give it the variance of a rate of
    the anomalies. Here their interval has Wilson's form: with the normal or the logit one it is a
    point at an average precision of 1, and so is the bootstrap's, which covers far less than its
    level where few anomalies are measured. This one rather covers too much.

    Args:
      average_precision: measured average precision.
      n_anomaly: number of anomalous images, at least 1.
      confidence: probability that the interval covers the true average precision, at least.
    """
    return _wilson(average_precision, n_anomaly, confidence)


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Returns the values that the share of n is at most z of their standard errors away from."""
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2 / n
    middle = (share + z2 / 2) / (1 + z2)
    reach = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    low = 0.0 if share <= 0 else max(middle - reach, 0.0)
    high = 1.0 if share >= 1 else min(middle + reach, 1.0)
    return low, high


def auroc_interval(
    auroc: float, n_normal: int, n_anomaly: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns an interval of an AUROC that is sensible for few images and for an AUROC of 1.

    It holds the values θ that the measured AUROC is at most z standard errors away from, with the
    standard error of θ by Hanley and McNeil and equal group sizes in its middle term (Newcombe
    2006, doi 10.1002/sim.2324, method 5). DeLong's interval and the bootstrap's are a point at an
    AUROC of 1, and cover far less than their level close to it. This one covers somewhat less than
    its level only if the scores of anomalies spread much wider than those of normal images.

    Args:
      auroc: measured AUROC.
      n_normal: number of normal images, at least 1.
      n_anomaly: number of anomalous images, at least 1.
      confidence: probability that the interval covers the true AUROC.
    """
    z = stats.norm.ppf((1 + confidence) / 2)
    middle = (n_normal + n_anomaly) / 2 - 1

    def excess(theta: float) -> float:
        """Squared distance of θ from the measured value, minus z² times its variance."""
        shared = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + middle * shared) / (n_normal * n_anomaly)
        return (auroc - theta) ** 2 - z**2 * variance

    # At 0 and 1 the variance vanishes, so the excess is positive unless that is the measured value.
    low = 0.0 if auroc <= 0 else optimize.brentq(excess, 0.0, min(auroc, 1 - 1e-12))
    high = 1.0 if auroc >= 1 else optimize.brentq(excess, max(auroc, 1e-12), 1.0)
    return float(low), float(high)


def excess_p_value(n_alarms: int, n_normal: int, n_calibration: int, rate: float) -> float:
    """Returns the probability of so many false alarms, or more, if a promise holds.

    With k = ⌊rate·(n+1)⌋, n the number of held-out images, the false-alarm rate of the calibrated
    threshold follows Beta(k, n+1-k) over draws of them, so the number of false alarms is
    beta-binomial, as long as test and held-out images are of one distribution.

    Args:
      n_alarms: number of normal test images that raise an alarm.
      n_normal: number of normal test images, at least 1.
      n_calibration: number of held-out images.
      rate: promised rate, at least 1/(n+1) and below 1.
    """
    k = math.floor(rate * (n_calibration + 1) * (1 + 1e-9))
    return float(stats.betabinom.sf(n_alarms - 1, n_normal, k, n_calibration + 1 - k))


class AurocDifference(NamedTuple):
    """The AUROCs of two detectors, A and B, on the same images, and their difference.

    Attributes:
      auroc_a: AUROC of A.
      auroc_b: AUROC of B.
      difference: AUROC of A minus that of B.
      low: lower end of its interval; `None` with a single normal image or a single anomaly.
      high: its upper end, or `None`.
      p_value: two-sided p-value of no difference, or `None`.
    """

    auroc_a: float
    auroc_b: float
    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def auroc_difference(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, confidence: float = 0.95
) -> AurocDifference:
    """Returns the paired difference of two AUROCs, with DeLong's interval and test.

    DeLong et al. 1988, doi 10.2307/2531595; computed by mid-ranks (Sun and Xu 2014, doi
    10.1109/LSP.2014.2337313). The interval relies on many images: with few it is too narrow. If the
    difference does not vary over the images, as between equal orders, the interval is a point.

    Args:
      labels: int [N], 0 for normal images and 1 for anomalies, both present.
      scores_a: float [N], scores of A.
      scores_b: float [N], scores of B on the same images.
      confidence: probability that the interval covers the true difference.
    """
    placements_a, placements_b = _placements(labels, scores_a), _placements(labels, scores_b)
    auroc_a, auroc_b = (
        float(of_anomalies.mean()) for of_anomalies, _ in (placements_a, placements_b)
    )
    # Of the differences image by image, so that equal orders differ by exactly 0.
    differences = [a - b for a, b in zip(placements_a, placements_b, strict=True)]
    difference = float(differences[0].mean())
    if min(map(len, differences)) < 2:
        return AurocDifference(auroc_a, auroc_b, difference)
    error = math.sqrt(sum(float(np.var(part, ddof=1)) / len(part) for part in differences))
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    if error > 0:
        p_value = float(2 * stats.norm.sf(abs(difference) / error))
    else:
        p_value = float(difference == 0)
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return AurocDifference(auroc_a, auroc_b, difference, low, high, p_value)


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns DeLong's structural components, whose means are the AUROC.

    That is for each anomaly the share of normal images that score lower, and for each normal image
    the share of anomalies that score higher; a tie counts half.
    """
    anomalous = np.asarray(labels) == 1
    n_anomaly, n_normal = int(anomalous.sum()), int((~anomalous).sum())
    ranks = stats.rankdata(scores)
    above = ranks[anomalous] - stats.rankdata(scores[anomalous])
    below = ranks[~anomalous] - stats.rankdata(scores[~anomalous])
    return above / n_normal, 1 - below / n_anomaly
