"""A trained detector over its test images → eval/scores.csv, eval/metrics.json and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from devnet_jax.config import Config
from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.source import Example
from devnet_jax.distributed.cluster import (
    broadcast,
    gather,
    is_rank_zero,
    local_share,
    locked_by_rank_zero,
    report_progress,
)
from devnet_jax.errors import UserError
from devnet_jax.evaluation.metrics import alarm_rates, image_metrics
from devnet_jax.evaluation.pixel_metrics import PixelMetrics
from devnet_jax.evaluation.tensorboard import log_evaluation
from devnet_jax.inference.detector import TrainedDetector, write_calibration
from devnet_jax.inference.scorer import as_written
from devnet_jax.report.build import run_report
from devnet_jax.report.content import Picture
from devnet_jax.report.page import to_html
from devnet_jax.report.thumbnails import mask_thumbnail, side_for, thumbnail
from devnet_jax.runtime.io import write_csv, write_jpeg, write_json, write_npy, write_text
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.resume import open_dataset

logger = logging.getLogger(__name__)

BATCHES_AT_ONCE = 4  # decoded together: enough for all cores, little enough for any memory


@dataclasses.dataclass(frozen=True)
class Examination:
    """What a detector says of the test images, in the order of the data set's `test_examples`.

    Attributes:
      scores: float64 [N], as written.
      pixel_metrics: measures of its maps, as of `PixelMetrics.compute`, and how many anomalous
        images they are of and how many are left out as their masks vanish when shrunk; empty
        without masks.
      pixel_aurocs: float [N] of each image's map; NaN where there is none.
      pictures: a few kilobytes of each image, for the report.
    """

    scores: np.ndarray
    pixel_metrics: dict[str, float]
    pixel_aurocs: np.ndarray
    pictures: Sequence[Picture]


def evaluate(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Restores the detector of a workdir, calibrates it, scores and explains its test images, and
    writes the results and the report.

    Several processes share the images, and the first one writes.

    Returns:
      The content of eval/metrics.json.

    Raises:
      UserError: there is no run, no readable checkpoint, images are gone, or a score is not finite.
    """
    workdir.require_run()
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        return _evaluate(config, workdir)


def _evaluate(config: Config, workdir: Workdir) -> dict[str, Any]:
    dataset = open_dataset(config, workdir)
    detector = TrainedDetector.restore(workdir.path, config, calibrated=False)
    detector = calibrate(detector, dataset, workdir)
    examination = examine(detector, dataset)
    if examination is None:
        return broadcast(None)
    results = measure(detector, dataset, examination)
    _write(workdir, detector, dataset, examination, results)
    return broadcast(results)


def _write(
    workdir: Workdir,
    detector: TrainedDetector,
    dataset: FewShotDataset,
    examination: Examination,
    results: dict[str, Any],
) -> None:
    write_csv(
        workdir.evaluation / "scores.csv",
        ["path", "label", "defect", "score"],
        [
            (example.path, example.label, example.defect, score)
            for example, score in zip(dataset.test_examples, examination.scores, strict=True)
        ],
    )
    write_json(workdir.evaluation / "metrics.json", results)
    report = run_report(
        workdir, detector, dataset, results, examination.pictures, examination.pixel_aurocs
    )
    write_text(workdir.report, to_html(report))
    log_evaluation(workdir, results, examination.pictures)


def calibrate(
    detector: TrainedDetector, dataset: FewShotDataset, workdir: Workdir
) -> TrainedDetector:
    """The detector with its scores of the normal images held out from training, and saves them."""
    if not detector.config.dataset.calibration:
        return detector
    parts = decoded(dataset, local_share(dataset.calibration), detector.config, "calibrating")
    of_parts = [detector.score(images).scores for _, images in parts]
    of_processes = gather(np.concatenate([np.empty(0, np.float32), *of_parts]))
    scores = np.concatenate(of_processes)
    if is_rank_zero():
        write_calibration(workdir, detector.step, scores)
    detector = dataclasses.replace(detector, calibration_scores=scores)
    if detector.shortage:
        logger.warning("%s", detector.shortage)
    return detector


def examine(detector: TrainedDetector, dataset: FewShotDataset) -> Examination | None:
    """Scores and explains the test images; decoded part by part, in bounded memory.

    Of several processes, which share the images, the first is given what all have found.
    """
    size = detector.config.dataset.image_size
    examples = local_share(dataset.test_examples)
    side = side_for(len(dataset.test_examples))
    pixel_metrics = PixelMetrics()
    pixel_aurocs = np.full(len(examples), np.nan)
    n_vanished = 0
    scores: list[np.ndarray] = [np.empty(0)]
    pictures: list[Picture] = []
    paths = [example.path for example in examples]
    for start, images in decoded(dataset, paths, detector.config, "testing"):
        part = examples[start : start + len(images)]
        scores.append(as_written(detector.score(images).scores))
        maps = None
        if detector.config.evaluation.explanation != "none":
            maps = detector.explain(images).maps
        load_mask = functools.partial(dataset.mask, image_size=size)
        masks = list(map_in_threads(load_mask, [example.path for example in part], None))
        for i, mask in enumerate(masks):
            if mask is None or maps is None:
                continue
            if part[i].label == 1 and not mask.any():  # its defect is between the pixels
                n_vanished += 1
                continue
            auroc = pixel_metrics.update(maps[i], mask)
            pixel_aurocs[start + i] = np.nan if auroc is None else auroc
        pictures += _pictures(detector, part, images, scores[-1], maps, masks, side)
    own = {
        "scores": np.concatenate(scores),
        "pixel_aurocs": pixel_aurocs,
        "n_vanished": n_vanished,
        "pixels": pixel_metrics.state(),
        "pictures": [dataclasses.asdict(picture) for picture in pictures],
    }
    parts = gather(own, to_all=False)
    return _joined(parts) if parts else None


