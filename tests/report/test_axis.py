"""The tick marks of the score axis."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet_jax.report.axis import score_axis, tick_label
from devnet_jax.report.outcomes import Group


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.07, 0.15),  # within a decade
        (2.1, 2.9),
        (-40.0, -31.0),  # far from 0
        (-5.1, -0.2),
        (0.99991, 0.99999),
        (1234.56701, 1234.56709),  # differ in the ninth digit
        (-3.0, 5000.0),
        (0.0, 1.0),
        (0.0, 0.0),
        (7.0, 7.0),
        (1e-9, 1e6),
    ],
)
def test_tick_labels_do_not_overlap_for_typical_scores(low, high):
    axis = score_axis([Group("good", False, np.linspace(low, high, 30))], [])
    require_ticks(axis)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e4, 1e4, width=32),
    st.floats(1e-5, 1e4),
    st.floats(0, 1e4),
    st.booleans(),
)
def test_tick_labels_do_not_overlap_for_any_scores(low, spread, outlier, known):
    spread = max(spread, 1e-5 * abs(low))
    scores = np.sort([*np.linspace(low, low + spread, 20), low + spread + outlier])
    require_ticks(score_axis([Group("", False if known else None, scores)], []))


def require_ticks(axis) -> None:
    ticks = sorted(axis.ticks())
    assert 2 <= len(ticks) <= 15
    assert axis.low <= ticks[0] < ticks[-1] <= axis.high
    labels = [tick_label(x) for x in ticks]
    assert len({*labels}) == len(labels)
    assert [float(label) for label in labels] == pytest.approx(ticks, rel=1e-11)
    positions = axis.position(np.array(ticks))
    shares = np.diff(positions) / (axis.position(axis.high) - axis.position(axis.low))
    # A character has about 0.02 of the width of the axis.
    for share, (left, right) in zip(shares, itertools.pairwise(labels), strict=True):
        assert share > 0.02 * (len(left) + len(right)) / 2


def test_ticks_of_a_long_axis_are_round():
    axis = score_axis([Group("good", False, np.linspace(-1, 1, 101)),
                       Group("cut", True, np.array([1000.0]))], [])  # fmt: skip
    assert {0, 1, 10, 100, 1000} <= {*axis.ticks()}
