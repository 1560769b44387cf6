"""Image-level metrics from labels and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from devnet_jax.evaluation.intervals import (
    auroc_interval,
    average_precision_interval,
    rate_interval,
)

# Columns of the table of kinds beside the labelled kinds.
NO_KIND, NO_ALARM = "no labelled kind", "no alarm"


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Returns AUROC and average precision with their intervals, and the best F1 with its threshold.

    The ends of the 95 % intervals are named "image_auroc_low", "image_auroc_high" and so on. The
    result is empty unless there are normal images and anomalies.

    Args:
      labels: int [N], 0 for normal images and 1 for anomalies.
      scores: float [N], larger for more anomalous images.
    """
    n_normal, n_anomaly = int(np.sum(labels == 0)), int(np.sum(labels == 1))
    if not n_normal or not n_anomaly:
        return {}
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    f1 = f1_scores(precision, recall)
    best = int(np.argmax(f1[:-1]))  # the curve's last point has no threshold
    auroc = float(metrics.roc_auc_score(labels, scores))
    # The mean over anomalies, as a sum of recall steps is 0.9999999999999999 for a perfect order.
    at_anomalies = np.searchsorted(thresholds, scores[labels == 1])
    average_precision = float(precision[at_anomalies].mean())
    return {
        "image_auroc": auroc,
        **_ends("image_auroc", auroc_interval(auroc, n_normal, n_anomaly)),
        "image_ap": average_precision,
        **_ends("image_ap", average_precision_interval(average_precision, n_anomaly)),
        "image_f1_max": float(f1[best]),
        "image_f1_max_threshold": float(thresholds[best]),
    }


def f1_scores(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Returns the harmonic means of precision and recall [N]; 0 where both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def alarm_rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Returns the "false_alarm_rate" and the "miss_rate" of a threshold, with counts and intervals.

    These are "n_false_alarms", "n_missed", and the ends of the 95 % intervals of the rates, such as
    "miss_rate_low" and "miss_rate_high". Those of false alarms are left out without normal images,
    those of misses without anomalies.

    Args:
      labels: int [N], 0 for normal images and 1 for anomalies.
      scores: float [N].
      threshold: lowest score that raises an alarm.
    """
    alarms = np.asarray(scores, np.float64) >= threshold  # in float32, NumPy would round it
    rates: dict[str, float] = {}
    for count_name, name, wrong in (
        ("n_false_alarms", "false_alarm_rate", alarms[labels == 0]),
        ("n_missed", "miss_rate", ~alarms[labels == 1]),
    ):
        if len(wrong):
            count = int(wrong.sum())
            rates |= {count_name: count, name: count / len(wrong)}
            rates |= _ends(name, rate_interval(count, len(wrong)))
    return rates


def _ends(name: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def kind_metrics(
    defects: Sequence[str],
    named: Sequence[str | None],
    alarms: Sequence[bool],
    labelled: Sequence[str],
) -> dict[str, Any]:
    """Compares the kinds that alarms are named after with the true ones.

    Args:
      defects: true kind of each anomaly.
      named: labelled kind that each of them is like, `None` for none.
      alarms: True for anomalies that raise an alarm.
      labelled: names of the labelled kinds.

    Returns:
      "kinds", the number of anomalies by their true kind and by the kind that they are named after,
      `NO_KIND` or `NO_ALARM`; of the alarms whose true kind is labelled, "n_kind_accuracy", their
      number, and "kind_accuracy", the share that is named after that kind, if there are any.
    """
    columns = [*labelled, NO_KIND, NO_ALARM]
    table = {defect: dict.fromkeys(columns, 0) for defect in sorted(set(defects))}
    for defect, name, alarm in zip(defects, named, alarms, strict=True):
        table[defect][(name or NO_KIND) if alarm else NO_ALARM] += 1
    known = [
        name == defect
        for defect, name, alarm in zip(defects, named, alarms, strict=True)
        if alarm and defect in labelled
    ]
    results: dict[str, Any] = {"kinds": table, "n_kind_accuracy": len(known)}
    if known:
        results["kind_accuracy"] = sum(known) / len(known)
    return results
