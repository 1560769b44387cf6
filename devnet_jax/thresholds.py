"""Where a score becomes an alarm."""

from __future__ import annotations

from scipy import stats

from devnet_jax.config import LossConfig


def prior_threshold(loss: LossConfig, confidence: float) -> float | None:
    """The score that a draw from the prior stays below with the given probability.

    Trained with the deviation loss, normal images score about as the prior does, so their
    share above the threshold is about 1 - confidence (section 3.3 of the paper). The other
    losses know no prior: `None`.
    """
    if loss.name != "deviation":
        return None
    return float(stats.norm.ppf(confidence, loss.prior_mean, loss.prior_std))
