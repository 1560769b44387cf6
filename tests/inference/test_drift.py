"""Tests of the warning that the scores of pictures that pass have moved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from devnet_jax.inference.drift import compare, find_drift, reference_scores
from devnet_jax.inference.thresholds import Threshold

THRESHOLD = Threshold("calibrated", 10.0, 0.05, 100)


def test_a_shift_by_hand() -> None:
    # The empirical distributions of 1, 2, 3, 4 and 3.5, 4.5, 5.5, 6.5 are farthest apart at 3: 3/4.
    shift = compare(np.array([1.0, 2, 3, 4]), np.array([3.5, 4.5, 5.5, 6.5]))
    assert shift.distance == 0.75
    assert (shift.median_before, shift.median_now) == (2.5, 5.0)
    # Of the 70 orders of 4 and 4 scores, 16 have a distance of 3/4 or 1.
    assert shift.p_value == pytest.approx(16 / 70)


def test_two_samples_as_scipy_compares_them() -> None:
    rng = np.random.default_rng(0)
    before, now = rng.normal(size=120), rng.normal(0.7, 1, 480)
    shift = find_drift(before, now, THRESHOLD)
    assert shift is not None
    expected = stats.kstest(before, now)
    assert shift.distance == pytest.approx(expected.statistic)
    assert shift.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert (shift.n_before, shift.n_now) == (120, 480)
    assert str(shift) == (
        f"the scores of pictures that pass have moved: median {np.median(before):.3g} at "
        f"calibration (120 pictures), {np.median(now):.3g} now (480): look at the pictures; if the "
        "parts are good, --mode=recalibrate"
    )


def test_too_few_pictures_warn_of_nothing() -> None:
    before, now = np.linspace(0, 1, 100), np.linspace(5, 6, 100)
    assert find_drift(before, now[:20], THRESHOLD) is not None
    assert find_drift(before, now[:19], THRESHOLD) is None
    assert find_drift(before[:19], now, THRESHOLD) is None
    assert find_drift(np.empty(0), now, THRESHOLD) is None


def test_scores_of_calibration_above_the_threshold_do_not_count() -> None:
    passed = np.linspace(0, 1, 60)
    alarmed = np.full(40, 99.0)
    assert find_drift(np.concatenate([passed, alarmed]), passed, THRESHOLD) is None
    assert find_drift(alarmed, passed, THRESHOLD) is None


def test_many_pictures_that_differ_a_little_warn_of_nothing() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.normal(size=2000), rng.normal(0.25, 1, 10_000)
    assert stats.ks_2samp(before, now).pvalue < 1e-9
    assert find_drift(before, now, THRESHOLD) is None
    assert find_drift(before, rng.normal(0.7, 1, 10_000), THRESHOLD) is not None


def test_the_reference_scores_have_the_same_distribution() -> None:
    scores = np.random.default_rng(2).lognormal(size=10_007).astype(np.float32)
    kept = reference_scores(scores)
    assert len(kept) == 512
    assert stats.ks_2samp(scores, kept).statistic < 0.002  # half a step of 1/512, and rounding
    few = scores[:30]
    assert sorted(reference_scores(few)) == sorted(few)
    assert len(reference_scores(scores[:0])) == 0


def test_warnings_without_a_change_are_rare() -> None:
    rng = np.random.default_rng(3)
    warned = [find_drift(rng.normal(size=60), rng.normal(size=200), THRESHOLD) for _ in range(1000)]
    assert sum(shift is not None for shift in warned) <= 5  # at most 1 in 1000 is expected
