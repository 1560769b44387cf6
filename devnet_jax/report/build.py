"""From what a run has found to the content of its report."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from devnet_jax.config import Config, get_setting, setting_names
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.inference.detector import Detector
from devnet_jax.report.content import Picture, Report, choose_pictures
from devnet_jax.report.summary import describe_dataset, describe_run
from devnet_jax.runtime.host_devices import describe_devices
from devnet_jax.runtime.versions import software_versions
from devnet_jax.runtime.workdir import Workdir


def run_report(
    workdir: Workdir,
    detector: Detector,
    dataset: FewShotDataset,
    results: Mapping[str, Any],
    pictures: Sequence[Picture],
    pixel_aurocs: np.ndarray,
) -> Report:
    """The report of a run.

    Args:
      workdir: its folder, with the training's metrics.
      detector: what it has trained.
      dataset: what it has tested with.
      results: the content of eval/metrics.json.
      pictures: of each test image, with its score.
      pixel_aurocs: float [N], of each test image; NaN where there is none.
    """
    examples = dataset.test_examples
    labels = np.array([example.label for example in examples])
    defects = [example.defect for example in examples]
    scores = np.array([picture.score for picture in pictures])
    threshold = detector.threshold
    shown = choose_pictures(scores, labels, None if threshold is None else threshold.value)
    return Report(
        title=describe_dataset(detector.config),
        subtitle=f"trained {describe_run(detector.config, results)}; {made_with()}",
        scores=scores,
        labels=labels,
        defects=defects,
        numbers=_numbers(results),
        notes=_notes(detector, dataset, results),
        pixel_auroc=_mean_by_class(defects, pixel_aurocs),
        history=_history(workdir),
        pictures=[pictures[i] for i in shown],
        **about(detector),
    )


def about(detector: Detector) -> dict[str, Any]:
    """What a report says of a detector, whatever it was used for: fields of `Report`."""
    config = detector.config
    knows_prior = config.loss.name == "deviation"
    return {
        "prior": (config.loss.prior_mean, config.loss.prior_std) if knows_prior else None,
        "thresholds": detector.thresholds,
        "explanation": config.evaluation.explanation,
        "settings": [
            (name, get_setting(config, name), get_setting(Config(), name))
            for name in setting_names()
        ],
        "versions": list(software_versions().items()),
    }


def made_with() -> str:
    """The date and the devices."""
    devices = jax.local_devices()
    described = describe_devices(jax.default_backend(), len(devices), devices[0].device_kind)
    return f"{datetime.date.today()}, {described}"


def as_sentence(message: str) -> str:
    """A line of the log as a sentence of a report."""
    return f"{message[0].upper()}{message[1:]}."


def _numbers(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of the measures in eval/metrics.json those that there are."""
    names = {
        "image_auroc": "AUROC",
        "image_ap": "average precision",
        "image_f1_max": "best F1",
        "pixel_auroc_mean": "pixel AUROC, mean",
        "pixel_ap": "pixel precision, average",
        "pixel_aupro": "AUPRO, 30%",
    }
    return [(name, f"{results[key]:.4f}") for key, name in names.items() if key in results]


def _notes(detector: Detector, dataset: FewShotDataset, results: Mapping[str, Any]) -> list[str]:
    notes = []
    if results.get("n_pixel_vanished"):
        notes.append(
            f"{results['n_pixel_vanished']} anomalous images are left out of the measures of "
            "pixels: at the network's resolution their masks have no pixel left."
        )
    twice = dataset.test_duplicates
    if twice:
        named = ", ".join(twice[:5]) + (", …" if len(twice) > 5 else "")
        notes.append(
            f"{len(twice)} of the test images are also among the training images, pixel by pixel, "
            f"which makes the results look better than they are: {named}."
        )
    if detector.shortage:
        notes.append(as_sentence(detector.shortage))
    return notes


def _mean_by_class(defects: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """The mean of the values that there are, by defect class."""
    means = {}
    for defect in sorted(set(defects)):
        of_class = values[[other == defect for other in defects]]
        if not np.isnan(of_class).all():
            means[defect] = float(np.nanmean(of_class))
    return means


def _history(workdir: Workdir) -> list[dict[str, float]]:
    if not workdir.metrics.exists():
        return []
    return [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
