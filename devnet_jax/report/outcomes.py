"""What a threshold makes of scores: alarms, misses, and of which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devnet_jax.report.content import Picture, Report

# What becomes of an image at a threshold, by a short name and in words.
OUTCOMES = {
    "found": "anomaly found",
    "missed": "missed",
    "false-alarm": "false alarm",
    "passed": "normal, passed",
    "alarm": "alarm",
    "quiet": "no alarm",
    "undecided": "",  # as long as there is no threshold
}


@dataclass(frozen=True)
class Group:
    """All images of one class.

    Attributes:
      name: of the class, "" where it is unknown.
      is_anomaly: `None` where that is unknown.
      scores: float64 [n], ascending.
    """

    name: str
    is_anomaly: bool | None
    scores: np.ndarray

    def alarms(self, threshold: float) -> int:
        """How many score at least the threshold."""
        return len(self.scores) - int(np.searchsorted(self.scores, threshold))


@dataclass(frozen=True)
class Counts:
    """How many images come out how; the rates are `None` where they are of nothing."""

    found: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def false_alarm_rate(self) -> float | None:
        return _ratio(self.false_alarms, self.false_alarms + self.passed)

    @property
    def miss_rate(self) -> float | None:
        return _ratio(self.missed, self.missed + self.found)

    @property
    def recall(self) -> float | None:
        return _ratio(self.found, self.missed + self.found)

    @property
    def precision(self) -> float | None:
        return _ratio(self.found, self.found + self.false_alarms)

    @property
    def f1(self) -> float | None:
        return _ratio(2 * self.found, 2 * self.found + self.missed + self.false_alarms)


def group(report: Report) -> list[Group]:
    """The classes of a report's images, the normal ones first; one where nothing is known."""
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


def count(groups: Sequence[Group], threshold: float) -> Counts:
    """The outcomes over groups that are known to be normal or anomalous."""
    alarms, quiet = [0, 0], [0, 0]
    for one in groups:
        n = one.alarms(threshold)
        alarms[bool(one.is_anomaly)] += n
        quiet[bool(one.is_anomaly)] += len(one.scores) - n
    return Counts(found=alarms[1], missed=quiet[1], false_alarms=alarms[0], passed=quiet[0])


def outcome(picture: Picture, threshold: float | None) -> str:
    """A key of OUTCOMES."""
    if threshold is None:
        return "undecided"
    alarm = float(picture.score) >= threshold  # in float64, as the page compares
    if picture.label is None:
        return "alarm" if alarm else "quiet"
    if picture.label == 1:
        return "found" if alarm else "missed"
    return "false-alarm" if alarm else "passed"


def worst_mistakes(
    pictures: Sequence[Picture], threshold: float | None, limit: int = 12
) -> tuple[list[Picture], list[Picture]]:
    """The missed anomalies and the false alarms farthest from the threshold, the farthest first.

    Of each kind there are at least half of `limit`, if there are so many; without a threshold
    there are none.
    """
    ascending = sorted(pictures, key=lambda picture: picture.score)
    missed = [p for p in ascending if outcome(p, threshold) == "missed"]
    false_alarms = [p for p in reversed(ascending) if outcome(p, threshold) == "false-alarm"]
    missed = missed[: max(limit // 2, limit - len(false_alarms))]
    return missed, false_alarms[: limit - len(missed)]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
