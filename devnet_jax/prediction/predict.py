"""Any images → predictions.csv, overlays and report.html; resumed, and shared among processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from devnet_jax.data.decode import map_in_threads
from devnet_jax.distributed.cluster import (
    barrier,
    broadcast,
    is_rank_zero,
    locked_by_rank_zero,
    require_agreement,
)
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import Detector
from devnet_jax.prediction.inputs import Inputs, find_inputs
from devnet_jax.prediction.output import Output, write_table
from devnet_jax.prediction.progress import Progress, Result
from devnet_jax.prediction.score_files import read_image, score_files
from devnet_jax.report.build import about, as_sentence, made_with
from devnet_jax.report.content import Picture, Report, choose_pictures
from devnet_jax.report.page import to_html
from devnet_jax.report.summary import aligned, describe_dataset
from devnet_jax.report.thumbnails import side_for, thumbnail
from devnet_jax.runtime.io import write_text
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

_NO_THRESHOLD = (
    "no threshold: the loss knows no prior and nothing was calibrated; hold out normal images "
    "(config.dataset.calibration) and train again, or move the slider of the report"
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a prediction has found, and where that was written.

    Attributes:
      n_images: images, readable or not.
      n_unreadable: images that have no score.
      n_alarms: images at or above the threshold; `None` where there is no threshold, or no score.
      table: predictions.csv.
      report: report.html; `None` if no image could be read.
      overlays: their folder; `None` if no image has one.
    """

    n_images: int
    n_unreadable: int
    n_alarms: int | None
    table: Path
    report: Path | None
    overlays: Path | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        fields = dataclasses.asdict(self).items()
        return {name: str(v) if isinstance(v, Path) else v for name, v in fields}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Prediction:
        """From what `to_dict` gives."""
        paths = {name: Path(value) for name, value in values.items() if isinstance(value, str)}
        fields: dict[str, Any] = {**values, **paths}
        return cls(**fields)

    def __str__(self) -> str:
        """The last words on the terminal."""
        rows = [
            ("images", self.n_images),
            ("could not be read", self.n_unreadable or None),
            ("alarms", _alarms(self.n_alarms, self.n_images - self.n_unreadable)),
            ("score of every image", self.table),
            ("overlays", self.overlays),
            ("report, to look at", self.report),
        ]
        return "\n".join(["", *aligned([row for row in rows if row[1] is not None])])


def predict(
    detector: Detector,
    inputs: Sequence[str],
    output: str,
    *,
    strict: bool = False,
) -> Prediction:
    """Scores and explains images; goes on where a killed process has stopped.

    Writes predictions.csv, overlays/<path in the folder that holds all images>.jpg and report.html.
    The table has the columns path, score, p_value, threshold, is_anomaly and error, sorted by
    path, in UTF-8; a file name that is not valid UTF-8 stands there byte by byte (in Python,
    errors="surrogateescape" reads it back). Several processes share the images, in a folder that
    all of them see; the first one writes the table and the report.

    Args:
      detector: what scores them.
      inputs: files, folders and patterns, as `find_inputs` takes them.
      output: the folder to write to.
      strict: whether to stop at the first image that cannot be read.

    Returns:
      What all processes have found together.

    Raises:
      UserError: there is nothing to predict, the folder cannot be written or is that of a run,
        another process works there, overlays of the anomalous are asked for without a threshold,
        scores are not finite, or, if `strict`, an image cannot be read.
    """
    folder = Workdir(output, flag="--output")
    if not folder.is_local:
        raise UserError(f"--output={output}: results are written to local disks only; choose one")
    folder.require_writable()
    if folder.config.exists():
        raise UserError(f"--output={output}: is the folder of a run; choose another")
    if detector.threshold is None:
        if detector.config.evaluation.overlays == "anomalous":
            raise UserError(
                "config.evaluation.overlays=anomalous: without a threshold no image is; choose "
                "'all' or 'none', or hold out normal images (config.dataset.calibration) and train "
                "again"
            )
        logger.warning(_NO_THRESHOLD)
    written = Output(Path(folder.path))
    found = find_inputs(inputs, written.folder)
    origin = _origin(detector, found)
    concluded: Prediction | None = None
    lock = Workdir(written.progress, flag="--output").lock(shown=written.folder)
    require_agreement("the detector or its settings", origin)
    with locked_by_rank_zero(lock), warnings.catch_warnings():
        # What Pillow thinks of a file that can be read is nothing that its user need mend.
        warnings.filterwarnings("ignore", module="PIL")
        if is_rank_zero():
            _merge_progress(written, origin).close()  # what earlier processes have done
        barrier("begun")
        _score_share(detector, found, written, origin, strict)
        barrier("scored")
        if is_rank_zero():
            with contextlib.closing(_merge_progress(written, origin)) as progress:
                concluded = _conclude(detector, found, written, progress)
                progress.remove()
        of_first = broadcast(None if concluded is None else concluded.to_dict())
    if is_rank_zero():
        with contextlib.suppress(OSError):  # the lock leaves what a killed process had made
            written.progress.rmdir()
    return concluded or Prediction.from_dict(of_first)


def _merge_progress(output: Output, origin: str) -> Progress:
    """All that processes have done, each in a database of its own, in one."""
    progress = Progress(output.database, origin)
    for part in sorted(output.progress.glob(output.database_of("*").name)):
        progress.absorb(part, origin)
    return progress


