"""Confidence intervals: values computed by hand, and their coverage in simulated samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from devnet_jax.evaluation.intervals import auroc_interval, rate_interval


def test_wilson_by_hand() -> None:
    # z² = 3.8415. For 0 of 10: from 0 to z²/(10 + z²). For 5 of 10: 1/2 ± z·√(1/40 + z²/400) /
    # (1 + z²/10) = 1/2 ± 0.2634.
    assert rate_interval(0, 10) == pytest.approx((0, 0.277533), abs=1e-5)
    assert rate_interval(10, 10) == pytest.approx((0.722467, 1), abs=1e-5)
    assert rate_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-5)


@pytest.mark.parametrize("n", [5, 10, 30])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_coverage_of_rates(n: int, confidence: float) -> None:
    """Averaged over the true rates, the coverage is about the confidence, computed exactly."""
    intervals = [rate_interval(count, n, confidence) for count in range(n + 1)]
    rates = np.linspace(0.02, 0.98, 49)
    covered = [[low <= rate <= high for low, high in intervals] for rate in rates]
    coverage = (stats.binom.pmf(np.arange(n + 1), n, rates[:, None]) * covered).sum(axis=1)
    assert coverage.mean() == pytest.approx(confidence, abs=0.02)
    assert coverage.min() > confidence - 0.14


@pytest.mark.parametrize("true_auroc", [0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize(("n_normal", "n_anomaly"), [(60, 10), (20, 5), (7, 3)])
def test_coverage_of_aurocs(true_auroc: float, n_normal: int, n_anomaly: int) -> None:
    """In draws of normally distributed scores, measured by SciPy's U statistic."""
    rng = np.random.default_rng(11)
    distance = np.sqrt(2) * stats.norm.ppf(true_auroc)
    normal = rng.normal(size=(300, n_normal))
    anomalous = rng.normal(distance, size=(300, n_anomaly))
    u = stats.mannwhitneyu(anomalous, normal, axis=1).statistic
    intervals = [auroc_interval(auroc, n_normal, n_anomaly) for auroc in u / n_normal / n_anomaly]
    covered = [low <= true_auroc <= high for low, high in intervals]
    assert np.mean(covered) >= 0.9


def test_an_auroc_of_1_leaves_doubt() -> None:
    low, high = auroc_interval(1.0, 60, 10)
    assert 0.7 < low < 0.95
    assert high == 1
    assert auroc_interval(0.0, 60, 10) == pytest.approx((0, 1 - low))
    assert auroc_interval(1.0, 1, 1)[0] < 0.5


@pytest.mark.parametrize("auroc", [0.0, 0.01, 0.5, 0.93, 0.999, 1.0])
def test_intervals_hold_the_measured_auroc_and_narrow_with_more_images(auroc: float) -> None:
    few, many, sure = (
        auroc_interval(auroc, 20, 5),
        auroc_interval(auroc, 200, 50),
        auroc_interval(auroc, 20, 5, confidence=0.5),
    )
    for low, high in (few, many, sure):
        assert 0 <= low <= auroc <= high <= 1
        assert low < high
    assert few[0] <= many[0]
    assert many[1] <= few[1]
    assert few[0] <= sure[0]
    assert sure[1] <= few[1]
