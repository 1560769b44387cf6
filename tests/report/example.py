"""A small report for tests, with names that need escaping."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.content import LabelledAnomalies, Picture, Report
from devnet_jax.report.thumbnails import mask_thumbnail, thumbnail

HOSTILE = "\"><script>window.hacked = 1</script>'&amp;\n\udc80 日本"
CALIBRATED = Threshold("calibrated", 1.25, 0.05, 40)
PRIOR = Threshold("prior", 1.6448536269514722, 0.05)

GREY = np.full((16, 16, 3), 128, np.uint8)
SPOT = np.hypot(*np.mgrid[-1:1:16j, -1:1:16j]) < 0.4


def draw_scores() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns scores float32 [60], some of them equal to a threshold, their labels and classes."""
    rng = np.random.default_rng(4)
    defects = ["good"] * 30 + ["hole"] * 18 + [HOSTILE] * 12
    scores = np.concatenate(
        [rng.normal(0, 1, 30), rng.normal(4, 1.5, 18), rng.normal(1.5, 1, 12)]
    ).astype(np.float32)
    scores[[0, 30, 48]] = (1.25, 1.25, PRIOR.value)
    return scores, np.array([int(defect != "good") for defect in defects]), defects


def reason_of(score: float, defect: str) -> str:
    """Returns the reason of an alarm at the threshold of `CALIBRATED`, or ""."""
    if float(score) < CALIBRATED.value:
        return ""
    return f"like the labelled {defect}" if defect == HOSTILE else "unlike the good parts"


def make_labelled(**changes: Any) -> LabelledAnomalies:
    """Makes three labelled anomalies, one of them below the threshold of `CALIBRATED`."""
    image, mask = thumbnail(GREY, 16), mask_thumbnail(SPOT, 16)
    labelled = LabelledAnomalies(
        [
            Picture(f"train/{name}.png", score, 1, defect, image, image, mask)
            for name, score, defect in (
                ("a", 3.75, "hole"),
                ("b", 0.5, "hole"),
                (HOSTILE, 1.25, HOSTILE),
            )
        ],
        n=3,
        cross_validated=True,
    )
    return dataclasses.replace(labelled, **changes)


def make_report(**changes: Any) -> Report:
    """Makes a report of `draw_scores` with a picture of each image; `changes` replace fields."""
    scores, labels, defects = draw_scores()
    image, mask = thumbnail(GREY, 16), mask_thumbnail(SPOT, 16)
    pictures = [
        Picture(
            path=f"{defect}/{i}.png",
            score=float(score),
            label=int(label),
            defect=defect,
            image=image,
            overlay=image,
            mask=mask if label else None,
            p_value=0.0321,
            reason=reason_of(score, defect),
        )
        for i, (score, label, defect) in enumerate(zip(scores, labels, defects, strict=True))
    ]
    values: dict[str, Any] = {
        "title": f"parts {HOSTILE}",
        "subtitle": "2026-11-23, 2 CPU cores",
        "scores": scores,
        "labels": labels,
        "defects": defects,
        "numbers": [("AUROC", "0.9123")],
        "notes": [f"Look at {HOSTILE}"],
        "prior": (0.0, 1.0),
        "thresholds": [CALIBRATED, PRIOR],
        "pixel_auroc": {"hole": 0.9871},
        "history": [
            {"epoch": i, "step": 20 * i, "loss": 1 / i, "gradient_norm": 1.0, "learning_rate": 1e-4}
            for i in range(1, 6)
        ],
        "pictures": pictures,
        "labelled_anomalies": make_labelled(),
        "settings": [("seed", 42, 42), ("dataset.image_size", 128, 448)],
        "versions": [("JAX", "0.10.2")],
    }
    return Report(**(values | changes))


def make_predictions(**changes: Any) -> Report:
    """Makes a report of the same images without labels."""
    labelled = make_report()
    pictures = [
        Picture(each.path, each.score, None, "", each.image, each.overlay, reason=each.reason)
        for each in labelled.pictures
    ]
    values: dict[str, Any] = {
        "labels": None,
        "defects": None,
        "pictures": pictures,
        "pixel_auroc": {},
        "history": [],
        "labelled_anomalies": None,
        "errors": [(f"{HOSTILE}.png", f"image '{HOSTILE}' is empty (0 bytes)")],
    }
    return make_report(**(values | changes))
