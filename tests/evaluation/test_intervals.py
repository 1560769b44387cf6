"""Confidence intervals: values computed by hand, and their coverage in simulated samples.

The difference of two AUROCs is also checked against scikit-learn, SciPy's bootstrap, and a
covariance computed pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from devnet_jax.evaluation.intervals import (
    auroc_difference,
    auroc_interval,
    average_precision_interval,
    excess_p_value,
    rate_interval,
)


def test_wilson_by_hand() -> None:
    # z² = 3.8415. For 0 of 10: from 0 to z²/(10 + z²). For 5 of 10: 1/2 ± z·√(1/40 + z²/400) /
    # (1 + z²/10) = 1/2 ± 0.2634.
    assert rate_interval(0, 10) == pytest.approx((0, 0.277533), abs=1e-5)
    assert rate_interval(10, 10) == pytest.approx((0.722467, 1), abs=1e-5)
    assert rate_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-5)


@pytest.mark.parametrize("n", [1, 3, 20, 140])
def test_intervals_of_rates_equal_those_of_scipy(n: int) -> None:
    for count in range(n + 1):
        for confidence in (0.5, 0.95, 0.999):
            theirs = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
            ours = rate_interval(count, n, confidence)
            assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def covers_at_its_level(covered: Sequence[bool]) -> bool:
    """Returns False for a count of covered draws that 95 % would have in one of 1000 tests."""
    n_covered = int(np.sum(covered))
    return stats.binomtest(n_covered, len(covered), 0.95, alternative="less").pvalue > 1e-3


@pytest.mark.parametrize(("rate", "n"), [(0.05, 20), (0.05, 300), (0.3, 5), (0.3, 140)])
def test_intervals_of_rates_cover_the_true_rate(rate: float, n: int) -> None:
    counts = np.random.default_rng(3).binomial(n, rate, 200)
    intervals = [rate_interval(count, n) for count in counts.tolist()]
    assert covers_at_its_level([low <= rate <= high for low, high in intervals])


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


SIZES = [(20, 5), (60, 10), (22, 63), (300, 140)]


def draw_scores(
    n_normal: int, n_anomaly: int, shift: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields labels and scores of 200 draws from normal distributions that lie a shift apart."""
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], [n_normal, n_anomaly])
    for _ in range(200):
        yield labels, rng.normal(size=len(labels)) + shift * labels


@pytest.mark.parametrize("true_auroc", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("n_normal", "n_anomaly"), SIZES)
def test_intervals_of_aurocs_cover_the_true_one(
    true_auroc: float, n_normal: int, n_anomaly: int
) -> None:
    shift = float(np.sqrt(2) * stats.norm.ppf(true_auroc))
    covered = []
    for labels, scores in draw_scores(n_normal, n_anomaly, shift):
        low, high = auroc_interval(roc_auc_score(labels, scores), n_normal, n_anomaly)
        covered.append(low <= true_auroc <= high)
    assert covers_at_its_level(covered)


@pytest.mark.parametrize("shift", [1.2, 2.3, 3.3])
@pytest.mark.parametrize(("n_normal", "n_anomaly"), SIZES)
def test_intervals_of_average_precisions_cover_the_true_one(
    shift: float, n_normal: int, n_anomaly: int
) -> None:
    """The true one is the mean precision at the scores of anomalies, for the share of them."""
    share = n_anomaly / (n_normal + n_anomaly)
    thresholds = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000, loc=shift)
    found = share * stats.norm.sf(thresholds, loc=shift)
    true = np.mean(found / (found + (1 - share) * stats.norm.sf(thresholds)))
    covered = []
    for labels, scores in draw_scores(n_normal, n_anomaly, shift):
        measured = average_precision_score(labels, scores)
        low, high = average_precision_interval(measured, n_anomaly)
        assert low <= measured <= high
        covered.append(low <= true <= high)
    assert covers_at_its_level(covered)


def test_a_perfect_average_precision_leaves_doubt() -> None:
    # As 5 of 5: z² = 3.8415, from 5 / (5 + z²).
    assert average_precision_interval(1.0, 5) == pytest.approx((0.565518, 1), abs=1e-5)


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


