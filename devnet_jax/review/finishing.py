"""The end of a review: a run that learns from the table of labels, and its report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from devnet_jax.config import FOLDER_CALIBRATION, Config, with_settings
from devnet_jax.evaluation.evaluate import evaluate
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.prediction.predict import predict
from devnet_jax.review.results import FOLDER, Results
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.run import train

_REPLACED = ".detector.replaced"  # holds the earlier detector while it is replaced
MAX_REPORTED = 5000  # pictures that are predicted for a report; more take long


def settings_of_list(config: Config, labels: Path, folder: Path) -> Config:
    """Returns the settings of a run on a table of labels, with the network of a review.

    Args:
      config: settings that the review has learned with.
      labels: path of the table.
      folder: folder that the table's paths start from.
    """
    changes = {
        "dataset.name": "image_list",
        "dataset.labels": str(labels),
        "dataset.manual_dir": str(folder),
        "dataset.category": None,
        "dataset.known_class": None,
        "dataset.contamination": 0.0,
        "dataset.n_anomaly": "all",
        "dataset.calibration": config.dataset.calibration or FOLDER_CALIBRATION,
        "evaluation.batch_size": Config().evaluation.batch_size,
    }
    return with_settings(config, changes)


def restore_replaced(results: Results) -> None:
    """Puts things right if a process was killed between the renames of `finish`."""
    old = results.path / _REPLACED
    if old.exists() and not results.detector.exists():
        old.rename(results.detector)
    _remove_replaced(results)


def _remove_replaced(results: Results) -> None:
    """Removes the earlier detector; a review of it, which nobody can do again, moves to the new."""
    old = results.path / _REPLACED
    if (old / FOLDER).exists():
        place = results.detector / FOLDER
        if place.exists():
            place = place.with_name(f"{FOLDER}-{time.time_ns()}")
        (old / FOLDER).rename(place)
    shutil.rmtree(old, ignore_errors=True)


def finish(
    config: Config, results: Results, folder: Path, inputs: Sequence[str], n: int
) -> Path | None:
    """Trains a detector on the table of labels, evaluates it, and writes a report.

    The detector replaces that of an earlier end of this review when it is complete. It has a copy
    of the table, because labels may change later.

    Args:
      config: settings that the review has learned with.
      results: paths of the results folder; the table is written.
      folder: folder that the table's paths start from.
      inputs: files, folders and patterns of the pictures to look at, of which the report tells if
        the table has no test pictures.
      n: number of these pictures.

    Returns:
      Path of the report, or `None` if there are too many pictures for one.

    Raises:
      UserError: as `train`.
    """
    new = results.path / ".detector"
    shutil.rmtree(new, ignore_errors=True)  # of a killed process
    learned = results.path / f"learned-{time.time_ns()}.csv"
    shutil.copy(results.labels, learned)
    workdir, settings = Workdir(new), settings_of_list(config, learned, folder)
    train(settings, workdir)
    evaluate(settings, workdir)
    restore_replaced(results)
    if results.detector.exists():
        results.detector.rename(results.path / _REPLACED)
    new.rename(results.detector)
    _remove_replaced(results)
    for table in results.path.glob("learned-*.csv"):
        if table != learned:
            table.unlink()
    report = Path(Workdir(results.detector).report)
    if report.exists():
        return report
    if n > MAX_REPORTED:
        return None
    output = results.path / "predictions"
    shutil.rmtree(output, ignore_errors=True)  # by an earlier detector
    predict(TrainedDetector.restore(results.detector), inputs, str(output))
    return output / "report.html"
