"""Evaluation of a run or an exported file on any labelled pictures: a folder or a list."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from devnet_jax.config import Config, changed_settings
from devnet_jax.data.example import Example
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.labelled import LabelledPictures, read_labelled
from devnet_jax.distributed.cluster import broadcast, is_rank_zero, locked_by_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.evaluation.evaluate import measure, write_scores
from devnet_jax.evaluation.scoring import TestScores, score_test_images
from devnet_jax.export.read import ExportedDetector
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.report.build import UNKNOWN_TRAINING, describe_detector, labelled_report
from devnet_jax.report.page import to_html
from devnet_jax.report.summary import summarise_labelled
from devnet_jax.runtime.io import write_json, write_text
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.training.resume import open_dataset

logger = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A detector, and the data set of its run.

    Attributes:
      name: path of the run or the file.
      detector: the detector.
      dataset: data set of the run; `None` for a file, and if it cannot be opened.
    """

    name: str
    detector: ImageScorer
    dataset: FewShotDataset | None

    def __str__(self) -> str:
        """Returns the detector and its path, in words."""
        return f"{describe_detector(self.detector)} ({self.name})"


def open_detector(config: Config, workdir: Workdir, *, needs_dataset: bool = False) -> Opened:
    """Opens a detector with its thresholds as they are.

    A warning says if the data set of a run cannot be opened.

    Args:
      config: settings of the run; of no effect for a file.
      workdir: folder of the run, or path of the file.
      needs_dataset: True if a run whose data set cannot be opened is an error.

    Raises:
      UserError: if there is no detector, or `config` is not that of the run.
    """
    name = str(workdir.path)
    if workdir.is_file:
        logger.info("%s: %s", name, UNKNOWN_TRAINING)
        return Opened(name, ExportedDetector.load(workdir.path), None)
    workdir.require_run()
    dataset: FewShotDataset | None = None
    try:
        dataset = open_dataset(config, workdir)
    except UserError as error:
        if needs_dataset or changed_settings(read_config(workdir), config):
            raise
        logger.warning(
            "the data set of %s cannot be opened (%s): %s", name, error, UNKNOWN_TRAINING
        )
    return Opened(name, TrainedDetector.restore(workdir.path, config), dataset)


def evaluate_labelled(config: Config, workdir: Workdir, given: str, output: str) -> str | None:
    """Evaluates a detector on labelled pictures; changes nothing in its run.

    Writes scores.csv, metrics.json and report.html. Several processes share the pictures; process 0
    writes.

    Args:
      config: settings of the run; of no effect for a file.
      workdir: folder of the run, or path of the file.
      given: labelled pictures, as for `read_labelled`.
      output: folder of the results.

    Returns:
      The summary that is printed on the terminal, in process 0.

    Raises:
      UserError: if the pictures or the detector cannot be read, or the folder of the results cannot
        be written, belongs to a run, or is in use.
    """
    with results_folder(output) as folder, standard_numerics():
        raw = read_labelled(given)
        opened = open_detector(config, workdir)
        detector = opened.detector
        pictures = LabelledPictures(raw, detector.preprocessing)
        duplicates = _find_duplicates(opened.dataset, pictures.examples)
        test = score_test_images(detector, pictures, pictures.examples)
        summary: str | None = None
        if test is not None:
            results = _measure(detector, pictures.examples, test, duplicates)
            name = Path(given).expanduser().resolve().name
            _write(folder, name, detector, pictures.examples, duplicates, test, results)
            summary = summarise_labelled(str(opened), folder, results)
        return broadcast(summary)


@contextlib.contextmanager
def results_folder(output: str) -> Iterator[epath.Path]:
    """Locks and yields the folder of --output.

    Raises:
      UserError: if it is not local, cannot be written, belongs to a run, or is in use.
    """
    folder = Workdir(output, flag="--output")
    folder.require_results_folder()
    with locked_by_rank_zero(folder.lock()):
        yield folder.path


def _find_duplicates(
    dataset: FewShotDataset | None, examples: Sequence[Example]
) -> list[str] | None:
    """Returns the paths of the pictures that a run trained on; `None` if this is unknown.

    Logs a warning if there are some.
    """
    if dataset is None:
        return None
    duplicates = [example.path for example in examples if example.digest in dataset.train_digests]
    if duplicates and is_rank_zero():
        logger.warning(
            "%d of %d pictures equal training images, which makes the results look better than "
            "they are, for example %s",
            len(duplicates),
            len(examples),
            duplicates[0],
        )
    return duplicates


def _measure(
    detector: ImageScorer,
    examples: Sequence[Example],
    test: TestScores,
    duplicates: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the content of metrics.json."""
    if isinstance(detector, TrainedDetector):
        step = detector.step
    else:
        assert isinstance(detector, ExportedDetector)
        step = detector.card["step"]
    n_duplicates = None if duplicates is None else len(duplicates)
    return {"step": step, **measure(detector, examples, test, n_duplicates)}


def _write(
    folder: epath.Path,
    pictures_name: str,
    detector: ImageScorer,
    examples: Sequence[Example],
    duplicates: Sequence[str] | None,
    test: TestScores,
    results: dict[str, Any],
) -> None:
    write_scores(folder, detector, examples, test)
    write_json(folder / "metrics.json", results)
    content = labelled_report(
        pictures_name,
        detector,
        examples,
        duplicates,
        results,
        test.pictures,
        test.pixel_aurocs,
    )
    write_text(folder / "report.html", to_html(content))
