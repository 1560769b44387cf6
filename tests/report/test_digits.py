"""Texts of numbers: by hand, and for any score and threshold that they do not contradict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devnet_jax.report.digits import (
    format_measure,
    format_rate,
    format_score,
    format_severity,
    format_threshold,
)

scores = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.0117, "0.01170"),
        (1.25, "1.250"),
        (-3.14159, "-3.142"),
        (12.3456, "12.35"),
        (1234.56, "1235"),
        (123456.7, "123457"),
        (0.0, "0.000"),
        (-1e-9, "0.000000"),
        (0.000031234, "0.000031"),
    ],
)
def test_scores_have_four_significant_digits(score: float, text: str) -> None:
    assert format_score(score) == text


def test_a_score_close_to_the_threshold_has_more_digits() -> None:
    assert format_score(1.2496, 1.25) == "1.2496"
    assert format_score(1.25004, 1.25) == "1.25004"
    assert format_score(1.2504, 1.25) == "1.2504"  # with three decimals it would be at 1.250
    assert format_score(1.25, 1.25) == "1.250"
    assert format_score(1.3, 1.25) == "1.300"


@given(scores, scores)
@example(1.0, float(np.nextafter(np.float32(1), np.float32(2))))
@example(-1e-9, 0.0)
def test_no_score_looks_like_a_threshold_that_it_differs_from(score: float, other: float) -> None:
    for threshold in (other, float(np.float32(np.nextafter(np.float32(score), np.inf)))):
        text = format_score(score, threshold)
        assert score == threshold or text != format_score(threshold)
        assert (float(text) >= threshold) == (score >= threshold)


@given(st.lists(scores, min_size=1, max_size=8), st.floats(-1e4, 1e4))
def test_the_threshold_as_shown_has_the_same_alarms_as_the_threshold(
    found: list[float], threshold: float
) -> None:
    close = np.float32(found[0])
    values = np.array([*found, np.nextafter(close, np.float32(np.inf))], np.float64)
    for one in (threshold, float(close)):
        shown = format_threshold(one, values)
        assert np.array_equal(values >= float(shown), values >= one)
        for value in values.tolist():
            text = format_score(value, float(shown))
            assert (float(text) >= float(shown)) == (value >= one)


def test_thresholds_have_four_digits_unless_scores_are_close() -> None:
    assert format_threshold(3.4512786, np.array([-1.0, 3.2, 3.7])) == "3.451"
    # 3.451 would make an alarm of the second score; 3.4513 is above it, as the threshold is.
    assert format_threshold(3.4512786, np.array([3.2, 3.4512, 3.7])) == "3.4513"
    assert format_threshold(3.4512786, np.array([3.4512785, 3.4512787])) == "3.4512786"
    assert format_threshold(0.5, np.array([])) == "0.5000"
    # A threshold at a score: 0.9936 would be above it.
    assert format_threshold(0.9935961, np.array([0.9935961, 2.0])) == "0.993596"


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.9891, (0.9412, 0.9981), "0.99 (0.94–1.00)"),
        (0.9962, (0.9412, 0.9995), "0.996 (0.94–1.00)"),  # only 1 is shown as 1
        (1.0, (0.93, 1.0), "1.00 (0.93–1.00)"),
        (1 - 2**-53, (0.93, 1.0), "1.00 (0.93–1.00)"),  # a sum of shares that is 1
        (0.8125, (0.6011, 0.9262), "0.81 (0.60–0.93)"),
        (0.99213, (0.98412, 0.99713), "0.992 (0.984–0.997)"),
        (0.99213, (0.99156, 0.99262), "0.9921 (0.9916–0.9926)"),
        (0.5, (0.0, 1.0), "0.50 (0.00–1.00)"),
        (0.96543, None, "0.97"),
        (0.03124, None, "0.031"),
        (0.99996, None, "0.99996"),
        (1.0, None, "1.00"),
    ],
)
def test_measures_have_the_digits_of_their_interval(
    value: float, interval: tuple[float, float] | None, text: str
) -> None:
    assert format_measure(value, interval) == text


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [
        # The intervals are Wilson's, as by `statsmodels.stats.proportion.proportion_confint`.
        (1, 20, "5.0% (1 of 20; 0.9–24%)"),
        (0, 20, "0% (0 of 20; 0–16%)"),
        (19, 20, "95.0% (19 of 20; 76–99.1%)"),
        (5, 10, "50% (5 of 10; 24–76%)"),
        (11, 49, "22% (11 of 49; 13–36%)"),
        (0, 0, "– (0 of 0)"),
        (52, 10_000, "0.52% (52 of 10,000; 0.4–0.7%)"),
        (1234, 10_000, "12.3% (1,234 of 10,000; 11.7–13.0%)"),
    ],
)
def test_rates_have_counts_intervals_and_their_digits(count: int, total: int, text: str) -> None:
    assert str(format_rate(count, total)) == text


def test_severities_are_on_the_right_side_of_a_half() -> None:
    assert format_severity(0.9312, True) == "0.93"
    assert format_severity(0.0, False) == "0.00"
    assert format_severity(0.5, True) == "0.50"
    assert format_severity(0.4996, False) == "0.4996"
    assert format_severity(0.49999971, False) == "0.4999997"


@given(st.floats(0, 1), st.booleans())
@example(0.49999999999999994, False)
@example(0.5, False)
def test_no_severity_contradicts_the_alarm(severity: float, is_alarm: bool) -> None:
    assert (float(format_severity(severity, is_alarm)) >= 0.5) == is_alarm
