"""Image-level metrics from labels and scores."""

from __future__ import annotations

import numpy as np
from sklearn import metrics


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Returns AUROC, average precision, and the best F1 with its threshold.

    The result is empty unless there are normal images and anomalies.

    Args:
      labels: int [N], 0 for normal images and 1 for anomalies.
      scores: float [N], larger for more anomalous images.
    """
    if not (labels == 0).any() or not (labels == 1).any():
        return {}
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    f1 = f1_scores(precision, recall)
    best = int(np.argmax(f1[:-1]))  # the curve's last point has no threshold
    return {
        "image_auroc": float(metrics.roc_auc_score(labels, scores)),
        "image_ap": float(metrics.average_precision_score(labels, scores)),
        "image_f1_max": float(f1[best]),
        "image_f1_max_threshold": float(thresholds[best]),
    }


def f1_scores(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Returns the harmonic means of precision and recall [N]; 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def alarm_rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Returns the "false_alarm_rate" and the "miss_rate" of a threshold.

    The false-alarm rate is left out without normal images, the miss rate without anomalies.

    Args:
      labels: int [N], 0 for normal images and 1 for anomalies.
      scores: float [N].
      threshold: lowest score that raises an alarm.
    """
    alarms = np.asarray(scores, np.float64) >= threshold  # in float32, NumPy would round it
    rates = {}
    if (labels == 0).any():
        rates["false_alarm_rate"] = float(alarms[labels == 0].mean())
    if (labels == 1).any():
        rates["miss_rate"] = float(1 - alarms[labels == 1].mean())
    return rates
