"""The page that compares two detectors on the same pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from devnet_jax.evaluation.intervals import auroc_interval
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.axis import ScoreAxis, score_axis
from devnet_jax.report.charts import draw_scatter, make_series
from devnet_jax.report.digits import (
    decimals_within,
    format_measure,
    format_rate,
    format_score,
    format_threshold,
)
from devnet_jax.report.html.template import render
from devnet_jax.report.outcomes import Group

MAX_CHANGED = 500  # pictures shown
# Changes of side by their names in compare.json, those in which A is right first.
CHANGES = {
    "missed_to_found": "found by A, missed by B",
    "false_alarm_to_passed": "passed by A, false alarm of B",
    "found_to_missed": "missed by A, found by B",
    "passed_to_false_alarm": "false alarm of A, passed by B",
}
BETTER = tuple(CHANGES)[:2]


@dataclass(frozen=True)
class Side:
    """One of the two detectors.

    Attributes:
      name: detector and its path, in words.
      scores: float64 [N], scores as written.
      threshold: threshold in force; `None` if there is none.
    """

    name: str
    scores: np.ndarray
    threshold: Threshold | None


@dataclass(frozen=True)
class ChangedPicture:
    """A picture that changed sides.

    Attributes:
      path: path that is shown.
      defect: class of the picture.
      change: key of `CHANGES`.
      scores: its scores by A and B.
      views: its overlays by A and B, or the picture itself, as thumbnails.
    """

    path: str
    defect: str
    change: str
    scores: tuple[float, float]
    views: tuple[bytes, bytes]


@dataclass(frozen=True)
class Comparison:
    """Content of the page.

    Attributes:
      subtitle: pictures, date and machine.
      sides: the detectors A and B.
      labels: int [N], 0 normal or 1 anomalous.
      defects: class of each of the N pictures.
      results: content of compare.json.
      notes: warnings, as sentences.
      changed: pictures that changed sides, at most `MAX_CHANGED`.
    """

    subtitle: str
    sides: tuple[Side, Side]
    labels: np.ndarray
    defects: Sequence[str]
    results: Mapping[str, Any]
    notes: Sequence[str]
    changed: Sequence[ChangedPicture]


def describe_difference(results: Mapping[str, Any]) -> str:
    """Returns the paired difference of the AUROCs with its interval, in words.

    Args:
      results: content of compare.json, with the difference.
    """
    text, interval = _difference(results)
    if "auroc_difference_low" not in results:
        return f"{text}, without an interval: it needs two pictures of each side"
    return f"{text} (95% interval {interval}, p = {results['auroc_p_value']:.2g})"


def _difference(results: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the difference of the AUROCs and its interval as texts; empty if not measured."""
    if "auroc_difference" not in results:
        return "", ""
    low, high = results.get("auroc_difference_low"), results.get("auroc_difference_high")
    return format_difference(results["auroc_difference"], low, high)


def format_difference(difference: float, low: float | None, high: float | None) -> tuple[str, str]:
    """Returns a difference of AUROCs and its interval as texts, with the digits it supports.

    Args:
      difference: AUROC of A minus that of B.
      low: lower end of its interval; `None` without one, as "–".
      high: upper end.
    """
    if low is None or high is None:
        return signed(difference, 2), "–"
    decimals = decimals_within(low, high)
    return signed(difference, decimals), f"{signed(low, decimals)} to {signed(high, decimals)}"


def signed(difference: float, decimals: int) -> str:
    """Returns a difference with its sign and decimals, or more of them if it would look like 0."""
    if abs(difference) < 1e-9:
        return "0"
    text = f"{difference:+.{decimals}f}"
    if float(text) == 0:
        return signed(difference, decimals + 1)
    return text.replace("-", "\N{MINUS SIGN}")


def verdict(results: Mapping[str, Any]) -> str:
    """Returns the sentence that says what the interval of the difference allows to conclude."""
    low, high = results.get("auroc_difference_low"), results.get("auroc_difference_high")
    if low is None or high is None:
        return "Too few pictures to say which detector ranks better."
    if low == high == 0:
        return "Both detectors rank these pictures equally well, pair by pair."
    if low <= 0 <= high:
        return "The interval contains 0: these pictures do not show which detector ranks better."
    better, other = ("A", "B") if results["auroc_difference"] > 0 else ("B", "A")
    return f"The interval excludes 0: {better} ranks these pictures better than {other}."


def to_html(comparison: Comparison) -> str:
    """Returns a self-contained page that can be read without JavaScript, of which it has none."""
    labels = np.asarray(comparison.labels)
    keys = [(bool(label), defect) for label, defect in zip(labels, comparison.defects, strict=True)]
    axes = [_axis(side, keys) for side in comparison.sides]
    groups = _groups(comparison.sides[0].scores, keys)
    series = make_series(groups)
    colour_of = {
        (bool(group.is_anomaly), group.name): one.colour for one, part in series for group in part
    }
    thresholds = [side.threshold.value if side.threshold else None for side in comparison.sides]
    chart = draw_scatter(
        comparison.sides[0].scores,
        comparison.sides[1].scores,
        np.array([colour_of[key] for key in keys]),
        (axes[0], axes[1]),
        (thresholds[0], thresholds[1]),
        ("A", "B"),
    )
    changed = sorted(comparison.changed, key=lambda one: list(CHANGES).index(one.change))
    return render(
        "report/comparison.html.jinja",
        comparison=comparison,
        results=comparison.results,
        n=len(labels),
        verdict=verdict(comparison.results) if "auroc_difference" in comparison.results else "",
        chart=chart,
        key=[one for one, _ in series],
        changes=CHANGES,
        groups=[
            ("Better with A", [one for one in changed if one.change in BETTER]),
            ("Worse with A", [one for one in changed if one.change not in BETTER]),
        ],
        outcome_of=_outcome_of,
        thresholds=[
            format_threshold(side.threshold.value, side.scores) if side.threshold else ""
            for side in comparison.sides
        ],
        measured=lambda auroc, n_anomaly: format_measure(
            auroc, auroc_interval(auroc, comparison.results["n_normal"], n_anomaly)
        ),
        rate=lambda name, n: format_rate(comparison.results[name], n) if n else "–",
        difference=_difference(comparison.results),
        difference_of=format_difference,
        format_score=format_score,
        data_uri=lambda data: f"data:image/webp;base64,{base64.b64encode(data).decode()}",
    )


def _outcome_of(change: str, side: int) -> str:
    """Returns the outcome of a changed picture for A (0) or B (1), such as "false alarm"."""
    before, after = change.split("_to_")
    return (after, before)[side].replace("_", " ")


def _groups(scores: np.ndarray, keys: Sequence[tuple[bool, str]]) -> list[Group]:
    members: dict[tuple[bool, str], list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return [
        Group(name, is_anomaly, np.sort(scores[members[is_anomaly, name]]))
        for is_anomaly, name in sorted(members)
    ]


def _axis(side: Side, keys: Sequence[tuple[bool, str]]) -> ScoreAxis:
    return score_axis(_groups(side.scores, keys), [side.threshold.value] if side.threshold else [])
