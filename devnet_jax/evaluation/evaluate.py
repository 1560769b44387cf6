"""Evaluation of a run on its test images: eval/scores.csv, eval/metrics.json and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from devnet_jax.config import Config
from devnet_jax.data.decode import Batch, map_in_threads
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.paths import output_name
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
from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.evaluation.metrics import alarm_rates, image_metrics
from devnet_jax.evaluation.pixel_metrics import PixelMetrics
from devnet_jax.evaluation.tensorboard import log_evaluation
from devnet_jax.inference.calibration import (
    Calibration,
    recalibration_of_step,
    write_calibration,
)
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import Scores, as_written
from devnet_jax.report.build import run_report
from devnet_jax.report.content import Picture
from devnet_jax.report.page import to_html
from devnet_jax.report.summary import describe_expected
from devnet_jax.report.thumbnails import mask_thumbnail, side_for, thumbnail
from devnet_jax.runtime.io import write_csv, write_jpeg, write_json, write_npy, write_text
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.learned import read_learned
from devnet_jax.training.resume import open_dataset

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 4  # decoded together: enough work for all cores in little memory


@dataclasses.dataclass(frozen=True)
class TestScores:
    """Scores and explanations of the test images, in the order of `FewShotDataset.test_examples`.

    Attributes:
      scores: float64 [N], as written to files (`as_written`).
      reasons: reason of each alarm, "" without one (`Scores.reasons`).
      pixel_metrics: metrics of the maps (`PixelMetrics.compute`), the number of anomalous images
        behind them, and the number of images left out because their masks vanish when resized;
        empty without masks.
      pixel_aurocs: float [N], pixel AUROC of each image's map; NaN if it has none.
      pictures: thumbnails of the images, for the report.
    """

    scores: np.ndarray
    reasons: Sequence[str]
    pixel_metrics: dict[str, float]
    pixel_aurocs: np.ndarray
    pictures: Sequence[Picture]


@standard_numerics()
def evaluate(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Evaluates the detector of a run, and writes the results and the report.

    Restores the detector, calibrates it, and scores and explains the test images. Several processes
    share the images; process 0 writes. Without test images there is no report.

    Args:
      config: settings of the run.
      workdir: workdir of the run.

    Returns:
      The content of eval/metrics.json, in all processes.

    Raises:
      UserError: if there is no run or no readable checkpoint, images are missing, or a score is not
        finite.
    """
    workdir.require_run()
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        dataset = open_dataset(config, workdir)
        detector = TrainedDetector.restore(workdir.path, config, calibrated=False)
        detector = calibrate(detector, dataset, workdir)
        test = score_test_images(detector, dataset)
        results: dict[str, Any] | None = None
        if test is not None:
            results = compute_metrics(detector, dataset, test)
            results |= estimate_performance(detector, workdir)
            _write_results(workdir, detector, dataset, test, results)
        return broadcast(results)


def _write_results(
    workdir: Workdir,
    detector: TrainedDetector,
    dataset: FewShotDataset,
    test: TestScores,
    results: dict[str, Any],
) -> None:
    write_csv(
        workdir.evaluation / "scores.csv",
        ["path", "label", "defect", "score", "reason"],
        [
            (PurePosixPath(example.path), example.label, example.defect, score, reason)
            for example, score, reason in zip(
                dataset.test_examples, test.scores, test.reasons, strict=True
            )
        ],
    )
    write_json(workdir.evaluation / "metrics.json", results)
    if len(test.scores):
        report = run_report(workdir, detector, dataset, results, test.pictures, test.pixel_aurocs)
        write_text(workdir.report, to_html(report))
    log_evaluation(workdir, results, test.pictures)


def estimate_performance(detector: TrainedDetector, workdir: Workdir) -> dict[str, float]:
    """Returns the entries of `expected_performance` for eval/metrics.json, and logs them.

    Empty with fewer than two labelled anomalies, and for devnet.
    """
    learned = read_learned(workdir, detector.step)
    if learned is None:
        return {}
    rate = detector.config.evaluation.false_alarm_rate
    expected = expected_performance(learned.normal_scores, learned.anomaly_scores, rate)
    described = describe_expected(detector.config, expected)
    if described is not None:
        n = len(learned.anomaly_scores)
        logger.info("expected by cross-validation over %d labels: %s", n, described)
    return expected


