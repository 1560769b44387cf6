"""Tests of thresholds and p-values against tables of the normal distribution and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.thresholds import (
    calibrated_threshold,
    n_calibration_needed,
    prior_threshold,
)
from devnet_jax.prior import Prior
from tests.inference.drawn import DISTRIBUTIONS, draw_scores


def test_prior_threshold() -> None:
    threshold = prior_threshold(Prior(), 0.95)
    assert threshold is not None
    # From any table of the normal distribution.
    assert threshold.value == pytest.approx(1.6449, abs=1e-4)
    assert threshold.false_alarm_rate == pytest.approx(0.05)
    shifted = prior_threshold(Prior(2.0, 0.5), 0.975)
    assert shifted is not None
    assert shifted.value == pytest.approx(2 + 0.5 * 1.95996, abs=1e-4)
    found = Prior().p_values(np.float32([0, 1.6449, 5, 40]))
    # Far out, 1 - Φ would be 0 in floats: Φ(-5) = 2.8665e-7, and Φ(-40) = 3.656e-350 is 0 as well.
    np.testing.assert_allclose(found, [0.5, 0.05, 2.8665e-7, 0], rtol=1e-3)


def test_without_a_prior_there_is_no_threshold() -> None:
    assert prior_threshold(None, 0.95) is None


def test_calibrated_by_hand() -> None:
    scores = np.arange(1, 20, dtype=np.float32)[::-1]  # 19 images: k = ⌊0.05 · 20⌋ = 1
    threshold = calibrated_threshold(scores, 0.05)
    assert threshold is not None
    assert threshold.n_calibration == 19
    assert 19 < threshold.value < 19.00001  # none of them raises an alarm
    # The rate is a draw from Beta(1, 19), whose distribution function is 1 - (1 - x)^19.
    assert threshold.likely_rate == pytest.approx(1 - 0.1 ** (1 / 19))
    tenth = calibrated_threshold(scores, 0.1)  # ⌊0.1 · 20⌋ = 2
    assert tenth is not None
    assert 18 < tenth.value < 18.00001


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3)])
def test_too_few_images_give_the_nearest_rate(rate: float, needed: int) -> None:
    assert n_calibration_needed(rate) == needed
    enough = calibrated_threshold(np.arange(needed, dtype=np.float32), rate)
    assert enough is not None
    assert enough.false_alarm_rate == rate
    few = calibrated_threshold(np.arange(needed - 1, dtype=np.float32), rate)
    if needed == 1:
        assert few is None
        return
    assert few is not None
    assert few.false_alarm_rate == 1 / needed  # more than the rate that was asked for
    assert needed - 2 < few.value < needed - 1.9  # above all scores
    assert few.n_calibration == needed - 1


@pytest.mark.parametrize("n", [19, 60, 333])
@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("scores_of", DISTRIBUTIONS)
def test_keeps_its_promise_over_simulated_draws(n: int, rate: float, scores_of: str) -> None:
    rng = np.random.default_rng(0)

    rates = []
    for _ in range(200):
        threshold = calibrated_threshold(draw_scores(rng, n, scores_of), rate)
        assert threshold is not None
        rates.append(np.mean(draw_scores(rng, 2000, scores_of) >= threshold.value))
    error = np.std(rates) / np.sqrt(200)
    assert np.mean(rates) <= rate + 3 * error
    if scores_of != "with ties":  # the rate is exact to 1 / (n + 1)
        assert np.mean(rates) >= rate - 1 / (n + 1) - 3 * error


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.floats(0.01, 0.5),
)
def test_the_share_of_calibration_images_above_it_is_within_the_promise(
    scores: list[float], rate: float
) -> None:
    array = np.float32(scores)
    threshold = calibrated_threshold(array, rate)
    assert threshold is not None
    promised = max(rate, 1 / (len(scores) + 1))
    assert threshold.false_alarm_rate == promised
    assert np.sum(threshold.alarms(array)) <= promised * (len(scores) + 1) - 1 + 1e-6
    # Comparisons in float32 and float64 agree, also for the next larger scores.
    following = np.nextafter(array, np.float32(np.inf))
    for values in (array, following):
        np.testing.assert_array_equal(threshold.alarms(values), values >= threshold.value)


@pytest.mark.parametrize("trained_by", ["trained", "trained_core"])
def test_keeps_its_promise_with_scores_of_each_detector(
    trained_by: str, request: pytest.FixtureRequest
) -> None:
    """Each of 200 draws calibrates on 39 good images and counts alarms on the other 261."""
    detector = TrainedDetector.restore(request.getfixturevalue(trained_by), calibrated=False)
    rng = np.random.default_rng(0)
    size = detector.image_size
    grey = rng.integers(90, 160, (300, size, size, 1), dtype=np.uint8)
    scores = detector.score(np.repeat(grey, 3, axis=3)).scores
    rates = []
    for _ in range(200):
        order = rng.permutation(300)
        threshold = calibrated_threshold(scores[order[:39]], 0.1)
        assert threshold is not None
        rates.append(threshold.alarms(scores[order[39:]]).mean())
    error = np.std(rates) / np.sqrt(200)
    assert np.mean(rates) <= 0.1 + 3 * error
    assert np.mean(rates) >= 0.05  # the promise is not kept by a threshold that nothing reaches
