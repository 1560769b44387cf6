"""Performance to expect on new images, estimated from the training images by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn import metrics

from devnet_jax.evaluation.intervals import auroc_interval, rate_interval
from devnet_jax.inference.scorer import as_written
from devnet_jax.inference.thresholds import Threshold


def expected_performance(
    normal_scores: Sequence[float], anomaly_scores: Sequence[float], threshold: Threshold | None
) -> dict[str, float]:
    """Returns the measures to expect on new images, with 95 % confidence intervals.

    Each score is by a model that has not seen the image. The scores are not quite independent, as
    any two of these models share training images; the intervals take them for independent. Misses
    are counted at the threshold in force, as the report counts the labelled anomalies that would be
    missed; their interval takes it for fixed.

    Args:
      normal_scores: cross-validated scores of normal training images.
      anomaly_scores: those of labelled anomalies.
      threshold: threshold in force; `None` without one, for no miss rate.

    Returns:
      Entries of eval/metrics.json: expected AUROC and miss rate, their intervals, and the numbers
      of images behind them. Empty if either kind has no score.
    """
    normal = as_written(np.asarray(normal_scores, np.float32))
    anomalous = as_written(np.asarray(anomaly_scores, np.float32))
    n_normal, n_anomaly = len(normal), len(anomalous)
    if not n_normal or not n_anomaly:
        return {}
    labels = np.repeat([0, 1], [n_normal, n_anomaly])
    auroc = float(metrics.roc_auc_score(labels, np.concatenate([normal, anomalous])))
    low, high = auroc_interval(auroc, n_normal, n_anomaly)
    expected: dict[str, float] = {
        "expected_auroc": auroc,
        "expected_auroc_low": low,
        "expected_auroc_high": high,
        "n_estimate_normal": n_normal,
        "n_estimate_anomaly": n_anomaly,
    }
    if threshold is None:
        return expected
    n_missed = int(np.sum(~threshold.alarms(anomalous)))
    low, high = rate_interval(n_missed, n_anomaly)
    return expected | {
        "expected_miss_rate": n_missed / n_anomaly,
        "expected_miss_rate_low": low,
        "expected_miss_rate_high": high,
    }
