"""The board of a review: labels, scores, filters and what has changed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from devnet_jax.inference.scores import Scores
from devnet_jax.review.board import Board
from devnet_jax.review.journal import Label

NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png")


def scores(values: list[float], threshold: float = 2.0, reason: str = "") -> Scores:
    found = np.array(values, np.float32)
    alarms = found >= threshold
    reasons = [reason if alarm else "" for alarm in alarms]
    return Scores(found, np.zeros((len(found), 1, 1)), None, alarms, reasons)


@pytest.fixture
def board() -> Board:
    """A board of five pictures, scored by a first detector."""
    board = Board(NAMES, {}, {})
    board.begin(2.0)
    board.take(range(5), scores([0.5, 3, 1.5, 2.5, -1], reason="unlike the good parts"))
    return board


def shown(board: Board, show: str, order: str = "name") -> list[int]:
    return [picture["id"] for picture in board.page(order, show, 0, 100)["pictures"]]


def test_filters_by_label(board: Board) -> None:
    board.label([1, 3], Label("anomaly", "dent"))
    board.label([0], Label("good"))
    board.label([4], Label("skip"))
    assert shown(board, "anomaly") == [1, 3]
    assert shown(board, "good") == [0]
    assert shown(board, "skipped") == [4]
    assert shown(board, "unseen") == [2]
    assert shown(board, "all") == [0, 1, 2, 3, 4]
    summary = board.summary()
    assert (summary["n_looked"], summary["n_good"], summary["n_skipped"]) == (4, 1, 1)
    assert summary["kinds"] == {"dent": 2}
    board.label([1], Label(""))
    assert shown(board, "unseen") == [1, 2]
    assert board.summary()["n_looked"] == 3


def test_order_and_parts_of_a_list(board: Board) -> None:
    assert shown(board, "all", "score") == [1, 3, 2, 0, 4]
    part = board.page("score", "all", 1, 2)
    assert part["total"] == 5
    assert [picture["id"] for picture in part["pictures"]] == [3, 2]
    first = board.page("teach", "all", 0, 1)["pictures"][0]
    assert (first["id"], first["alarm"], first["score"]) == (1, True, 3.0)
    assert first["why"]


def test_pictures_that_change_sides_between_detectors(board: Board) -> None:
    board.begin(1.0)
    assert board.n_pending == 5
    board.take([2, 3, 4], scores([1.5, 0.5, -1], threshold=1.0))
    changed = {p["name"]: p["changed"] for p in board.page("name", "changed", 0, 9)["pictures"]}
    assert changed == {"c.png": "now an alarm", "d.png": "no alarm any more"}
    assert board.n_pending == 2
    assert board.picture(1)["changed"] == ""  # not scored by the second detector yet
    board.begin(1.0)
    assert shown(board, "changed") == []


def test_labels_that_the_detector_contradicts(board: Board) -> None:
    board.label([1], Label("good"))  # scored 3, an alarm
    board.label([0], Label("anomaly", "dent"))  # scored 0.5
    board.label([3], Label("anomaly", "dent"))  # scored 2.5
    assert shown(board, "disagree") == [0, 1]
    # They have just been labelled, and come again only after the detector has learned.
    assert {0, 1}.isdisjoint(shown(board, "unseen", "teach"))
    board.begin(2.0)
    board.take(range(5), scores([0.5, 3, 1.5, 2.5, -1]))
    teaching = board.page("teach", "disagree", 0, 9)["pictures"]
    assert [p["why"] for p in teaching] == ["your label and the detector disagree"] * 2


def test_least_sure_pictures_are_scored_first(board: Board) -> None:
    board.begin(2.0)
    assert board.next_pending(2) == [2, 3]  # 1.5 and 2.5 were nearest to 2


def test_unreadable_pictures_are_named_and_left_out() -> None:
    errors = {1: "b.png: is empty", 7: "of the run: is gone"}
    board = Board(NAMES, {}, errors)
    board.begin(2.0)
    assert board.next_pending(9) == [0, 2, 3, 4]
    assert json.loads(json.dumps(board.summary()))["n_pending"] == 4
    board.take(range(5), scores([0.0] * 5))
    assert (board.picture(1)["score"], board.picture(1)["reason"]) == (None, "b.png: is empty")
    assert board.n_pending == 0
    assert shown(board, "unseen", "teach")[-1] == 1
