"""What a report is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from devnet_jax.inference.thresholds import Threshold

MAX_PICTURES = 2000  # of more than these the page would be too large to send and to open


@dataclass(frozen=True)
class Picture:
    """One image of the gallery.

    Attributes:
      path: as the user knows it.
      score: of the image.
      label: 0 normal, 1 anomalous, `None` unknown.
      defect: its class; "good" for normal images, "" if unknown.
      image: thumbnail, as `devnet_jax.report.thumbnails` makes them; so are the next two.
      overlay: the explanation laid over it, if there is one.
      mask: where the defect is, if that is known.
      p_value: of the score under the prior, if there is one.
    """

    path: str
    score: float
    label: int | None
    defect: str
    image: bytes
    overlay: bytes | None = None
    mask: bytes | None = None
    p_value: float | None = None

    @property
    def is_anomaly(self) -> bool | None:
        return None if self.label is None else self.label == 1


@dataclass(frozen=True)
class Report:
    """Everything that a page says.

    Attributes:
      title: as "mvtec_ad / carpet", or "Predictions".
      subtitle: date, machine, where the run lies.
      scores: float [N] of all images, N ≥ 1, finite.
      labels: int [N], 0 normal or 1 anomalous; `None` where nobody knows.
      defects: the class of each of the N images, "good" for normal ones; `None` without labels.
      numbers: headline figures beside their names, as ("AUROC", "0.9972").
      notes: what the reader is warned of, in sentences.
      prior: mean and standard deviation of the prior, if the loss has one.
      thresholds: the first is in force; there may be none.
      pixel_auroc: by defect class.
      history: the records of metrics.jsonl.
      pictures: of the gallery, at most `MAX_PICTURES`; `choose_pictures` chooses among more.
      explanation: the method of the overlays: "gradient", "smoothgrad", "score_map" or "none".
      errors: path and what is wrong, of images that have no score.
      settings: name, value, and the default, which is the paper's where the paper has one.
      versions: of the software, by name.
    """

    title: str
    subtitle: str
    scores: np.ndarray
    labels: np.ndarray | None = None
    defects: Sequence[str] | None = None
    numbers: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    prior: tuple[float, float] | None = None
    thresholds: Sequence[Threshold] = ()
    pixel_auroc: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    pictures: Sequence[Picture] = ()
    explanation: str = "gradient"
    errors: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, Any, Any]] = ()
    versions: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError` where the parts do not belong together."""
        if self.scores.ndim != 1 or not np.isfinite(self.scores).all():
            raise ValueError("scores are finite numbers, one for each image")
        if (self.labels is None) != (self.defects is None):
            raise ValueError("labels and defects go together")
        known: set[tuple[int | None, str]] = {(None, "")}
        if self.labels is not None and self.defects is not None:
            if not len(self.labels) == len(self.defects) == len(self.scores):
                raise ValueError("as many labels and defects as scores are needed")
            known = set(zip(np.asarray(self.labels).tolist(), self.defects, strict=True))
        for picture in self.pictures:
            if (picture.label, picture.defect) not in known:
                raise ValueError(f"no image is {picture.label} {picture.defect!r}, as a picture is")
        if len(self.pictures) > MAX_PICTURES:
            raise ValueError(f"{len(self.pictures)} pictures, {MAX_PICTURES} at most")


def choose_pictures(
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    threshold: float | None = None,
    limit: int = MAX_PICTURES,
) -> np.ndarray:
    """Which images a gallery shows: all, or the worst mistakes and some of every score.

    Of more than `limit` images a half at most are mistakes at the threshold, those farthest from
    it first; the others stand at equal distances in the order of the scores.

    Returns:
      Their indices, ascending: int64 [min(N, limit)].
    """
    scores = np.asarray(scores, np.float64)  # or NumPy would round the threshold to theirs
    order = np.argsort(scores, kind="stable")
    if len(order) <= limit:
        return np.sort(order)
    chosen = np.zeros(len(scores), bool)
    if labels is not None and threshold is not None:
        distance = np.abs(scores - threshold)
        mistaken = (scores >= threshold) != (labels == 1)
        worst = np.argsort(np.where(mistaken, -distance, np.inf), kind="stable")
        chosen[worst[: min(limit // 2, mistaken.sum())]] = True
    rest = order[~chosen[order]]
    evenly = np.linspace(0, len(rest) - 1, limit - int(chosen.sum())).round().astype(int)
    chosen[rest[evenly]] = True
    return np.flatnonzero(chosen)
