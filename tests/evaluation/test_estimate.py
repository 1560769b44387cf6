"""The performance to expect, from cross-validated scores; values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.evaluation.intervals import auroc_interval, rate_interval
from devnet_jax.inference.thresholds import Threshold


def at(value: float) -> Threshold:
    return Threshold("calibrated", value, 0.05)


def test_by_hand() -> None:
    # Of the 80 pairs, the anomalies win 20, 20, 19½ and 5½. Two anomalies are below 19.5.
    expected = expected_performance(list(range(20)), [25.0, 30.0, 19.0, 5.0], at(19.5))
    auroc, missed = auroc_interval(65 / 80, 20, 4), rate_interval(2, 4)
    assert expected == pytest.approx(
        {
            "expected_auroc": 65 / 80,
            "expected_auroc_low": auroc[0],
            "expected_auroc_high": auroc[1],
            "expected_miss_rate": 0.5,
            "expected_miss_rate_low": missed[0],
            "expected_miss_rate_high": missed[1],
            "n_estimate_normal": 20,
            "n_estimate_anomaly": 4,
        }
    )


def test_misses_are_counted_at_the_threshold_in_force() -> None:
    # A lower threshold, such as a given one, misses none of them.
    scores = list(range(20)), [25.0, 30.0, 19.0, 5.0]
    assert expected_performance(*scores, at(5.0))["expected_miss_rate"] == 0
    assert "expected_miss_rate" not in expected_performance(*scores, None)


def test_without_anomalies_nothing_is_expected() -> None:
    assert expected_performance(list(range(20)), [], at(5.0)) == {}
    assert expected_performance([], [], at(5.0)) == {}


def test_a_perfect_order_leaves_doubt() -> None:
    expected = expected_performance(list(range(18)), [25.0, 30.0], at(20.0))
    assert (expected["expected_auroc"], expected["expected_auroc_high"]) == (1, 1)
    assert expected["expected_auroc_low"] < 1


def test_scores_are_compared_as_they_are_written() -> None:
    # The float32 number nearest to 0.1 is larger than 0.1, but it is written as 0.1.
    normal, anomaly = 0.1, float(np.float32(0.1))
    assert anomaly > normal
    expected = expected_performance([normal] * 19, [anomaly] * 2, at(anomaly))
    assert (expected["expected_auroc"], expected["expected_miss_rate"]) == (0.5, 1)
