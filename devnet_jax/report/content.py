"""The content of a report, and the choice of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from devnet_jax.inference.thresholds import Threshold

MAX_PICTURES = 2000  # keeps the page below 20 MB
MAX_LABELLED = 100  # labelled anomalies shown


@dataclass(frozen=True)
class Picture:
    """One image of the gallery; its thumbnails are from `devnet_jax.report.thumbnails`.

    Attributes:
      path: path that is shown.
      score: anomaly score.
      label: 0 normal, 1 anomalous, `None` unknown.
      defect: class of the image; "good" for normal images, "" if unknown.
      image: thumbnail of the image.
      overlay: thumbnail of the image with its heat map, if there is one.
      mask: thumbnail of the mask of the defect, if there is one.
      p_value: p-value of the score, if there is one.
      severity: severity of the score at the threshold in force, if there is one.
      reason: reason of the alarm at the threshold in force (`Scores.reasons`), or "".
      kind: labelled kind that the reason names, or "".
      odd: reason why the image is unlike the training images (`Scores.odd`), or "".
    """

    path: str
    score: float
    label: int | None
    defect: str
    image: bytes
    overlay: bytes | None = None
    mask: bytes | None = None
    p_value: float | None = None
    severity: float | None = None
    reason: str = ""
    kind: str = ""
    odd: str = ""

    @property
    def is_anomaly(self) -> bool | None:
        return None if self.label is None else self.label == 1


@dataclass(frozen=True)
class LabelledAnomalies:
    """The labelled anomalies that a detector has learned from.

    Attributes:
      pictures: at most `MAX_LABELLED` of them, with their scores.
      n: number of all.
      cross_validated: True if each score is by a detector that has not learned from the picture.
    """

    pictures: Sequence[Picture]
    n: int
    cross_validated: bool


@dataclass(frozen=True)
class Report:
    """Content of a report.

    Attributes:
      title: title with the name of the detector, such as "bottle" or "bottle: predictions".
      subtitle: training, date and machine.
      scores: float [N], finite scores of all images, N ≥ 1.
      labels: int [N], 0 normal or 1 anomalous; `None` if unknown.
      defects: class of each of the N images, "good" for normal ones; `None` without labels.
      numbers: names and values of the main measures, such as ("AUROC", "0.9972").
      expected: sentence on the performance that cross-validation lets expect, or "".
      notes: warnings, as sentences.
      prior: mean and standard deviation of the prior, if the loss has one.
      thresholds: thresholds of the detector; the first one is in force; may be empty.
      n_good: number of held-out normal images that p-values are from; 0 if they are the prior's.
      typical: score of a typical good part (`devnet_jax.inference.verdicts.typical_score`).
      pixel_auroc: mean pixel AUROC by defect class.
      kinds: number of anomalies by true kind and by the kind that they are named after
        (`devnet_jax.evaluation.metrics.kind_metrics`); empty without labelled kinds.
      kind_accuracy: sentence on the share of alarms that are named after their kind, or "".
      history: records of metrics.jsonl.
      pictures: pictures of the gallery, at most `MAX_PICTURES`: see `choose_pictures`.
      labelled_anomalies: pictures of the labelled anomalies; `None` without any.
      detector: "devnet" or "devcore".
      explanation: method of the overlays: "gradient", "smoothgrad", "score_map" or "none".
      errors: path and error message of each image that could not be read.
      settings: name, value and default of each setting; empty for an exported file.
      versions: names and versions of the software.
      labelled_kinds: kinds of defects that the detector knows, offered to those who mark pictures.
      folder: folder that relative paths of pictures start from; "" if it is of no use.
    """

    title: str
    subtitle: str
    scores: np.ndarray
    labels: np.ndarray | None = None
    defects: Sequence[str] | None = None
    numbers: Sequence[tuple[str, str]] = ()
    expected: str = ""
    notes: Sequence[str] = ()
    prior: tuple[float, float] | None = None
    thresholds: Sequence[Threshold] = ()
    n_good: int = 0
    typical: float = 0.0
    pixel_auroc: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    kind_accuracy: str = ""
    history: Sequence[Mapping[str, float]] = ()
    pictures: Sequence[Picture] = ()
    labelled_anomalies: LabelledAnomalies | None = None
    detector: str = "devnet"
    explanation: str = "gradient"
    errors: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, Any, Any]] = ()
    versions: Sequence[tuple[str, str]] = ()
    labelled_kinds: Sequence[str] = ()
    folder: str = ""

    def __post_init__(self) -> None:
        """Raises `ValueError` if the fields are inconsistent."""
        if self.scores.ndim != 1 or not np.isfinite(self.scores).all():
            raise ValueError("scores must be a 1-D array of finite numbers")
        if (self.labels is None) != (self.defects is None):
            raise ValueError("labels and defects must be given together")
        known: set[tuple[int | None, str]] = {(None, "")}
        if self.labels is not None and self.defects is not None:
            if not len(self.labels) == len(self.defects) == len(self.scores):
                raise ValueError("labels, defects and scores must have the same length")
            known = set(zip(np.asarray(self.labels).tolist(), self.defects, strict=True))
        for picture in self.pictures:
            if (picture.label, picture.defect) not in known:
                raise ValueError(
                    f"a picture has label and class {picture.label} {picture.defect!r}, which no "
                    "image has"
                )
        if len(self.pictures) > MAX_PICTURES:
            raise ValueError(f"at most {MAX_PICTURES} pictures are allowed: {len(self.pictures)}")


def choose_pictures(
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    threshold: float | None = None,
    limit: int = MAX_PICTURES,
    first: np.ndarray | None = None,
) -> np.ndarray:
    """Chooses the images of a gallery: all, or the worst mistakes and a sample of all scores.

    If there are more than `limit` images, up to half of the chosen ones are mistakes at the
    threshold, those farthest from it. The others are evenly spaced in the order of scores.

    Args:
      scores: float [N].
      labels: int [N], 0 normal or 1 anomalous; `None` if unknown.
      threshold: threshold in force; `None` if there is none.
      limit: maximum number of images.
      first: bool [N], images that are chosen before others, up to a quarter of `limit`.

    Returns:
      Sorted indices of the chosen images: int64 [min(N, limit)].
    """
    # float64, because NumPy would round the threshold to float32 to compare it with the scores.
    scores = np.asarray(scores, np.float64)
    order = np.argsort(scores, kind="stable")
    if len(order) <= limit:
        return np.sort(order)
    chosen = np.zeros(len(scores), bool)
    if first is not None:
        chosen[np.flatnonzero(first)[: limit // 4]] = True
    if labels is not None and threshold is not None:
        distance = np.abs(scores - threshold)
        mistaken = (scores >= threshold) != (labels == 1)
        worst = np.argsort(np.where(mistaken, -distance, np.inf), kind="stable")
        chosen[worst[: min(limit // 2, mistaken.sum())]] = True
    rest = order[~chosen[order]]
    evenly = np.linspace(0, len(rest) - 1, limit - int(chosen.sum())).round().astype(int)
    chosen[rest[evenly]] = True
    return np.flatnonzero(chosen)
