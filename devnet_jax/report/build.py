"""Makes the content of a run's report from its results."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from devnet_jax.config import Config, get_setting, setting_names
from devnet_jax.data.example import Example
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.errors import printable
from devnet_jax.export.read import ExportedDetector
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.inference.verdicts import typical_score
from devnet_jax.report.content import LabelledAnomalies, Picture, Report, choose_pictures
from devnet_jax.report.digits import format_measure, format_rate
from devnet_jax.report.summary import (
    describe_excess,
    describe_expected,
    describe_measure,
    describe_run,
    describe_unmeasured,
)
from devnet_jax.runtime.host_devices import describe_devices
from devnet_jax.runtime.versions import software_versions
from devnet_jax.runtime.workdir import Workdir


def run_report(
    workdir: Workdir,
    detector: TrainedDetector,
    dataset: FewShotDataset,
    results: Mapping[str, Any],
    pictures: Sequence[Picture],
    pixel_aurocs: np.ndarray,
    labelled: LabelledAnomalies | None = None,
) -> Report:
    """Makes the report of a run.

    Args:
      workdir: folder of the run, with its metrics.jsonl.
      detector: trained detector of the run.
      dataset: data set of the run.
      results: content of eval/metrics.json.
      pictures: a picture of each of the N test images, N ≥ 1, with its score.
      pixel_aurocs: float [N], pixel AUROC of each test image; NaN if it has none.
      labelled: labelled anomalies of the run; `None` without any.
    """
    return Report(
        title=detector.name,
        subtitle=f"{_kind_of(detector)}, trained {describe_run(detector.config, results)}; "
        f"{date_and_devices()}",
        expected=_make_expected(detector.config, dataset, results),
        notes=_make_notes(detector, dataset.test_duplicates, results),
        history=_read_history(workdir),
        labelled_anomalies=labelled,
        **_tested_fields(
            detector.threshold, dataset.test_examples, results, pictures, pixel_aurocs
        ),
        **detector_fields(detector),
    )


def labelled_report(
    pictures_name: str,
    detector: ImageScorer,
    examples: Sequence[Example],
    duplicates: Sequence[str] | None,
    results: Mapping[str, Any],
    pictures: Sequence[Picture],
    pixel_aurocs: np.ndarray,
) -> Report:
    """Makes the report of labelled pictures that are not part of a run.

    Args:
      pictures_name: name of the folder or list of the pictures.
      detector: detector of a run or a file.
      examples: examples of the N pictures, N ≥ 1.
      duplicates: paths of those that equal a training image; `None` if this is unknown.
      results: content of metrics.json.
      pictures: picture of each example, with its score.
      pixel_aurocs: float [N], as for `run_report`.
    """
    notes = _make_notes(detector, duplicates or (), results)
    if duplicates is None:
        notes.append(as_sentence(UNKNOWN_TRAINING))
    return Report(
        title=f"{detector.name}: {printable(pictures_name)}",
        subtitle=f"tested with the {describe_detector(detector)}; {date_and_devices()}",
        notes=notes,
        **_tested_fields(detector.threshold, examples, results, pictures, pixel_aurocs),
        **detector_fields(detector),
    )


UNKNOWN_TRAINING = (
    "it is not known which pictures the detector has learned from: any of them that are here make "
    "the results look better than they are"
)


def _tested_fields(
    threshold: Threshold | None,
    examples: Sequence[Example],
    results: Mapping[str, Any],
    pictures: Sequence[Picture],
    pixel_aurocs: np.ndarray,
) -> dict[str, Any]:
    """Returns the fields of `Report` that depend on the labels and the scores."""
    labels = np.array([example.label for example in examples])
    defects = [example.defect for example in examples]
    scores = np.array([picture.score for picture in pictures])
    chosen = choose_pictures(scores, labels, None if threshold is None else threshold.value)
    return {
        "scores": scores,
        "labels": labels,
        "defects": defects,
        "numbers": _headline_numbers(results),
        "pixel_auroc": _mean_by_class(defects, pixel_aurocs),
        "kinds": results.get("kinds", {}),
        "kind_accuracy": _describe_kind_accuracy(results),
        "pictures": [pictures[i] for i in chosen],
    }


def describe_detector(detector: ImageScorer) -> str:
    """Returns the kind of a detector and its name, as "devcore of bottle"."""
    return f"{_kind_of(detector)} of {detector.name}"


def _kind_of(detector: ImageScorer) -> str:
    """Returns "devnet" or "devcore"."""
    if isinstance(detector, TrainedDetector):
        return detector.config.model.detector
    assert isinstance(detector, ExportedDetector)
    return str(detector.card["model"].get("detector", "devnet"))  # older files have none


def detector_fields(detector: ImageScorer) -> dict[str, Any]:
    """Returns the fields of `Report` that depend on the detector only; a file has no settings."""
    settings = []
    if isinstance(detector, TrainedDetector):
        settings = [
            (name, get_setting(detector.config, name), get_setting(Config(), name))
            for name in setting_names()
        ]
    return {
        "prior": detector.prior,
        "thresholds": detector.thresholds,
        "n_good": len(detector.good_scores),
        "typical": typical_score(detector.good_scores, detector.prior),
        "detector": _kind_of(detector),
        "explanation": detector.explanation,
        "settings": settings,
        "versions": list(software_versions().items()),
    }


def date_and_devices() -> str:
    """Returns today's date and the devices as text."""
    devices = jax.local_devices()
    described = describe_devices(jax.default_backend(), len(devices), devices[0].device_kind)
    return f"{datetime.date.today()}, {described}"


