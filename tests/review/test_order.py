"""The order in which a review shows pictures, by hand."""

from __future__ import annotations

import numpy as np

from devnet_jax.review.order import DISAGREES, NEAR, NOVEL, UNSCORED, Suggestion, teaching_order


def order(scores: list[float], **flags: list[int]) -> list[Suggestion]:
    """Returns the order for a threshold of 2; `flags` name the pictures that have them."""
    n = len(scores)
    masks = {name: np.isin(np.arange(n), flags.get(name, [])) for name in ("seen", "like", "again")}
    return teaching_order(np.array(scores), masks["seen"], masks["like"], masks["again"], 2.0)


def test_new_defects_and_doubtful_pictures_take_turns() -> None:
    #                 0    1    2    3     4
    found = order([9.0, 1.9, 2.5, 5.0, -1.0])
    assert found == [(0, NOVEL), (1, NEAR), (3, NOVEL), (2, NEAR), (4, NEAR)]


def test_alarms_like_a_labelled_defect_teach_little() -> None:
    found = order([9.0, 1.9, 2.5, 5.0, -1.0], like=[0])
    assert found == [(3, NOVEL), (1, NEAR), (2, NOVEL), (4, NEAR), (0, NEAR)]


def test_pictures_that_were_looked_at_come_only_if_the_detector_disagrees() -> None:
    found = order([9.0, 1.9, 2.5, 5.0, -1.0], seen=[0, 1, 4], again=[4, 0])
    assert found == [(3, NOVEL), (2, NEAR), (0, DISAGREES), (4, DISAGREES)]


def test_pictures_without_a_score_come_last() -> None:
    found = order([np.nan, 1.9, np.nan, 5.0], seen=[2])
    assert found == [(3, NOVEL), (1, NEAR), (0, UNSCORED)]
