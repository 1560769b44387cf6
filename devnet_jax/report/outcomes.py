"""Outcomes of a threshold: alarms and misses, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devnet_jax.report.content import Picture, Report

# Outcomes of an image at a threshold: key and text.
OUTCOMES = {
    "found": "anomaly found",
    "missed": "missed",
    "false-alarm": "false alarm",
    "passed": "normal, passed",
    "alarm": "alarm",
    "quiet": "no alarm",
    "undecided": "",  # without a threshold
}


# The same of a labelled anomaly, which the detector has learned from.
LABELLED_OUTCOMES = {"found": "would be found", "missed": "would be missed", "undecided": ""}


@dataclass(frozen=True)
class Group:
    """Scores of all images of one class.

    Attributes:
      name: name of the class; "" if unknown.
      is_anomaly: True for a defect class, False for normal images, `None` if unknown.
      scores: float64 [n], ascending.
    """

    name: str
    is_anomaly: bool | None
    scores: np.ndarray

    def alarms(self, threshold: float) -> int:
        """Returns the number of scores at or above a threshold."""
        return len(self.scores) - int(np.searchsorted(self.scores, threshold))


@dataclass(frozen=True)
class Counts:
    """Numbers of images by outcome; a rate of no images is `None`."""

    found: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def false_alarm_rate(self) -> float | None:
        return _ratio(self.false_alarms, self.false_alarms + self.passed)

    @property
    def recall(self) -> float | None:
        return _ratio(self.found, self.missed + self.found)

    @property
    def precision(self) -> float | None:
        return _ratio(self.found, self.found + self.false_alarms)

    @property
    def f1(self) -> float | None:
        return _ratio(2 * self.found, 2 * self.found + self.missed + self.false_alarms)


def group_by_class(report: Report) -> list[Group]:
    """Groups the scores of a report by class, normal images first; one group without labels."""
    scores = np.asarray(report.scores, np.float64)
    if report.labels is None or report.defects is None:
        return [Group("", None, np.sort(scores))]
    anomalous = (np.asarray(report.labels) == 1).tolist()
    members: dict[tuple[bool, str], list[int]] = {}
    for i, key in enumerate(zip(anomalous, report.defects, strict=True)):
        members.setdefault(key, []).append(i)
    return [
        Group(name, is_anomaly, np.sort(scores[members[is_anomaly, name]]))
        for is_anomaly, name in sorted(members)
    ]


def count_outcomes(groups: Sequence[Group], threshold: float) -> Counts:
    """Counts the outcomes of all images at a threshold."""
    alarms, quiet = [0, 0], [0, 0]
    for group in groups:
        n = group.alarms(threshold)
        alarms[bool(group.is_anomaly)] += n
        quiet[bool(group.is_anomaly)] += len(group.scores) - n
    return Counts(found=alarms[1], missed=quiet[1], false_alarms=alarms[0], passed=quiet[0])


def outcome(picture: Picture, threshold: float | None) -> str:
    """Returns the outcome of a picture, a key of OUTCOMES."""
    if threshold is None:
        return "undecided"
    alarm = float(picture.score) >= threshold  # in float64, like the script of the page
    if picture.label is None:
        return "alarm" if alarm else "quiet"
    if picture.label == 1:
        return "found" if alarm else "missed"
    return "false-alarm" if alarm else "passed"


def worst_mistakes(
    pictures: Sequence[Picture], threshold: float | None, limit: int = 12
) -> tuple[list[Picture], list[Picture]]:
    """Returns the missed anomalies and the false alarms, farthest from the threshold first.

    Both lists together have at most `limit` pictures. A list has fewer than half of `limit` only if
    there are no more. Without a threshold both are empty.
    """
    ascending = sorted(pictures, key=lambda picture: picture.score)
    missed = [p for p in ascending if outcome(p, threshold) == "missed"]
    false_alarms = [p for p in reversed(ascending) if outcome(p, threshold) == "false-alarm"]
    missed = missed[: max(limit // 2, limit - len(false_alarms))]
    return missed, false_alarms[: limit - len(missed)]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
