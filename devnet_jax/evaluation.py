"""A trained detector over its test images → eval/scores.csv and eval/metrics.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from devnet_jax.config import Config
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.detector import Detector
from devnet_jax.errors import UserError
from devnet_jax.metrics import alarm_rates, image_metrics
from devnet_jax.resume import open_dataset
from devnet_jax.workdir import Workdir, write_csv, write_json

BATCHES_AT_ONCE = 8  # decoded together: enough for all cores, little enough for any memory


def evaluate(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Restores the detector of a workdir, scores its test images and writes the results.

    Returns:
      The content of eval/metrics.json.

    Raises:
      UserError: there is no run, no readable checkpoint, the test images are gone, or a score is
        not finite.
    """
    workdir.require_run()
    workdir.require_writable()
    dataset = open_dataset(config, workdir)
    detector = Detector.load(workdir.path, config)
    scores = score_test_images(detector, dataset)
    if not np.isfinite(scores).all():
        raise UserError(
            f"{workdir.checkpoints}: the network of step {detector.step} gives scores that are not "
            "finite; train again with a smaller config.optimizer.learning_rate"
        )
    labels = np.array([example.label for example in dataset.test_examples])
    results = {
        "step": detector.step,
        "n_test_normal": int(np.sum(labels == 0)),
        "n_test_anomaly": int(np.sum(labels == 1)),
        "n_test_duplicates": len(dataset.test_duplicates),
        **image_metrics(labels, scores),
    }
    if detector.threshold is not None:
        false_alarms, misses = alarm_rates(labels, scores, detector.threshold)
        results["prior_confidence"] = config.evaluation.confidence
        results["prior_threshold"] = detector.threshold
        results["prior_false_alarm_rate"] = false_alarms
        results["prior_miss_rate"] = misses
    write_csv(
        workdir.evaluation / "scores.csv",
        ["path", "label", "defect", "score"],
        # str of a float32 is the shortest text that reads back to the same number.
        [
            (example.path, example.label, example.defect, str(score))
            for example, score in zip(dataset.test_examples, scores, strict=True)
        ],
    )
    write_json(workdir.evaluation / "metrics.json", results)
    return results


def score_test_images(detector: Detector, dataset: FewShotDataset) -> np.ndarray:
    """Scores float32 [N] of the test images; decoded part by part, in bounded memory."""
    size = detector.config.dataset.image_size
    part = BATCHES_AT_ONCE * detector.config.evaluation.batch_size
    n = len(dataset.test_examples)
    scores = []
    with tqdm(total=n, unit="image", desc="scoring test images", disable=None) as bar:
        for start in range(0, n, part):
            images = dataset.test_images(size, start, start + part)
            scores.append(detector.score(images).scores)
            bar.update(len(images))
    return np.concatenate(scores)
