"""The output folder of a prediction: the paths of its files, and the table of scores."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath

from devnet_jax.data.paths import output_name
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prediction.progress import FileResult
from devnet_jax.runtime.io import as_cell, atomic_write

COLUMNS = ("path", "score", "p_value", "threshold", "is_anomaly", "reason", "odd", "error")

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
    path: Path, results: Iterable[tuple[Path, FileResult]], threshold: Threshold | None
) -> None:
    """Writes predictions.csv atomically, row by row, without formulas; see `as_cell`.

    The encoding is UTF-8. File names that are not valid UTF-8 keep their bytes.
    """
    with (
        atomic_write(epath.Path(path)) as temporary,
        Path(temporary).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        # Quoted, because a file name may contain any character that ends a line.
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        for image, result in results:
            table.writerow(map(as_cell, _row(image, result, threshold)))


def _row(path: Path, result: FileResult, threshold: Threshold | None) -> tuple[Any, ...]:
    if result.score is None:
        return path, "", "", "", "", "", "", result.error
    p_value = "" if result.p_value is None else float(f"{result.p_value:.6g}")
    if threshold is None:
        return path, result.score, p_value, "", "", result.reason, result.odd, ""
    is_anomaly = int(threshold.alarms(result.score))
    value = threshold.value
    return path, result.score, p_value, value, is_anomaly, result.reason, result.odd, ""
