"""Renders a report as one HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn import metrics

from devnet_jax.evaluation.intervals import auroc_interval
from devnet_jax.evaluation.metrics import image_metrics
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report import charts
from devnet_jax.report.axis import score_axis
from devnet_jax.report.content import LabelledAnomalies, Picture, Report
from devnet_jax.report.digits import (
    Rate,
    format_measure,
    format_rate,
    format_score,
    format_severity,
    format_threshold,
)
from devnet_jax.report.html.template import render
from devnet_jax.report.outcomes import (
    LABELLED_OUTCOMES,
    OUTCOMES,
    Counts,
    Group,
    count_outcomes,
    group_by_class,
    outcome,
    worst_mistakes,
)

_MAX_SCORES = 100_000  # stored in the page to count alarms
_MAX_ERRORS = 1000  # listed in the page
# Settings of the data's location, which are not listed as changed or unchanged.
_LOCATION_SETTINGS = tuple(
    f"dataset.{name}" for name in ("name", "category", "manual_dir", "labels", "data_dir")
)
_SCALED = (
    "scaled from 0 to 1 for each image. It shows where, not how much: a normal image has a "
    "brightest spot, too."
)
_HEAT_MAPS = {  # by explanation, preceded by the detector if it matters
    "gradient": "How strongly each pixel influences the score: the gradient of the score with "
    f"respect to the image, smoothed and {_SCALED}",
    "smoothgrad": "How strongly each pixel influences the score: the gradient of the score with "
    f"respect to the image, averaged over noisy copies and {_SCALED}",
    "score_map": "What each position of the network's score map adds to the score, enlarged to the "
    "size of the image.",
    "devcore score_map": "How far each position is from the nearest good one, as learned, in "
    "standard deviations of normal training images; enlarged to the size of the image and "
    "smoothed. The colours end at the image's own maximum, or at the margin if that is higher.",
}


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold that the page offers.

    Attributes:
      name: name of the threshold.
      promise: promised false-alarm rate as text, or "".
      value: threshold.
      text: threshold as text, which divides the scores as the threshold does.
      counts: numbers of images by outcome.
      n_alarms: number of alarms.
    """

    name: str
    promise: str
    value: float
    text: str
    counts: Counts
    n_alarms: int

    @property
    def rates(self) -> dict[str, Rate]:
        return _rates(self.counts, self.n_alarms)


@dataclass(frozen=True)
class ClassRow:
    """A row of the table of classes.

    Attributes:
      name: name of the class.
      group: index of the class among the groups.
      is_anomaly: True for a defect class.
      n: number of images.
      median: median score.
      alarms: number of alarms.
      auroc: AUROC against all normal images; `None` for normal images or without any.
      pixel_auroc: mean pixel AUROC; `None` if there is none.
    """

    name: str
    group: int
    is_anomaly: bool
    n: int
    median: float
    alarms: int
    auroc: float | None
    pixel_auroc: float | None

    @property
    def missed(self) -> Rate:
        return format_rate(self.n - self.alarms, self.n)


@dataclass(frozen=True)
class LabelledKind:
    """Pictures of the labelled anomalies of one kind.

    Attributes:
      name: name of the kind.
      cards: the pictures, lowest score first.
      n_missed: number of those below the initial threshold; `None` without a threshold.
    """

    name: str
    cards: Sequence[Card]
    n_missed: int | None


@dataclass(frozen=True)
class Card:
    """A picture of the gallery.

    Attributes:
      picture: picture with its score.
      group: index of its class among the groups, or of the labelled kinds.
      outcome: outcome at the initial threshold, a key of OUTCOMES.
    """

    picture: Picture
    group: int
    outcome: str