def test_delong_by_hand() -> None:
    # Placements of the anomalies: A 1/2, 1, 1 and B 2/3, 1, 1/6; of the normal images: A 1, 5/6,
    # 2/3 and B 5/6, 1/3, 2/3. Their differences have the mean 2/9 and the variances 186/648 and
    # 42/648, so that the variance of the difference is 228/1944.
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = auroc_difference(labels, np.array([1.0, 2, 3, 2, 4, 5]), np.array([1.0, 4, 2, 3, 5, 1]))
    assert (found.auroc_a, found.auroc_b) == pytest.approx((5 / 6, 11 / 18))
    error = np.sqrt(228 / 1944)
    ends = (2 / 9 - 1.959964 * error, 2 / 9 + 1.959964 * error)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-6)
    assert found.p_value == pytest.approx(0.5164, abs=1e-4)


def draw_pairs(
    rng: np.random.Generator, n_normal: int, n_anomaly: int, shift_a: float, shift_b: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws labels and correlated scores, rounded so that there are ties."""
    labels = np.repeat([0, 1], [n_normal, n_anomaly])
    scores = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], len(labels))
    scores += labels[:, None] * [shift_a, shift_b]
    return labels, *scores.round(1).T


def test_delong_against_pairs_and_bootstrap() -> None:
    rng = np.random.default_rng(5)
    labels, a, b = draw_pairs(rng, 80, 60, 1.5, 1.0)
    found = auroc_difference(labels, a, b)
    assert found.auroc_a == pytest.approx(roc_auc_score(labels, a))
    assert found.auroc_b == pytest.approx(roc_auc_score(labels, b))

    # DeLong's covariance from the kernel of every pair of an anomaly and a normal image.
    kernel = [np.heaviside(np.subtract.outer(s[labels == 1], s[labels == 0]), 0.5) for s in (a, b)]
    s10 = np.cov([k.mean(axis=1) for k in kernel])
    s01 = np.cov([k.mean(axis=0) for k in kernel])
    contrast = np.array([1, -1])
    error = np.sqrt(contrast @ (s10 / 60 + s01 / 80) @ contrast)
    assert found.low == pytest.approx(found.difference - 1.959964 * error, abs=1e-6)

    def resample(_: int) -> float:
        chosen = np.concatenate([rng.integers(0, 80, 80), rng.integers(80, 140, 60)])
        y, x_a, x_b = labels[chosen], a[chosen], b[chosen]
        u = [stats.mannwhitneyu(x[y == 1], x[y == 0]).statistic for x in (x_a, x_b)]
        return float(u[0] - u[1]) / 4800

    ends = np.quantile([resample(i) for i in range(1500)], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(ends, abs=0.015)


def test_coverage_of_differences() -> None:
    """The AUROCs of normally distributed scores are Φ(shift/√2)."""
    rng = np.random.default_rng(6)
    true = np.diff(stats.norm.cdf(np.array([1.0, 1.4]) / np.sqrt(2)))[0]
    drawn = [auroc_difference(*draw_pairs(rng, 60, 40, 1.4, 1.0)) for _ in range(400)]
    covered = [one.low <= true <= one.high for one in drawn if one.low is not None and one.high]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_equal_orders_differ_by_exactly_nothing() -> None:
    labels, a, _ = draw_pairs(np.random.default_rng(7), 50, 30, 1.0, 1.0)
    for b in (a, 1000 * a - 3, np.exp(a)):
        found = auroc_difference(labels, a, b)
        assert found[2:] == (0, 0, 0, 1)
    # Both perfect, with other scores.
    found = auroc_difference(np.array([0, 0, 1, 1]), np.arange(4.0), np.array([1.0, 0, 9, 8]))
    assert found == (1, 1, 0, 0, 0, 1)


def test_a_single_anomaly_allows_no_interval() -> None:
    found = auroc_difference(np.array([0, 0, 1]), np.array([0.0, 1, 2]), np.array([0.0, 2, 1]))
    assert found == (1, 0.5, 0.5, None, None, None)


def test_the_probability_of_more_false_alarms_than_promised() -> None:
    # 19 held out at 5 %: k = 1. One image: k/(n+1); two of two: k(k+1)/((n+1)(n+2)).
    assert excess_p_value(1, 1, 19, 0.05) == pytest.approx(1 / 20)
    assert excess_p_value(2, 2, 19, 0.05) == pytest.approx(2 / (20 * 21))
    assert excess_p_value(0, 20, 19, 0.05) == 1
    # Against counting: thresholds of 42 images at 5 %, and 20 others.
    rng = np.random.default_rng(5)
    held_out, test = np.sort(rng.random((40_000, 42)), axis=1), rng.random((40_000, 20))
    n_alarms = np.sum(test > held_out[:, -2:-1], axis=1)
    assert excess_p_value(4, 20, 42, 0.05) == pytest.approx(np.mean(n_alarms >= 4), abs=0.005)
