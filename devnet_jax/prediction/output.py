"""The output folder of a prediction: the paths of its files, and the table of scores."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from devnet_jax.data.paths import output_name
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.prediction.progress import FileResult
from devnet_jax.runtime.io import as_cell, atomic_write

_OUTPUT_NAMES = ("overlays", "predictions.csv", "report.html", ".progress")


@dataclasses.dataclass(frozen=True)
class Output:
    """Paths of the files in the output folder of a prediction.

    Attributes:
      folder: absolute path of the output folder.
    """

    folder: Path

    @property
    def table(self) -> Path:
        return self.folder / "predictions.csv"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def progress(self) -> Path:
        """Folder of the databases; deleted when the prediction is complete."""
        return self.folder / ".progress"

    @property
    def database(self) -> Path:
        """Database of the results of all processes from earlier runs."""
        return self.progress / "results.sqlite"

    def process_database(self, process: str) -> Path:
        """Database of the results of one process, later merged into `database`."""
        return self.progress / f"results-{process}.sqlite"

    @property
    def overlays(self) -> Path:
        """Folder of the overlays."""
        return self.folder / "overlays"

    def overlay(self, name: str) -> Path:
        """Returns the path of the overlay of an image.

        Args:
          name: name of the image, as `Inputs.name` returns it.
        """
        return self.overlays / output_name(name, ".jpg")

    def is_output(self, path: Path) -> bool:
        """True if a prediction to this folder may write to an absolute path."""
        if not path.is_relative_to(self.folder):
            return False
        top = path.relative_to(self.folder).parts[:1]
        return any(fnmatch.fnmatchcase(name, pattern) for name in top for pattern in _OUTPUT_NAMES)


def write_table(
    path: Path,
    results: Iterable[tuple[Path, FileResult]],
    scores: np.ndarray,
    detector: ImageScorer,
) -> None:
    """Writes predictions.csv atomically, row by row, without formulas; see `as_cell`.

    The encoding is UTF-8. File names that are not valid UTF-8 keep their bytes.

    Args:
      path: path of the table.
      results: path and result of each image, readable or not.
      scores: float64 [N], scores of those that could be read, in the same order.
      detector: detector that judges the scores.
    """
    verdicts = detector.verdict_columns(scores)
    judged = zip(*verdicts.values(), strict=True)
    value = "" if detector.threshold is None else detector.threshold.value
    with (
        atomic_write(epath.Path(path)) as temporary,
        Path(temporary).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        # Quoted, because a file name may contain any character that ends a line.
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(("path", "score", *verdicts, "threshold", "reason", "odd", "error"))
        for image, result in results:
            row: tuple[Any, ...] = (image, *[""] * (2 + len(verdicts)), "", "", result.error)
            if result.score is not None:
                row = (image, result.score, *next(judged), value, result.reason, result.odd, "")
            table.writerow(map(as_cell, row))
