"""Confidence intervals of rates and of AUROCs, for small samples."""

from __future__ import annotations

from scipy import optimize, stats


def rate_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a rate (Wilson 1927).

    Args:
      count: number of cases.
      total: number of trials, at least 1.
      confidence: probability that the interval covers the true rate.
    """
    interval = stats.binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc_interval(
    auroc: float, n_normal: int, n_anomaly: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns an interval of an AUROC that is sensible for few images and for an AUROC of 1.

    It holds the values θ that the measured AUROC is at most z standard errors away from, with the
    standard error of θ by Hanley and McNeil and equal group sizes in its middle term (Newcombe
    2006, doi 10.1002/sim.2324, method 5).

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