def calibrate(
    detector: TrainedDetector, dataset: FewShotDataset, workdir: Workdir
) -> TrainedDetector:
    """Scores the held-out normal images and saves the scores to calibration.json.

    The scores of `--mode=recalibrate` are kept if they belong to the same step.

    Returns:
      The detector with calibration scores, or unchanged if there are none.
    """
    kept = recalibration_of_step(workdir, detector.step)
    if kept is not None:
        return dataclasses.replace(detector, calibration_scores=kept.scores)
    if not detector.config.dataset.calibration:
        return detector
    paths = local_share(dataset.calibration)
    chunks = image_chunks(dataset, paths, detector.config, "calibrating")
    local_scores = [detector.score(images).scores for _, images in chunks]
    scores = np.concatenate(gather(np.concatenate([np.empty(0, np.float32), *local_scores])))
    if is_rank_zero():
        write_calibration(workdir, Calibration(detector.step, scores))
    detector = dataclasses.replace(detector, calibration_scores=scores)
    if detector.shortage:
        logger.warning("%s", detector.shortage)
    return detector


def score_test_images(detector: TrainedDetector, dataset: FewShotDataset) -> TestScores | None:
    """Scores and explains the test images chunk by chunk, in bounded memory.

    Several processes share the images.

    Returns:
      The results of all processes in process 0; `None` in the others.
    """
    examples = local_share(dataset.test_examples)
    side = side_for(len(dataset.test_examples))
    pixel_metrics = PixelMetrics()
    pixel_aurocs = np.full(len(examples), np.nan)
    n_vanished = 0
    scores: list[np.ndarray] = [np.empty(0)]
    reasons: list[str] = []
    pictures: list[Picture] = []
    paths = [example.path for example in examples]
    for start, images in image_chunks(dataset, paths, detector.config, "testing"):
        chunk = examples[start : start + len(images)]
        scored = detector.score(images)
        scores.append(as_written(scored.scores))
        reasons += scored.reasons
        maps = None
        load_mask = functools.partial(dataset.mask, original=detector.original_maps)
        masks = list(map_in_threads(load_mask, [example.path for example in chunk], None))
        if detector.config.evaluation.explanation != "none":
            maps = detector.input_maps(images, maps=scored.maps)
            for i, (example, mask) in enumerate(zip(chunk, masks, strict=True)):
                # What the network does not see is not measured.
                seen = detector.lay(maps[i], images.sizes[i])[detector.seen(images.sizes[i])]
                if example.label == 0:
                    pixel_metrics.update(seen, np.zeros(seen.shape, bool))
                elif mask is not None and not mask.any():  # lost in resizing, or not seen
                    n_vanished += 1
                elif mask is not None:
                    auroc = pixel_metrics.update(seen, mask)
                    pixel_aurocs[start + i] = np.nan if auroc is None else auroc
        pictures += _make_pictures(detector, chunk, images, scored, maps, masks, side)
    local_results = {
        "scores": np.concatenate(scores),
        "reasons": reasons,
        "pixel_aurocs": pixel_aurocs,
        "n_vanished": n_vanished,
        "pixels": pixel_metrics.state(),
        "pictures": [dataclasses.asdict(picture) for picture in pictures],
    }
    all_results = gather(local_results, to_all=False)
    return _merge(all_results) if all_results else None


def _merge(results: Sequence[Mapping[str, Any]]) -> TestScores:
    """Merges the results of all processes."""
    pixels = PixelMetrics()
    for result in results:
        pixels.merge(result["pixels"])
    pixel_aurocs = np.concatenate([result["pixel_aurocs"] for result in results])
    pixel_metrics = pixels.compute()
    if pixel_metrics:
        pixel_metrics["n_pixel_anomaly"] = int(np.isfinite(pixel_aurocs).sum())
        pixel_metrics["n_pixel_vanished"] = sum(result["n_vanished"] for result in results)
    scores = np.concatenate([result["scores"] for result in results])
    reasons = [reason for result in results for reason in result["reasons"]]
    pictures = [Picture(**fields) for result in results for fields in result["pictures"]]
    return TestScores(scores, reasons, pixel_metrics, pixel_aurocs, pictures)


