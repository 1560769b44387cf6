"""The end of a review: a run that learns from the table of labels, and its report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from devnet_jax.config import FOLDER_CALIBRATION, Config, with_settings
from devnet_jax.evaluation.evaluate import evaluate
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.prediction.predict import predict
from devnet_jax.review.results import FOLDER, Results
from devnet_jax.runtime.io import write_bytes
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.training.run import train

_REPLACED = ".detector.replaced"  # holds the earlier detector while it is replaced
MAX_REPORTED = 5000  # pictures that are predicted for a report; more take long


def settings_of_list(config: Config, labels: Path, folder: Path, name: str) -> Config:
    """Returns the settings of a run on a table of labels, with the network of a review.

    Args:
      config: settings that the review has learned with.
      labels: path of the table.
      folder: folder that the table's paths start from.
      name: name of the detector.
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
        "run.name": name,
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


class Finished(NamedTuple):
    """The end of a review.

    Attributes:
      report: path of the report, or `None` if there are too many pictures for one.
      shortage: warning if too few good pictures were held out to calibrate the threshold, or "".
    """

    report: Path | None
    shortage: str


def _table_of_next(results: Results) -> Path:
    """Returns the path of the table that the next detector learns from.

    There are two of them, in turn, so that the present detector keeps its own until it is replaced,
    and no third copy of the pictures is prepared.
    """
    tables = [results.path / f"learned-{number}.csv" for number in (1, 2)]
    present = Workdir(results.detector)
    if not present.config.exists():
        return tables[0]
    return tables[read_config(present).dataset.labels == str(tables[0])]


def finish(
    config: Config, results: Results, folder: Path, inputs: Sequence[str], n: int
) -> Finished:
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

    Raises:
      UserError: as `train`.
    """
    restore_replaced(results)
    new = results.path / ".detector"
    shutil.rmtree(new, ignore_errors=True)  # of a killed process
    learned = _table_of_next(results)
    write_bytes(epath.Path(learned), results.labels.read_bytes())
    # Without a run, the detector is called by its pictures.
    has_run = config.dataset.labels != str(results.labels)
    name = config.detector_name if has_run else folder.name
    workdir, settings = Workdir(new), settings_of_list(config, learned, folder, name)
    train(settings, workdir)
    evaluate(settings, workdir)
    if results.detector.exists():
        results.detector.rename(results.path / _REPLACED)
    new.rename(results.detector)
    _remove_replaced(results)
    detector = TrainedDetector.restore(results.detector)
    shortage = detector.shortage or ""
    report = Path(Workdir(results.detector).report)
    if report.exists():
        return Finished(report, shortage)
    if n > MAX_REPORTED:
        return Finished(None, shortage)
    output = results.path / "predictions"
    shutil.rmtree(output, ignore_errors=True)  # by an earlier detector
    predict(detector, inputs, str(output))
    return Finished(output / "report.html", shortage)