def _joined(parts: Sequence[Mapping[str, Any]]) -> Examination:
    """What all processes have found, from what each has."""
    pixel_metrics = PixelMetrics()
    for part in parts:
        pixel_metrics.merge(part["pixels"])
    pixel_aurocs = np.concatenate([part["pixel_aurocs"] for part in parts])
    of_pixels = pixel_metrics.compute()
    if of_pixels:
        of_pixels["n_pixel_anomaly"] = int(np.isfinite(pixel_aurocs).sum())
        of_pixels["n_pixel_vanished"] = sum(part["n_vanished"] for part in parts)
    scores = np.concatenate([part["scores"] for part in parts])
    pictures = [Picture(**fields) for part in parts for fields in part["pictures"]]
    return Examination(scores, of_pixels, pixel_aurocs, pictures)


def _pictures(
    detector: TrainedDetector,
    examples: Sequence[Example],
    images: np.ndarray,
    scores: np.ndarray,
    maps: np.ndarray | None,
    masks: Sequence[np.ndarray | None],
    side: int,
) -> list[Picture]:
    p_values = detector.p_values(scores)

    def picture(i: int) -> Picture:
        mask, overlay = masks[i], None
        if maps is not None:
            overlay = thumbnail(detector.overlay(images[i], scores[i], maps[i]), side)
        return Picture(
            path=examples[i].path,
            score=float(scores[i]),
            label=examples[i].label,
            defect=examples[i].defect,
            image=thumbnail(images[i], side),
            overlay=overlay,
            mask=mask_thumbnail(mask, side) if mask is not None and mask.any() else None,
            p_value=None if p_values is None else float(p_values[i]),
        )

    return list(map_in_threads(picture, range(len(examples)), None))


def explain(config: Config, workdir: Workdir) -> None:
    """Writes the maps of the test images and their overlays to the workdir's folder explain/.

    maps/<path>.npy is float32 [S, S], overlays/<path>.jpg the image with the map laid over it.

    Raises:
      UserError: as `evaluate`, or the settings ask for no explanation.
    """
    if config.evaluation.explanation == "none":
        raise UserError(
            "config.evaluation.explanation = 'none': nothing to write; choose a method, such as "
            "gradient"
        )
    workdir.require_run()
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        dataset = open_dataset(config, workdir)
        detector = TrainedDetector.restore(workdir.path, config)
        paths = local_share(dataset.split.test)
        for start, images in decoded(dataset, paths, config, "explaining"):
            part = paths[start : start + len(images)]
            _write_explanations(detector, workdir.explanations, part, images)


def _write_explanations(
    detector: TrainedDetector, folder: epath.Path, paths: Sequence[str], images: np.ndarray
) -> None:
    scores, maps = detector.score(images).scores, detector.explain(images).maps

    def write(i: int) -> None:
        write_npy(folder / "maps" / f"{paths[i]}.npy", maps[i])
        overlay = detector.overlay(images[i], scores[i], maps[i])
        write_jpeg(folder / "overlays" / f"{paths[i]}.jpg", overlay)

    for _ in map_in_threads(write, range(len(images)), None):
        pass


def decoded(
    dataset: FewShotDataset, paths: Sequence[str], config: Config, description: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Images of the split part by part, uint8 [n, S, S, 3], each part with its first index."""
    at_once = BATCHES_AT_ONCE * config.evaluation.batch_size
    # disable=None: shown on a terminal, silent in a log file.
    bar = tqdm(total=len(paths), unit="image", desc=description, disable=None)
    parts = prefetch(
        (start, dataset.images(paths[start : start + at_once], config.dataset.image_size))
        for start in range(0, len(paths), at_once)
    )
    with bar, contextlib.closing(parts):
        for start, images in parts:
            yield start, images
            bar.update(len(images))
            report_progress()


def measure(
    detector: TrainedDetector, dataset: FewShotDataset, examination: Examination
) -> dict[str, Any]:
    """The content of eval/metrics.json."""
    labels = np.array([example.label for example in dataset.test_examples])
    scores = examination.scores
    results = {
        "step": detector.step,
        "n_test_normal": int(np.sum(labels == 0)),
        "n_test_anomaly": int(np.sum(labels == 1)),
        "n_test_duplicates": len(dataset.test_duplicates),
        **image_metrics(labels, scores),
        **examination.pixel_metrics,
    }
    for threshold in detector.thresholds:
        kind = threshold.kind
        false_alarms, misses = alarm_rates(labels, scores, threshold.value)
        results[f"{kind}_threshold"] = threshold.value
        results[f"{kind}_promised_false_alarm_rate"] = threshold.false_alarm_rate
        results[f"{kind}_false_alarm_rate"] = false_alarms
        results[f"{kind}_miss_rate"] = misses
    if detector.config.dataset.calibration:
        results["n_calibration"] = len(dataset.calibration)
    return results