def to_html(report: Report) -> str:
    """Returns a self-contained page that can be encoded as UTF-8.

    It loads nothing from other files or the network, and can be read without JavaScript. It is
    smaller than 20 MB with `MAX_PICTURES` pictures from `devnet_jax.report.thumbnails`.
    """
    groups = group_by_class(report)
    labelled = report.labels is not None
    kinds = {group.is_anomaly for group in groups}
    both = kinds == {False, True}
    choices = [
        _make_choice(_threshold_name(threshold), _promised_rate(threshold), threshold.value, groups)
        for threshold in report.thresholds
    ]
    if both:
        assert report.labels is not None
        best = image_metrics(report.labels, report.scores)["image_f1_max_threshold"]
        choices.append(_make_choice("best F1", "", best, groups))
    threshold = choices[0].value if choices else None
    axis = score_axis(groups, [choice.value for choice in choices])
    start = axis.high if threshold is None else threshold  # axis.high gives no alarms
    counts = count_outcomes(groups, start)
    n_alarms = sum(group.alarms(start) for group in groups)
    named = [name for name, _ in report.numbers]
    indices = {(group.name, group.is_anomaly): i for i, group in enumerate(groups)}
    cards = [
        Card(picture, indices[picture.defect, picture.is_anomaly], outcome(picture, threshold))
        for picture in sorted(report.pictures, key=lambda picture: -picture.score)
    ]
    labelled_kinds = _group_labelled(report.labelled_anomalies, threshold)
    all_pictures = [
        *report.pictures,
        *(report.labelled_anomalies.pictures if report.labelled_anomalies else ()),
    ]
    missed, false_alarms = worst_mistakes(report.pictures, threshold)
    by_picture = {id(card.picture): card for card in cards}
    step = math.ceil(len(report.scores) / _MAX_SCORES)
    has_overlays = any(picture.overlay is not None for picture in all_pictures)
    settings = [row for row in report.settings if row[0] not in _LOCATION_SETTINGS]
    return render(
        "report/report.html.jinja",
        report=report,
        n=len(report.scores),
        labelled=labelled,
        both=both,
        has_normal=False in kinds,
        has_anomaly=True in kinds,
        threshold=threshold,
        n_good=report.n_good,
        threshold_text=choices[0].text if choices else "",
        start=start,
        choices=choices,
        counts=counts,
        n_alarms=n_alarms,
        rates=_rates(counts, n_alarms),
        named=named,
        n_normal=counts.false_alarms + counts.passed,
        has_pixel_auroc=bool(report.pixel_auroc) or "pixel AUROC, mean" in named,
        share_anomalous=float(np.mean(np.asarray(report.labels) == 1)) if labelled else 0.0,
        axis=axis,
        classes=_make_class_rows(groups, start, report) if labelled else [],
        cards=cards,
        views=max((_n_views(picture) for picture in all_pictures), default=1),
        labelled_kinds=labelled_kinds,
        labelled_outcomes=LABELLED_OUTCOMES,
        missed=[by_picture[id(picture)] for picture in missed],
        false_alarms=[by_picture[id(picture)] for picture in false_alarms],
        outcomes=OUTCOMES,
        histogram=charts.draw_histogram(groups, report.prior, report.thresholds, axis),
        key=[entry for entry, _ in charts.make_series(groups)],
        curves=[
            draw(report.labels, report.scores)
            for draw in (charts.draw_roc, charts.draw_precision_recall)
            if both and report.labels is not None
        ],
        training=charts.draw_training(report.history),
        groups=groups,
        exactness=step // 2,
        data={
            "threshold": threshold,
            "typical": report.typical,
            "width": axis.linear_width,
            "step": step,
            "groups": [_sample_scores(group, step) for group in groups],
            "outcomes": OUTCOMES,
            "labelled_outcomes": LABELLED_OUTCOMES,
            "kinds": report.labelled_kinds,
            "identity": _identity(report),
        },
        errors=report.errors[:_MAX_ERRORS],
        changed=[row for row in settings if row[1] != row[2]],
        unchanged=[row for row in settings if row[1] == row[2]],
        heat_map=_describe_heat_map(report) if has_overlays else "",
        has_reasons=any(picture.reason for picture in report.pictures),
        has_odd=any(picture.odd for picture in report.pictures),
        data_uri=_data_uri,
        format_measure=format_measure,
        auroc_interval=auroc_interval,
        plural=_plural,
        p_value=_p_value,
        format_score=format_score,
        format_severity=format_severity,
        shell_quote=shlex.quote,
        asdict=asdict,
    )


