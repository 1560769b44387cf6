"""The folder of a prediction: what lies where, and the table."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath

from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prediction.progress import Result
from devnet_jax.runtime.io import atomic_write

COLUMNS = ("path", "score", "p_value", "threshold", "is_anomaly", "error")

_OWN = ("overlays", "predictions.csv", "report.html", ".progress")
_LONGEST_NAME = 240  # bytes; file systems allow 255, of which a temporary file's name needs some


@dataclasses.dataclass(frozen=True)
class Output:
    """The files that a prediction writes.

    Attributes:
      folder: absolute.
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
        """A folder, gone when all is done."""
        return self.folder / ".progress"

    @property
    def database(self) -> Path:
        """What has been done before, by all processes."""
        return self.progress / "results.sqlite"

    def database_of(self, process: str) -> Path:
        """What one process does, until that is merged with the others'."""
        return self.progress / f"results-{process}.sqlite"

    @property
    def overlays(self) -> Path:
        """A folder."""
        return self.folder / "overlays"

    def overlay(self, name: str) -> Path:
        """The overlay of an image by its name, its path in the folder of all images."""
        *folders, file = Path(name).parts
        # No folder ends in .jpg as the overlays do: beside a.png a folder a.png.jpg may lie.
        marked = (re.sub(r"(\.jpg_*)\Z", r"\1_", folder, flags=re.IGNORECASE) for folder in folders)
        return self.overlays.joinpath(*map(_shortened, marked), _shortened(f"{file}.jpg", ".jpg"))

    def owns(self, path: Path) -> bool:
        """Whether an absolute path is one that this or another prediction to the folder writes."""
        if not path.is_relative_to(self.folder):
            return False
        top = path.relative_to(self.folder).parts[:1]
        return any(fnmatch.fnmatchcase(name, pattern) for name in top for pattern in _OWN)


def _shortened(name: str, suffix: str = "") -> str:
    """The name, or where it is too long one that takes its place."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(encoded).hexdigest() + suffix


def write_table(
    place: Path, results: Iterable[tuple[Path, Result]], threshold: Threshold | None
) -> None:
    """Writes predictions.csv, whole or not at all, with no more than a row in memory.

    UTF-8, but for file names that are not: these stand there byte by byte.
    """
    with (
        atomic_write(epath.Path(place)) as temporary,
        Path(temporary).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        # Quoted: a file name may hold any of the characters that end a line.
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        table.writerows(_row(path, result, threshold) for path, result in results)


def _row(path: Path, result: Result, threshold: Threshold | None) -> tuple[Any, ...]:
    if result.score is None:
        return path, "", "", "", "", result.error
    p_value = "" if result.p_value is None else float(f"{result.p_value:.6g}")
    if threshold is None:
        return path, result.score, p_value, "", "", ""
    is_anomaly = int(threshold.alarms(result.score))
    return path, result.score, p_value, threshold.value, is_anomaly, ""