def _make_pictures(
    detector: TrainedDetector,
    examples: Sequence[Example],
    images: Batch,
    scored: Scores,
    maps: np.ndarray | None,
    masks: Sequence[np.ndarray | None],
    side: int,
) -> list[Picture]:
    """Returns the pictures of a chunk of images, with thumbnails of at most `side` pixels."""
    scores, p_values = as_written(scored.scores), scored.p_values

    def make_picture(i: int) -> Picture:
        mask, overlay = masks[i], None
        image = detector.picture(images, i)
        if maps is not None:
            laid = detector.lay(maps[i], images.sizes[i])
            overlay = thumbnail(detector.overlay(image, scores[i], laid), side)
        if mask is not None and mask.any():
            framed = np.zeros(image.shape[:2], bool)
            framed[detector.seen(images.sizes[i])] = mask
            mask = framed
        return Picture(
            path=examples[i].path,
            score=float(scores[i]),
            label=examples[i].label,
            defect=examples[i].defect,
            image=thumbnail(image, side),
            overlay=overlay,
            mask=mask_thumbnail(mask, side) if mask is not None and mask.any() else None,
            p_value=None if p_values is None else float(p_values[i]),
            reason=scored.reasons[i],
            odd=scored.odd[i],
        )

    return list(map_in_threads(make_picture, range(len(examples)), None))


@standard_numerics()
def explain(config: Config, workdir: Workdir) -> None:
    """Writes the explanation maps of the test images and their overlays to explain/.

    maps/<path>.npy is float32 [h, w]; overlays/<path>.jpg is the image with its map drawn over it.
    Names too long for a file system are replaced by their hashes (`output_name`).

    Args:
      config: settings of the run.
      workdir: workdir of the run.

    Raises:
      UserError: as `evaluate`, or if the explanation method is "none".
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
        for start, images in image_chunks(dataset, paths, config, "explaining"):
            chunk = paths[start : start + len(images)]
            _write_explanations(detector, workdir.explanations, chunk, images)


def _write_explanations(
    detector: TrainedDetector, folder: epath.Path, paths: Sequence[str], images: Batch
) -> None:
    scored = detector.score(images)
    scores, maps = as_written(scored.scores), detector.input_maps(images, maps=scored.maps)

    def write(i: int) -> None:
        laid = detector.lay(maps[i], images.sizes[i])
        write_npy(folder / "maps" / output_name(paths[i], ".npy"), laid)
        overlay = detector.overlay(detector.picture(images, i), scores[i], laid)
        write_jpeg(folder / "overlays" / output_name(paths[i], ".jpg"), overlay)

    for _ in map_in_threads(write, range(len(paths)), None):
        pass


def image_chunks(
    dataset: FewShotDataset, paths: Sequence[str], config: Config, description: str
) -> Iterator[tuple[int, Batch]]:
    """Yields images in chunks: the chunk's first index, and its images.

    Args:
      dataset: data set of the images.
      paths: paths of the images.
      config: settings of the run.
      description: label of the progress bar.
    """
    n_tiles = dataset.preprocessing.n_tiles
    chunk_size = max(CHUNK_BATCHES * config.evaluation.batch_size // n_tiles, 1)
    # disable=None: shown on a terminal, silent in a log file.
    bar = tqdm(total=len(paths), unit="image", desc=description, disable=None)
    chunks = prefetch(
        (start, dataset.images(paths[start : start + chunk_size]))
        for start in range(0, len(paths), chunk_size)
    )
    with bar, contextlib.closing(chunks):
        for start, images in chunks:
            yield start, images
            bar.update(len(images))
            report_progress()


def compute_metrics(
    detector: TrainedDetector, dataset: FewShotDataset, test: TestScores
) -> dict[str, Any]:
    """Returns the content of eval/metrics.json.

    Measures that need normal images or anomalies are left out if there are none.
    """
    labels = np.array([example.label for example in dataset.test_examples], int)
    scores = test.scores
    results = {
        "step": detector.step,
        "trained_classes": dict(dataset.split.trained_classes),
        "n_test_normal": int(np.sum(labels == 0)),
        "n_test_anomaly": int(np.sum(labels == 1)),
        "n_test_duplicates": len(dataset.test_duplicates),
        **image_metrics(labels, scores),
        **test.pixel_metrics,
    }
    for threshold in detector.thresholds:
        kind = threshold.kind
        results[f"{kind}_threshold"] = threshold.value
        results[f"{kind}_promised_false_alarm_rate"] = threshold.false_alarm_rate
        for name, rate in alarm_rates(labels, scores, threshold.value).items():
            results[f"{kind}_{name}"] = rate
    if detector.config.dataset.calibration or len(detector.calibration_scores):
        results["n_calibration"] = len(detector.calibration_scores)
    return results