def _make_choice(name: str, promise: str, value: float, groups: Sequence[Group]) -> ThresholdChoice:
    n_alarms = sum(group.alarms(value) for group in groups)
    text = format_threshold(value, np.concatenate([group.scores for group in groups]))
    counts = count_outcomes(groups, value)
    return ThresholdChoice(name, promise, float(value), text, counts, n_alarms)


def _rates(counts: Counts, n_alarms: int) -> dict[str, Rate]:
    """Returns the rates of a threshold by name, as texts."""
    n_normal, n_anomaly = counts.false_alarms + counts.passed, counts.found + counts.missed
    return {
        "false_alarm_rate": format_rate(counts.false_alarms, n_normal),
        "miss_rate": format_rate(counts.missed, n_anomaly),
        "precision": format_rate(counts.found, counts.found + counts.false_alarms),
        "alarm_share": format_rate(n_alarms, n_normal + n_anomaly),
    }


def _threshold_name(threshold: Threshold) -> str:
    if threshold.kind == "prior" and threshold.false_alarm_rate is not None:
        return f"prior, {100 * (1 - threshold.false_alarm_rate):.6g}%"
    return threshold.kind


def _promised_rate(threshold: Threshold) -> str:
    if threshold.false_alarm_rate is None:
        return ""
    rate = f"{100 * threshold.false_alarm_rate:.3g}%"
    if threshold.n_calibration is None:
        return f"{rate} of the prior"
    return f"at most {rate}, on average" if threshold.kind == "calibrated" else f"about {rate}"


def _make_class_rows(groups: Sequence[Group], threshold: float, report: Report) -> list[ClassRow]:
    """Makes the table of classes: normal images first, then the defects by ascending AUROC."""
    normal = [group.scores for group in groups if not group.is_anomaly]
    rows = [
        ClassRow(
            group.name,
            i,
            bool(group.is_anomaly),
            len(group.scores),
            float(np.median(group.scores)),
            group.alarms(threshold),
            _auroc(np.concatenate(normal), group.scores) if normal and group.is_anomaly else None,
            report.pixel_auroc.get(group.name) if group.is_anomaly else None,
        )
        for i, group in enumerate(groups)
    ]
    return sorted(rows, key=lambda row: (row.is_anomaly, row.auroc or 0, row.median, row.name))


def _group_labelled(
    labelled: LabelledAnomalies | None, threshold: float | None
) -> list[LabelledKind]:
    """Groups the labelled anomalies by kind, in the order of the kinds' names."""
    pictures = sorted(labelled.pictures if labelled else (), key=lambda picture: picture.score)
    rows = []
    for i, name in enumerate(sorted({picture.defect for picture in pictures})):
        of_kind = [picture for picture in pictures if picture.defect == name]
        cards = [Card(picture, i, outcome(picture, threshold)) for picture in of_kind]
        missed = sum(card.outcome == "missed" for card in cards)
        rows.append(LabelledKind(name, cards, None if threshold is None else missed))
    return rows


def _auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(metrics.roc_auc_score(labels, np.concatenate([normal, anomalous])))


def _n_views(picture: Picture) -> int:
    return 1 + (picture.overlay is not None) + (picture.mask is not None)


def _sample_scores(group: Group, step: int) -> dict[str, Any]:
    """Returns every step-th score of a group, from which the page counts alarms to ± step // 2."""
    return {
        "anomaly": group.is_anomaly,
        "n": len(group.scores),
        "scores": group.scores[::-1][step // 2 :: step].tolist(),
    }


def _identity(report: Report) -> str:
    """Returns a name of the report, under which the browser keeps the marks of its pictures."""
    scores = sorted((picture.path, picture.score) for picture in report.pictures)
    return hashlib.sha256(json.dumps([report.folder, scores]).encode()).hexdigest()[:32]


def _describe_heat_map(report: Report) -> str:
    of_detector = f"{report.detector} {report.explanation}"
    return _HEAT_MAPS.get(of_detector, _HEAT_MAPS.get(report.explanation, ""))


def _data_uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _p_value(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.3g}"
