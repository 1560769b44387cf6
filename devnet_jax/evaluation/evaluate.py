"""Evaluation of a run on its test images: eval/scores.csv, eval/metrics.json and the report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from devnet_jax.config import Config
from devnet_jax.data.example import Example
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.distributed.cluster import (
    broadcast,
    is_rank_zero,
    locked_by_rank_zero,
)
from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.evaluation.intervals import excess_p_value
from devnet_jax.evaluation.metrics import alarm_rates, image_metrics, kind_metrics
from devnet_jax.evaluation.scoring import (
    TestScores,
    score_labelled_anomalies,
    score_paths,
    score_test_images,
)
from devnet_jax.evaluation.tensorboard import log_evaluation
from devnet_jax.inference.calibration import (
    Calibration,
    recalibration_of_step,
    write_calibration,
)
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.report.build import run_report
from devnet_jax.report.content import LabelledAnomalies
from devnet_jax.report.page import to_html
from devnet_jax.report.summary import describe_expected
from devnet_jax.runtime.io import write_csv, write_json, write_text
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.progress import Phase
from devnet_jax.runtime.workdir import Workdir, keep_evaluation_settings
from devnet_jax.training.learned import read_learned
from devnet_jax.training.resume import open_dataset

logger = logging.getLogger(__name__)


@standard_numerics()
def evaluate(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Evaluates the detector of a run, and writes the results and the report.

    Restores the detector, calibrates it, and scores and explains the test images. Several processes
    share the images; process 0 writes. Without test images there is no report. The settings of the
    evaluation are kept in config.json, so that predictions and exports use its threshold.

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
        test = score_test_images(detector, dataset, dataset.test_examples)
        labelled: LabelledAnomalies | None = None
        if dataset.test_examples:  # else there is no report
            learned = read_learned(workdir, detector.step)
            cross_validated = learned.anomaly_scores if learned else ()
            labelled = score_labelled_anomalies(detector, dataset, cross_validated)
        results: dict[str, Any] | None = None
        if test is not None:
            results = compute_metrics(detector, dataset, test)
            results |= estimate_performance(detector, workdir)
            _write_results(workdir, detector, dataset, test, labelled, results)
            if keep_evaluation_settings(workdir, config):
                logger.info("%s: keeps the settings of this evaluation", workdir.config)
        return broadcast(results)


def _write_results(
    workdir: Workdir,
    detector: TrainedDetector,
    dataset: FewShotDataset,
    test: TestScores,
    labelled: LabelledAnomalies | None,
    results: dict[str, Any],
) -> None:
    write_scores(workdir.evaluation, detector, dataset.test_examples, test)
    write_json(workdir.evaluation / "metrics.json", results)
    if len(test.scores):
        with Phase("writing the report"):
            report = run_report(
                workdir,
                detector,
                dataset,
                results,
                test.pictures,
                test.pixel_aurocs,
                labelled,
            )
            write_text(workdir.report, to_html(report))
    log_evaluation(workdir, results, test.pictures)


def write_scores(
    folder: epath.Path, detector: ImageScorer, examples: Sequence[Example], test: TestScores
) -> None:
    """Writes the scores of test images, and the verdicts on them, to scores.csv in a folder."""
    verdicts = detector.verdict_columns(test.scores)
    write_csv(
        folder / "scores.csv",
        ["path", "label", "defect", "score", *verdicts, "reason"],
        [
            (PurePosixPath(example.path), example.label, example.defect, *values)
            for example, *values in zip(
                *(examples, test.scores, *verdicts.values(), test.reasons), strict=True
            )
        ],
    )


def estimate_performance(detector: TrainedDetector, workdir: Workdir) -> dict[str, float]:
    """Returns the entries of `expected_performance` for eval/metrics.json, and logs them.

    Empty with fewer than two labelled anomalies, and for devnet.
    """
    learned = read_learned(workdir, detector.step)
    if learned is None:
        return {}
    expected = expected_performance(
        learned.normal_scores, learned.anomaly_scores, detector.threshold
    )
    described = describe_expected(expected)
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
    scores = score_paths(detector, dataset, dataset.calibration, "calibrating")
    if is_rank_zero():
        write_calibration(workdir, Calibration(detector.step, scores))
    detector = dataclasses.replace(detector, calibration_scores=scores)
    if detector.shortage:
        logger.warning("%s", detector.shortage)
    return detector


def compute_metrics(
    detector: TrainedDetector, dataset: FewShotDataset, test: TestScores
) -> dict[str, Any]:
    """Returns the content of eval/metrics.json; see `measure`."""
    results = {
        "step": detector.step,
        "trained_classes": dict(dataset.split.trained_classes),
        **measure(detector, dataset.test_examples, test, len(dataset.test_duplicates)),
    }
    if detector.unfinished is not None:
        results["newest_step"], results["last_step"] = detector.unfinished
    if detector.config.dataset.calibration or len(detector.calibration_scores):
        results["n_calibration"] = len(detector.calibration_scores)
    return results


def measure(
    detector: ImageScorer,
    examples: Sequence[Example],
    test: TestScores,
    n_duplicates: int | None,
) -> dict[str, Any]:
    """Returns numbers of images, and measures with counts and 95 % intervals, for metrics.json.

    Measures that need normal images or anomalies are left out if there are none.

    Args:
      detector: detector that has scored them.
      examples: examples of the test images.
      test: their results.
      n_duplicates: number of test images that equal a training image; `None` if it is unknown.
    """
    labels = np.array([example.label for example in examples], int)
    scores = test.scores
    results = {
        "n_test_normal": int(np.sum(labels == 0)),
        "n_test_anomaly": int(np.sum(labels == 1)),
        **({} if n_duplicates is None else {"n_test_duplicates": n_duplicates}),
        **image_metrics(labels, scores),
        **test.pixel_metrics,
    }
    for threshold in detector.thresholds:
        kind = threshold.kind
        results[f"{kind}_threshold"] = threshold.value
        if threshold.false_alarm_rate is not None:
            results[f"{kind}_promised_false_alarm_rate"] = threshold.false_alarm_rate
        for name, rate in alarm_rates(labels, scores, threshold.value).items():
            results[f"{kind}_{name}"] = rate
        if threshold.kind == "calibrated" and results["n_test_normal"]:
            assert threshold.n_calibration is not None
            assert threshold.false_alarm_rate is not None
            results["calibrated_excess_p_value"] = excess_p_value(
                int(results["calibrated_n_false_alarms"]),
                int(results["n_test_normal"]),
                threshold.n_calibration,
                threshold.false_alarm_rate,
            )
    anomalies = np.flatnonzero(labels == 1).tolist()
    if detector.threshold is not None and detector.kinds and anomalies:
        results |= kind_metrics(
            [examples[i].defect for i in anomalies],
            [test.kinds[i] for i in anomalies],
            detector.threshold.alarms(scores[anomalies]).tolist(),
            detector.kinds,
        )
    return results
