"""A report as one HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn import metrics

from devnet_jax.evaluation.metrics import image_metrics
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report import charts
from devnet_jax.report.axis import score_axis
from devnet_jax.report.content import Picture, Report
from devnet_jax.report.html.template import render
from devnet_jax.report.outcomes import (
    OUTCOMES,
    Counts,
    Group,
    count,
    group,
    outcome,
    worst_mistakes,
)

_MAX_SCORES = 100_000  # that the page holds to count with
_MAX_ERRORS = 1000  # that it lists
# Settings that say where the images lie: they differ from the defaults as a matter of course.
_PLACES = ("dataset.name", "dataset.category", "dataset.manual_dir", "dataset.data_dir")
_WHERE_NOT_HOW_MUCH = (
    "scaled for each image from 0 to 1. It says where, not how much: a normal image has a "
    "brightest place too."
)
_HEAT_MAPS = {
    "gradient": "How strongly each pixel sways the score: the gradient of the score with respect "
    f"to the image, smoothed and {_WHERE_NOT_HOW_MUCH}",
    "smoothgrad": "How strongly each pixel sways the score: the gradient of the score with respect "
    f"to the image, averaged over noisy copies and {_WHERE_NOT_HOW_MUCH}",
    "score_map": "What each place adds to the score, as the network's head has it, enlarged to the "
    "image.",
}


@dataclass(frozen=True)
class Choice:
    """A threshold that the page offers: how it is called, and what it promises."""

    name: str
    promise: str
    value: float
    counts: Counts
    n_alarms: int


@dataclass(frozen=True)
class Class:
    """A row of the table of classes; `None` is what cannot be said."""

    name: str
    group: int
    is_anomaly: bool
    n: int
    median: float
    alarms: int
    auroc: float | None
    pixel_auroc: float | None


@dataclass(frozen=True)
class Card:
    """A picture of the gallery at the threshold that the page begins with."""

    picture: Picture
    group: int
    outcome: str


def to_html(report: Report) -> str:
    """The page: it needs no file, no network and no script to be read; it can be written as UTF-8.

    It stays under 20 MB with `MAX_PICTURES` pictures whose thumbnails are of
    `devnet_jax.report.thumbnails`.
    """
    groups = group(report)
    labelled = report.labels is not None
    both = {one.is_anomaly for one in groups} == {False, True}
    choices = [_choice(_name(one), _promise(one), one.value, groups) for one in report.thresholds]
    if both:
        assert report.labels is not None
        best = image_metrics(report.labels, report.scores)["image_f1_max_threshold"]
        choices.append(_choice("best F1", "", best, groups))
    threshold = choices[0].value if choices else None
    axis = score_axis(groups, [choice.value for choice in choices])
    start = axis.high if threshold is None else threshold  # above all scores: no alarms
    indices = {(one.name, one.is_anomaly): i for i, one in enumerate(groups)}
    cards = [
        Card(picture, indices[picture.defect, picture.is_anomaly], outcome(picture, threshold))
        for picture in sorted(report.pictures, key=lambda picture: -picture.score)
    ]
    missed, false_alarms = worst_mistakes(report.pictures, threshold)
    by_picture = {id(card.picture): card for card in cards}
    step = math.ceil(len(report.scores) / _MAX_SCORES)
    has_overlays = any(picture.overlay is not None for picture in report.pictures)
    settings = [row for row in report.settings if row[0] not in _PLACES]
    return render(
        "report/report.html.jinja",
        report=report,
        n=len(report.scores),
        labelled=labelled,
        both=both,
        threshold=threshold,
        start=start,
        choices=choices,
        counts=count(groups, start),
        n_alarms=sum(one.alarms(start) for one in groups),
        axis=axis,
        classes=_classes(groups, start, report) if labelled else [],
        cards=cards,
        views=max((_n_views(picture) for picture in report.pictures), default=1),
        missed=[by_picture[id(picture)] for picture in missed],
        false_alarms=[by_picture[id(picture)] for picture in false_alarms],
        outcomes=OUTCOMES,
        histogram=charts.draw_histogram(groups, report.prior, report.thresholds, axis),
        key=[one for one, _ in charts.series(groups)],
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
            "width": axis.width,
            "step": step,
            "groups": [_samples(one, step) for one in groups],
            "outcomes": OUTCOMES,
        },
        errors=report.errors[:_MAX_ERRORS],
        changed=[row for row in settings if row[1] != row[2]],
        unchanged=[row for row in settings if row[1] == row[2]],
        heat_map=_HEAT_MAPS.get(report.explanation, "") if has_overlays else "",
        data_uri=_data_uri,
        rate=_rate,
        plural=_plural,
        p_value=_p_value,
        asdict=asdict,
    )


def _choice(name: str, promise: str, value: float, groups: Sequence[Group]) -> Choice:
    n_alarms = sum(one.alarms(value) for one in groups)
    return Choice(name, promise, float(value), count(groups, value), n_alarms)


def _name(threshold: Threshold) -> str:
    if threshold.kind == "prior":
        return f"prior, {100 * (1 - threshold.false_alarm_rate):.6g}%"
    return threshold.kind


def _promise(threshold: Threshold) -> str:
    rate = f"{100 * threshold.false_alarm_rate:.6g}%"
    return f"{rate} of the prior" if threshold.kind == "prior" else f"at most {rate}, on average"


def _classes(groups: Sequence[Group], threshold: float, report: Report) -> list[Class]:
    """The normal images first, then the defects, the hardest to tell first."""
    normal = [one.scores for one in groups if not one.is_anomaly]
    rows = [
        Class(
            one.name,
            i,
            bool(one.is_anomaly),
            len(one.scores),
            float(np.median(one.scores)),
            one.alarms(threshold),
            _auroc(np.concatenate(normal), one.scores) if normal and one.is_anomaly else None,
            report.pixel_auroc.get(one.name) if one.is_anomaly else None,
        )
        for i, one in enumerate(groups)
    ]
    return sorted(rows, key=lambda row: (row.is_anomaly, row.auroc or 0, row.median, row.name))


def _auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(metrics.roc_auc_score(labels, np.concatenate([normal, anomalous])))


def _n_views(picture: Picture) -> int:
    return 1 + (picture.overlay is not None) + (picture.mask is not None)


def _samples(one: Group, step: int) -> dict[str, Any]:
    """What counts a group's alarms to within step // 2: every step-th score from the largest on."""
    return {
        "anomaly": one.is_anomaly,
        "n": len(one.scores),
        "scores": one.scores[::-1][step // 2 :: step].tolist(),
    }


def _data_uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _p_value(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"
