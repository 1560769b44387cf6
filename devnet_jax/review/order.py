"""The order in which pictures are looked at: those first from which a detector learns most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Suggestion(NamedTuple):
    """A picture to look at next, and the reason for it."""

    picture: int
    why: str


NOVEL = "unlike anything labelled so far"
NEAR = "near the threshold"
DISAGREES = "your label and the detector disagree"
UNSCORED = "not scored yet"


def teaching_order(
    scores: np.ndarray,
    seen: np.ndarray,
    like_labelled: np.ndarray,
    disagrees: np.ndarray,
    threshold: float,
) -> list[Suggestion]:
    """Orders pictures by what looking at them teaches.

    Three lists take turns: alarms that are like no labelled anomaly, the highest score first, which
    find new kinds of defects; pictures nearest the threshold, of which the detector is least sure;
    and labelled pictures that the detector takes for the opposite, which may be labelled by
    mistake. Pictures without a score come last.

    Args:
      scores: float [N], NaN where there is none yet.
      seen: bool [N], True for pictures that have been looked at.
      like_labelled: bool [N], True for pictures that are like a labelled anomaly.
      disagrees: bool [N], True for labelled pictures to look at once more.
      threshold: threshold in force.
    """
    scored = np.isfinite(scores)
    fresh = scored & ~seen
    novel = np.flatnonzero(fresh & (scores >= threshold) & ~like_labelled)
    near = np.flatnonzero(fresh)
    again = np.flatnonzero(disagrees & scored)
    lists = (
        (NOVEL, novel[np.argsort(-scores[novel], kind="stable")]),
        (NEAR, near[np.argsort(np.abs(scores[near] - threshold), kind="stable")]),
        (DISAGREES, again[np.argsort(-np.abs(scores[again] - threshold), kind="stable")]),
    )
    unscored = [Suggestion(i, UNSCORED) for i in np.flatnonzero(~scored & ~seen).tolist()]
    return [*_in_turn(lists), *unscored]


def _in_turn(lists: tuple[tuple[str, np.ndarray], ...]) -> Iterator[Suggestion]:
    """Yields one picture of each list in turn, each picture once."""
    done: set[int] = set()
    queues = [(why, iter(pictures.tolist())) for why, pictures in lists]
    while queues:
        for queue in list(queues):
            why, pictures = queue
            picture = next(itertools.filterfalse(done.__contains__, pictures), None)
            if picture is None:
                queues.remove(queue)
                continue
            done.add(picture)
            yield Suggestion(picture, why)