def as_sentence(message: str) -> str:
    """Turns a log message into a sentence: with a capital letter and a full stop."""
    return f"{message[0].upper()}{message[1:]}."


def _headline_numbers(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the names and values of the main measures in eval/metrics.json."""
    measures = [
        (name, describe_measure(results, key))
        for key, name in (("image_auroc", "AUROC"), ("image_ap", "average precision"))
        if key in results
    ]
    names = {
        "image_f1_max": "best F1",
        "pixel_auroc_mean": "pixel AUROC, mean",
        "pixel_ap": "pixel precision, average",
        "pixel_aupro": "AUPRO, 30%",
    }
    others = [(name, format_measure(results[key])) for key, name in names.items() if key in results]
    return measures + others


def _make_expected(config: Config, dataset: FewShotDataset, results: Mapping[str, Any]) -> str:
    """Returns `Report.expected`."""
    expected = describe_expected(results)
    if expected is not None:
        n_normal, n_labels = results["n_estimate_normal"], results["n_estimate_anomaly"]
        return (
            f"Expected from {n_normal} normal training images and the {n_labels} labelled "
            f"anomalies alone, by cross-validation: {expected} (95% intervals in brackets)."
        )
    if config.model.detector == "devcore" and len(dataset.split.train_anomaly) == 1:
        return (
            "There is one labelled anomaly: to estimate the performance from the training images, "
            "by cross-validation, at least two are needed."
        )
    return ""


def _make_notes(
    detector: ImageScorer, duplicates: Sequence[str], results: Mapping[str, Any]
) -> list[str]:
    unmeasured = describe_unmeasured(results)
    notes = [as_sentence(text) for text in (unmeasured, describe_excess(results)) if text]
    if results.get("n_pixel_vanished"):
        reason = "at the network's resolution, their masks are empty."
        if not detector.preprocessing.shows_all:
            reason = (
                "their defects lie outside the part of the image that is used "
                "(config.dataset.region and fit), or vanish at the network's resolution."
            )
        notes.append(
            f"{results['n_pixel_vanished']} anomalous images are excluded from the pixel "
            f"measures: {reason}"
        )
    if duplicates:
        names = ", ".join(duplicates[:5]) + (", …" if len(duplicates) > 5 else ".")
        notes.append(
            f"{len(duplicates)} test images are identical to training images, which makes the "
            f"results look better than they are: {names}"
        )
    if isinstance(detector, TrainedDetector):
        notes += [as_sentence(note) for note in (detector.interruption, detector.shortage) if note]
    return notes


def _describe_kind_accuracy(results: Mapping[str, Any]) -> str:
    """Returns `Report.kind_accuracy`."""
    if "kind_accuracy" not in results:
        return ""
    n = results["n_kind_accuracy"]
    named = format_rate(round(n * results["kind_accuracy"]), n)
    return f"{named} of the alarms of labelled kinds are named after their kind"


def _mean_by_class(defects: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Returns the mean of the values that are not NaN, by defect class."""
    means = {}
    for defect in sorted(set(defects)):
        of_class = values[[other == defect for other in defects]]
        if not np.isnan(of_class).all():
            means[defect] = float(np.nanmean(of_class))
    return means


def _read_history(workdir: Workdir) -> list[dict[str, float]]:
    if not workdir.metrics.exists():
        return []
    return [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