def _score_share(
    detector: Detector, inputs: Inputs, output: Output, origin: str, strict: bool
) -> None:
    """Scores this process's part of the files, but for those that have been."""
    index, count = jax.process_index(), jax.process_count()
    # By name, not by place: each process lists the files by itself, and may find new ones.
    paths = [path for path in inputs.paths if _share(inputs.name(path), count) == index]
    with (
        contextlib.closing(Progress(output.database, origin)) as earlier,
        contextlib.closing(Progress(output.database_of(f"{index:05}"), origin)) as own,
    ):
        score_files(detector, inputs, paths, output, earlier, own, strict)


def _share(name: str, count: int) -> int:
    """Which of so many processes has the image of that name."""
    return zlib.crc32(os.fsencode(name)) % count


def _origin(detector: Detector, inputs: Inputs) -> str:
    """What scores and overlays depend on besides the images, as text."""
    config = detector.config.to_dict()
    del config["evaluation"]["batch_size"]  # a smaller one may be what lets the work go on
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(detector.variables):
        weights.update(np.asarray(leaf).tobytes())
    thresholds = [threshold.value for threshold in detector.thresholds]
    return json.dumps([config, detector.step, weights.hexdigest(), thresholds, str(inputs.folder)])


def _conclude(detector: Detector, inputs: Inputs, output: Output, progress: Progress) -> Prediction:
    """Writes the table and the report."""

    def results() -> Iterator[tuple[Path, Result]]:
        for path in inputs.paths:
            if (result := progress.get(inputs.name(path))) is not None:
                yield path, result

    threshold = detector.threshold
    write_table(output.table, results(), threshold)
    errors, scored, found = [], [], []
    for path, result in results():
        if result.score is None:
            errors.append((str(path), result.error))
        else:
            scored.append(path)
            found.append(result.score)
    n_images = len(scored) + len(errors)
    if n_images < len(inputs.paths):  # their process had listed the files before
        late = len(inputs.paths) - n_images
        logger.warning("%d images came while others were scored: run the same again", late)
    scores = np.array(found, np.float64)
    n_alarms = int(np.sum(threshold.alarms(scores))) if threshold and scored else None
    if scored:
        chosen = [scored[i] for i in choose_pictures(scores)]
        pictures = _pictures(detector, inputs, chosen, output, progress)
        report = _report(detector, scores, n_alarms, errors, pictures)
        write_text(epath.Path(output.report), to_html(report))
    else:
        output.report.unlink(missing_ok=True)  # of an earlier prediction
    n_overlays = sum(output.overlay(inputs.name(path)).exists() for path in inputs.paths)
    n_there = sum(len(files) for _, _, files in os.walk(output.overlays))
    if n_there > n_overlays:
        strays = n_there - n_overlays
        logger.info("%s: %d are of an earlier prediction's images", output.overlays, strays)
    return Prediction(
        n_images=n_images,
        n_unreadable=len(errors),
        n_alarms=n_alarms,
        table=output.table,
        report=output.report if scored else None,
        overlays=output.overlays if n_overlays else None,
    )


def _pictures(
    detector: Detector,
    inputs: Inputs,
    paths: Sequence[Path],
    output: Output,
    progress: Progress,
) -> list[Picture]:
    """Thumbnails of images, which are read once more; what is gone meanwhile is left out."""
    size = detector.config.dataset.image_size
    side = side_for(len(paths))

    def picture(result_of_path: tuple[Path, Result]) -> Picture | None:
        path, result = result_of_path
        image = read_image(path, size).image
        if image is None or result.score is None:
            return None
        overlay = read_image(output.overlay(result.name), size).image
        return Picture(
            path=str(path),
            score=result.score,
            label=None,
            defect="",
            image=thumbnail(image, side),
            overlay=None if overlay is None else thumbnail(overlay, side),
            p_value=result.p_value,
        )

    results = [(path, result) for path in paths if (result := progress.get(inputs.name(path)))]
    pictures = map_in_threads(picture, results, "report")
    return [one for one in pictures if one is not None]


def _report(
    detector: Detector,
    scores: np.ndarray,
    n_alarms: int | None,
    errors: Sequence[tuple[str, str]],
    pictures: Sequence[Picture],
) -> Report:
    rows = [
        ("images", f"{len(scores) + len(errors)}"),
        ("alarms", _alarms(n_alarms, len(scores))),
        ("could not be read", f"{len(errors)}" if errors else None),
    ]
    return Report(
        title="Predictions",
        subtitle=f"by the detector of {describe_dataset(detector.config)}, trained in "
        f"{detector.step} steps; {made_with()}",
        scores=scores,
        numbers=[(name, value) for name, value in rows if value is not None],
        notes=_notes(detector),
        pictures=pictures,
        errors=errors,
        **about(detector),
    )


def _alarms(n_alarms: int | None, n_scored: int) -> str | None:
    if n_alarms is None:
        return None
    return f"{n_alarms} of {n_scored} scored ({n_alarms / n_scored:.1%})"


def _notes(detector: Detector) -> list[str]:
    notes = (detector.shortage, _NO_THRESHOLD if detector.threshold is None else None)
    return [as_sentence(note) for note in notes if note is not None]
