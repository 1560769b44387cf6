"""Tests of alarms, p-values and severity: by counting, by hand, and over simulated draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from devnet_jax.errors import UserError
from devnet_jax.inference.scores import as_written
from devnet_jax.inference.thresholds import (
    calibrated_threshold,
    given_threshold,
    p_values,
    prior_threshold,
)
from devnet_jax.inference.verdicts import judge, severity, typical_score
from devnet_jax.prior import Prior
from tests.inference.drawn import DISTRIBUTIONS, draw_scores

RATES = (0.01, 0.05, 0.07, 0.1, 0.2, 0.3)


def test_the_p_value_is_the_rank_among_the_held_out_images() -> None:
    good = np.array([1.0, 2.0, 2.0, 3.0])
    # Of 5: itself, and those that score as high or higher.
    found = p_values(np.array([0.5, 1.0, 2.0, 2.5, 3.0, 9.0]), good, Prior())
    np.testing.assert_allclose(found, [5 / 5, 5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5])
    # SciPy counts in the same way.
    expected = stats.percentileofscore(-good, [-2.5], kind="weak")[0] / 100
    assert found is not None
    assert found[3] == pytest.approx((1 + 4 * expected) / 5)


def test_without_held_out_images_the_p_value_is_the_prior_s() -> None:
    scores, none = np.array([0.0, 1.96, 3.0]), np.empty(0)
    found = p_values(scores, none, Prior())
    np.testing.assert_allclose(found, stats.norm.sf(scores))
    assert p_values(scores, none, None) is None


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("scores_of", DISTRIBUTIONS)
def test_over_200_draws_an_alarm_has_p_at_most_the_rate_and_nothing_else_has(
    rate: float, scores_of: str
) -> None:
    rng = np.random.default_rng(1)

    for _ in range(200):
        good = draw_scores(rng, int(rng.integers(1, 150)), scores_of)
        threshold = calibrated_threshold(good, rate)
        assert threshold is not None
        assert threshold.false_alarm_rate is not None
        scores = np.concatenate(
            [draw_scores(rng, 50, scores_of), good, np.nextafter(good, np.float32(np.inf))]
        )
        verdicts = judge(as_written(scores), threshold, as_written(good), Prior())
        assert verdicts.is_anomaly is not None
        assert verdicts.p_values is not None
        assert verdicts.severity is not None
        promised = threshold.false_alarm_rate
        np.testing.assert_array_equal(verdicts.is_anomaly, verdicts.p_values <= promised)
        np.testing.assert_array_equal(verdicts.is_anomaly, verdicts.severity >= 0.5)


@pytest.mark.parametrize("rate", RATES)
def test_over_200_draws_normal_images_have_small_p_values_as_seldom_as_promised(
    rate: float,
) -> None:
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        good = rng.gamma(2, size=int(rng.integers(20, 150)))
        found = p_values(rng.gamma(2, size=500), good, None)
        assert found is not None
        shares.append(np.mean(found <= rate))
    assert np.mean(shares) <= rate + 3 * np.std(shares) / np.sqrt(200)


def test_rounding_at_the_prior_s_quantile_contradicts_no_verdict() -> None:
    for confidence in np.linspace(0.5, 0.999, 200):
        threshold = prior_threshold(Prior(0.3, 0.7), float(confidence))
        assert threshold is not None
        value = threshold.value
        scores = np.array([np.nextafter(value, -9), value, np.nextafter(value, 9)])
        verdicts = judge(scores, threshold, np.empty(0), Prior(0.3, 0.7))
        assert verdicts.p_values is not None
        found = verdicts.p_values <= threshold.false_alarm_rate
        assert found.tolist() == [False, True, True]


@pytest.mark.parametrize("n_kept", [0, 512])
def test_a_file_of_earlier_versions_has_no_p_value_that_contradicts_its_threshold(
    n_kept: int,
) -> None:
    """It has at most 512 quantiles of the scores behind its threshold, or none of them."""
    good = np.random.default_rng(4).normal(0.3, 0.5, 1000).astype(np.float32)
    threshold = calibrated_threshold(good, 0.05)
    assert threshold is not None
    kept = np.quantile(good, np.linspace(0, 1, n_kept)) if n_kept else np.empty(0)
    scores = as_written(np.concatenate([good, np.nextafter(good, np.float32(9))]))
    verdicts = judge(scores, threshold, kept, Prior())
    assert verdicts.p_values is not None
    np.testing.assert_array_equal(verdicts.p_values <= 0.05, scores >= threshold.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_given_threshold_is_finite(value: float) -> None:
    with pytest.raises(UserError, match="give a score"):
        given_threshold(value, np.empty(0), Prior())


def test_a_given_threshold_has_the_p_value_of_its_score() -> None:
    good = np.arange(20, dtype=np.float64)
    threshold = given_threshold(17.5, good, Prior())
    # 18 and 19 are above it: (1 + 2)/21.
    assert (threshold.kind, threshold.false_alarm_rate) == ("given", 3 / 21)
    assert threshold.n_calibration == 20
    by_prior = given_threshold(1.6449, np.empty(0), Prior())
    assert by_prior.false_alarm_rate == pytest.approx(0.05, abs=1e-5)
    assert given_threshold(1.0, np.empty(0), None).false_alarm_rate is None
    # A score as NumPy has it is the number that tables have, so that this image is an alarm.
    assert given_threshold(np.float32(0.1), good, None).value == 0.1  # type: ignore[arg-type]


def test_severity_by_hand() -> None:
    # The typical good part is 2 below the threshold.
    found = severity(np.array([1.0, 3.0, 5.0, 7.0, 23.0]), threshold=3.0, typical=1.0)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 0.5 + 0.5 * 2 / 3, 0.5 + 0.5 * 10 / 11])
    assert typical_score(np.array([1.0, 1.0, 9.0]), Prior()) == 1
    assert typical_score(np.empty(0), Prior(0.4, 1.0)) == 0.4
    assert typical_score(np.array([-2.9]), Prior(0.0, 1.5)) == -4.4  # one picture has no spread
    assert typical_score(np.empty(0), None) == 0


@given(
    st.lists(st.floats(-1e5, 1e5, width=32), min_size=2, max_size=60, unique=True),
    st.floats(-100, 100),
    st.floats(-100, 100),
)
def test_severity_ranks_as_the_scores_do(
    scores: list[float], threshold: float, typical: float
) -> None:
    ordered = as_written(np.sort(np.float32(scores)))
    ordered = ordered[np.diff(ordered, prepend=-np.inf) > 1e-6]
    found = severity(ordered, threshold, typical)
    assert ((found > 0) & (found < 1)).all()
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found >= 0.5, ordered >= threshold)
    assert severity(np.array([threshold]), threshold, typical)[0] == 0.5


def test_the_auroc_of_severity_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [300, 60])
    scores = np.concatenate([rng.normal(0, 1, 300), np.exp(rng.normal(1, 3, 60))])
    written = as_written(scores.astype(np.float32))
    found = severity(written, 0.0117, 0.0116)
    assert roc_auc_score(labels, found) == roc_auc_score(labels, written)
