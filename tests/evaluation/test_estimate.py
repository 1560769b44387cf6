"""The performance to expect, from cross-validated scores; values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.evaluation.intervals import auroc_interval, rate_interval


def test_by_hand() -> None:
    # Of the 80 pairs, the anomalies win 20, 20, 19½ and 5½. With 20 normal scores and 5 % false
    # alarms the threshold is just above the largest normal score, 19: two anomalies are missed.
    expected = expected_performance(list(range(20)), [25.0, 30.0, 19.0, 5.0], 0.05)
    auroc, missed = auroc_interval(65 / 80, 20, 4), rate_interval(2, 4)
    assert expected == pytest.approx(
        {
            "expected_auroc": 65 / 80,
            "expected_auroc_low": auroc[0],
            "expected_auroc_high": auroc[1],
            "expected_false_alarm_rate": 0.05,
            "expected_miss_rate": 0.5,
            "expected_miss_rate_low": missed[0],
            "expected_miss_rate_high": missed[1],
            "n_estimate_normal": 20,
            "n_estimate_anomaly": 4,
        }
    )


def test_the_threshold_allows_the_false_alarms() -> None:
    # ⌊0.1·(20 + 1)⌋ = 2: just above the second largest normal score, 18.
    expected = expected_performance(list(range(20)), [18.5, 18.0], 0.1)
    assert expected["expected_miss_rate"] == 0.5


def test_without_anomalies_nothing_is_expected() -> None:
    assert expected_performance(list(range(20)), [], 0.05) == {}
    assert expected_performance([], [], 0.05) == {}


def test_few_normal_scores_count_misses_at_the_nearest_rate() -> None:
    # 5 % needs 19 normal scores; with 18, the threshold just above all of them promises 1/19.
    expected = expected_performance(list(range(18)), [25.0, 16.5], 0.05)
    assert expected["expected_false_alarm_rate"] == pytest.approx(1 / 19)
    assert expected["expected_miss_rate"] == 0.5


def test_a_perfect_order_leaves_doubt() -> None:
    expected = expected_performance(list(range(18)), [25.0, 30.0], 0.05)
    assert (expected["expected_auroc"], expected["expected_auroc_high"]) == (1, 1)
    assert expected["expected_auroc_low"] < 1


def test_scores_are_compared_in_float32() -> None:
    normal, anomaly = 0.1, float(np.float32(0.1))
    assert anomaly > normal
    expected = expected_performance([normal] * 19, [anomaly] * 2, 0.05)
    assert (expected["expected_auroc"], expected["expected_miss_rate"]) == (0.5, 1)
