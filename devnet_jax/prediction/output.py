"""The folder of a prediction: what lies where, and the table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from devnet_jax.prediction.progress import Result
from devnet_jax.thresholds import Threshold

COLUMNS = ("path", "score", "p_value", "threshold", "is_anomaly", "error")

_LONGEST_NAME = 240  # bytes; file systems allow 255, of which a temporary file's name needs some


@dataclasses.dataclass(frozen=True)
class Output:
    """The files that a process writes.

    Attributes:
      folder: absolute.
      shard: tells them from those of other processes, as "-00000-of-00004"; "" if there are none.
    """

    folder: Path
    shard: str = ""

    @property
    def table(self) -> Path:
        return self.folder / f"predictions{self.shard}.csv"

    @property
    def report(self) -> Path:
        return self.folder / f"report{self.shard}.html"

    @property
    def progress(self) -> Path:
        """A folder, gone when all is done."""
        return self.folder / f".progress{self.shard}"

    @property
    def overlays(self) -> Path:
        """A folder that all processes share."""
        return self.folder / "overlays"

    def overlay(self, name: str) -> Path:
        """The overlay of an image by its name, its path in the folder of all images."""
        place = self.overlays / f"{name}.jpg"
        if len(os.fsencode(place.name)) <= _LONGEST_NAME:
            return place
        return place.with_name(hashlib.sha256(os.fsencode(place.name)).hexdigest() + ".jpg")


def write_table(
    place: Path, results: Iterable[tuple[Path, Result]], threshold: Threshold | None
) -> None:
    """Writes predictions.csv, whole or not at all, with no more than a row in memory.

    UTF-8, but for file names that are not: these stand there byte by byte.
    """
    temporary = place.with_name(f".{place.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            # Quoted: a file name may hold any of the characters that end a line.
            table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            table.writerow(COLUMNS)
            table.writerows(_row(path, result, threshold) for path, result in results)
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _row(path: Path, result: Result, threshold: Threshold | None) -> tuple[Any, ...]:
    if result.score is None:
        return path, "", "", "", "", result.error
    # Written as float32: the shortest text that reads back to the same number.
    score = np.float32(result.score)
    p_value = "" if result.p_value is None else float(f"{result.p_value:.6g}")
    if threshold is None:
        return path, score, p_value, "", "", ""
    return path, score, p_value, threshold.value, int(result.score >= threshold.value), ""
