"""Predicts the scores of images: writes predictions.csv, overlays and report.html.

An interrupted prediction can be resumed, and several processes can share one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from devnet_jax.data.decode import decode_image, map_in_threads
from devnet_jax.data.paths import read_file
from devnet_jax.distributed.cluster import (
    barrier,
    broadcast,
    is_rank_zero,
    locked_by_rank_zero,
    require_agreement,
)
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prediction.inputs import Inputs, find_inputs
from devnet_jax.prediction.output import Output, write_table
from devnet_jax.prediction.progress import FileResult, Progress
from devnet_jax.prediction.score_files import read_image, readable_batch, score_files
from devnet_jax.report.build import (
    as_sentence,
    date_and_devices,
    describe_detector,
    detector_fields,
)
from devnet_jax.report.content import Picture, Report, choose_pictures
from devnet_jax.report.digits import format_rate, format_threshold
from devnet_jax.report.page import to_html
from devnet_jax.report.summary import align_rows
from devnet_jax.report.thumbnails import side_for, thumbnail
from devnet_jax.runtime.io import write_text
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

_NO_THRESHOLD = (
    "no threshold: the loss has no prior and no threshold was calibrated; set "
    "config.dataset.calibration and train again, or move the slider of the report"
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Counts of a prediction, and the paths of its files.

    Attributes:
      n_images: number of images, readable or not.
      n_unreadable: number of images that could not be read and have no score.
      n_alarms: number of images with a score at or above the threshold; `None` without a threshold
        or without any score.
      table: path of predictions.csv.
      report: path of report.html; `None` if no image could be read.
      overlays: folder of the overlays; `None` if there are none.
      odd: number of images that are unlike the training images, by reason, the commonest first.
      drift: warning that the scores of images that pass have moved since calibration, or "".
      threshold: threshold of the alarms, in words, or "".
    """

    n_images: int
    n_unreadable: int
    n_alarms: int | None
    table: Path
    report: Path | None
    overlays: Path | None
    odd: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drift: str = ""
    threshold: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        fields = dataclasses.asdict(self).items()
        return {name: str(v) if isinstance(v, Path) else v for name, v in fields}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Prediction:
        """Creates a prediction from the values of `to_dict`."""
        names = ("table", "report", "overlays")
        paths = {name: Path(values[name]) for name in names if values[name] is not None}
        fields: dict[str, Any] = {**values, **paths}
        return cls(**fields)

    def __str__(self) -> str:
        """Returns the summary that is printed on the terminal."""
        rows = [
            ("images", self.n_images),
            ("could not be read", self.n_unreadable or None),
            ("alarms", _format_alarms(self.n_alarms, self.n_images - self.n_unreadable)),
            ("threshold", self.threshold or None),
            ("odd images", self.describe_odd() or None),
            ("warning", self.drift or None),
            ("score of every image", self.table),
            ("overlays", self.overlays),
            ("report", self.report),
        ]
        return "\n".join(["", *align_rows([row for row in rows if row[1] is not None])])

    def describe_odd(self) -> str:
        """Returns the number of odd images and their reasons in words, or ""."""
        if not self.odd:
            return ""
        kinds = ", ".join(f"{reason} {n}" for reason, n in self.odd.items())
        return f"{sum(self.odd.values())} ({kinds}): see the column odd"


def predict(
    detector: TrainedDetector,
    inputs: Sequence[str],
    output: str,
    *,
    strict: bool = False,
) -> Prediction:
    """Scores and explains images; resumes an interrupted prediction.

    Writes predictions.csv, report.html and overlays/NAME.jpg, where NAME is the path of an image
    relative to the common folder of all images. The table is sorted by path and has the columns
    path, score, severity, p_value, is_anomaly, threshold, reason, odd and error
    (`ImageScorer.verdict_columns`). It is UTF-8, except that file names that are not valid UTF-8
    keep their bytes (in Python, errors="surrogateescape" reads them).

    Several processes divide the images among themselves; they need a shared output folder. Rank
    zero writes the table and the report.

    Args:
      detector: detector that scores the images.
      inputs: files, folders and patterns, as for `find_inputs`.
      output: output folder.
      strict: if True, stops at the first image that cannot be read.

    Returns:
      Counts over the images of all processes, and the paths of the files.

    Raises:
      UserError: if there is no image; the output folder cannot be written, belongs to a run, or is
        in use by another process; overlays of anomalous images are requested without a threshold;
        scores are not finite; or, with `strict`, an image cannot be read.
    """
    folder = Workdir(output, flag="--output")
    folder.require_results_folder()
    if detector.threshold is None:
        if detector.config.evaluation.overlays == "anomalous":
            raise UserError(
                "config.evaluation.overlays=anomalous: there is no threshold; choose 'all' or "
                "'none', or set config.dataset.calibration and train again"
            )
        logger.warning(_NO_THRESHOLD)
    files = Output(Path(folder.path))
    images = find_inputs(inputs, files.folder)
    fingerprint = _fingerprint(detector, images)
    prediction: Prediction | None = None
    lock = Workdir(files.progress, flag="--output").lock(shown=files.folder)
    require_agreement("the detector or its settings", fingerprint)
    with locked_by_rank_zero(lock), warnings.catch_warnings():
        # Warnings of Pillow about readable files are of no use to the user.
        warnings.filterwarnings("ignore", module="PIL")
        if is_rank_zero():
            _merge_progress(files, fingerprint).close()  # results of an interrupted prediction
        barrier("begun")
        _score_local_images(detector, images, files, fingerprint, strict)
        barrier("scored")
        if is_rank_zero():
            with contextlib.closing(_merge_progress(files, fingerprint)) as progress:
                prediction = _write_results(detector, images, files, progress)
                progress.remove()
        of_rank_zero = broadcast(None if prediction is None else prediction.to_dict())
    if is_rank_zero():
        with contextlib.suppress(OSError):  # the lock does not delete a folder that existed before
            files.progress.rmdir()
    return prediction or Prediction.from_dict(of_rank_zero)


def _merge_progress(output: Output, fingerprint: str) -> Progress:
    """Merges the databases of all processes into one, and opens it."""
    progress = Progress(output.database, fingerprint)
    for path in sorted(output.progress.glob(output.process_database("*").name)):
        progress.merge(path, fingerprint)
    return progress


def _score_local_images(
    detector: TrainedDetector, inputs: Inputs, output: Output, fingerprint: str, strict: bool
) -> None:
    """Scores the images of this process that have no score yet."""
    index, n_processes = jax.process_index(), jax.process_count()
    # Assigned by name, not by position: each process lists the files itself, and a file that
    # appears meanwhile would shift the positions.
    paths = [
        path for path in inputs.paths if _process_of_image(inputs.name(path), n_processes) == index
    ]
    with (
        contextlib.closing(Progress(output.database, fingerprint)) as earlier,
        contextlib.closing(Progress(output.process_database(f"{index:05}"), fingerprint)) as new,
    ):
        score_files(detector, inputs, paths, output, earlier, new, strict)


def _process_of_image(name: str, n_processes: int) -> int:
    """Returns the index of the process that scores an image."""
    return zlib.crc32(os.fsencode(name)) % n_processes


def _fingerprint(detector: TrainedDetector, inputs: Inputs) -> str:
    """Returns everything that results and overlays depend on, except the images, as text."""
    config = detector.config.to_dict()
    del config["evaluation"]["batch_size"]  # may be reduced to resume after an out-of-memory error
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(detector.variables):
        weights.update(np.asarray(leaf).tobytes())
    thresholds = [threshold.value for threshold in detector.thresholds]
    ordinary = None if detector.ordinary is None else detector.ordinary.to_dict()
    learned = [detector.step, weights.hexdigest(), thresholds, detector.kinds, ordinary]
    return json.dumps([config, *learned, str(inputs.folder)])


def _write_results(
    detector: TrainedDetector, inputs: Inputs, output: Output, progress: Progress
) -> Prediction:
    """Writes the table and the report."""

    def results() -> Iterator[tuple[Path, FileResult]]:
        for path in inputs.paths:
            if (result := progress.get(inputs.name(path))) is not None:
                yield path, result

    threshold = detector.threshold
    errors, scored, score_list, odd = [], [], [], []
    for path, result in results():
        if result.score is None:
            errors.append((str(path), result.error))
        else:
            scored.append(path)
            score_list.append(result.score)
            odd.append(result.odd)
    n_images = len(scored) + len(errors)
    if n_images < len(inputs.paths):  # created after another process had listed its images
        n_missing = len(inputs.paths) - n_images
        logger.warning(
            "%d images were added during the prediction and have no score: run the same command "
            "again",
            n_missing,
        )
    scores = np.array(score_list, np.float64)
    write_table(output.table, results(), scores, detector)
    n_alarms = int(np.sum(threshold.alarms(scores))) if threshold and scored else None
    is_odd = np.array([bool(reason) for reason in odd], bool)
    drift = None
    if threshold is not None:
        drift = detector.find_drift(scores[~threshold.alarms(scores) & ~is_odd])
    if drift is not None:
        logger.warning("%s", drift)
    prediction = Prediction(
        n_images=n_images,
        n_unreadable=len(errors),
        n_alarms=n_alarms,
        table=output.table,
        report=output.report if scored else None,
        overlays=None,
        odd=_count_reasons(odd),
        drift="" if drift is None else str(drift),
        threshold="" if threshold is None else _describe_threshold(threshold, scores),
    )
    if scored:
        chosen = [scored[i] for i in choose_pictures(scores, first=is_odd)]
        pictures = _make_pictures(detector, inputs, chosen, output, progress)
        report = _make_report(detector, prediction, scores, errors, pictures)
        write_text(epath.Path(output.report), to_html(report))
    else:
        output.report.unlink(missing_ok=True)  # an earlier prediction may have written it
    n_overlays = sum(output.overlay(inputs.name(path)).exists() for path in inputs.paths)
    n_files = sum(len(files) for _, _, files in os.walk(output.overlays))
    if n_files > n_overlays:
        logger.info(
            "%s: contains overlays of an earlier prediction: %d",
            output.overlays,
            n_files - n_overlays,
        )
    return dataclasses.replace(prediction, overlays=output.overlays if n_overlays else None)


def _describe_threshold(threshold: Threshold, scores: np.ndarray) -> str:
    """Returns a threshold in words, such as "score 1.337, calibrated"."""
    kind = "the prior's" if threshold.kind == "prior" else threshold.kind
    return f"score {format_threshold(threshold.value, scores)}, {kind}"


def _count_reasons(odd: Iterable[str]) -> dict[str, int]:
    """Returns the number of odd images by reason, the commonest first, without the details."""
    short = (re.sub(r" \(.*?\)| than the training pictures", "", reason) for reason in odd)
    counts = Counter(filter(None, short))
    return dict(counts.most_common())


def _make_pictures(
    detector: TrainedDetector,
    inputs: Inputs,
    paths: Sequence[Path],
    output: Output,
    progress: Progress,
) -> list[Picture]:
    """Reads images again and makes their thumbnails; skips files that no longer exist."""
    side = side_for(len(paths))

    def make_picture(path_and_result: tuple[Path, FileResult]) -> Picture | None:
        path, result = path_and_result
        read = read_image(path, detector.preprocessing)
        if read.image is None or result.score is None:
            return None
        batch = readable_batch([read], detector.preprocessing.white_level)
        overlay = _read_overlay(output.overlay(result.name))
        return Picture(
            path=str(path),
            score=result.score,
            label=None,
            defect="",
            image=thumbnail(detector.picture(batch, 0), side),
            overlay=None if overlay is None else thumbnail(overlay, side),
            **detector.judge(np.array([result.score])).numbers(0),
            reason=result.reason,
            kind=_named_kind(result.reason, detector.kinds),
            odd=result.odd,
        )

    results = [(path, result) for path in paths if (result := progress.get(inputs.name(path)))]
    pictures = map_in_threads(make_picture, results, "making the report")
    return [picture for picture in pictures if picture is not None]


def _named_kind(reason: str, kinds: Sequence[str]) -> str:
    """Returns the labelled kind that a reason of `Scores.reasons` names, or ""."""
    named = [kind for kind in kinds if reason.startswith(f"like the labelled {kind}")]
    return max(named, key=len, default="")  # one kind's name may be the beginning of another's


def _read_overlay(path: Path) -> np.ndarray | None:
    """Reads an overlay that was written: uint8 [h, w, 3]; `None` if there is none."""
    try:
        return decode_image(read_file(path), str(path))
    except UserError:
        return None


def _make_report(
    detector: TrainedDetector,
    prediction: Prediction,
    scores: np.ndarray,
    errors: Sequence[tuple[str, str]],
    pictures: Sequence[Picture],
) -> Report:
    rows = [
        ("images", f"{prediction.n_images}"),
        ("alarms", _format_alarms(prediction.n_alarms, len(scores))),
        ("could not be read", f"{len(errors)}" if errors else None),
    ]
    return Report(
        title=f"{detector.name}: predictions",
        subtitle=f"by the {describe_detector(detector)}; {date_and_devices()}",
        scores=scores,
        numbers=[(name, value) for name, value in rows if value is not None],
        notes=_make_notes(detector, prediction),
        pictures=pictures,
        errors=errors,
        labelled_kinds=detector.kinds,
        folder="" if all(Path(each.path).is_absolute() for each in pictures) else str(Path.cwd()),
        **detector_fields(detector),
    )


def _format_alarms(n_alarms: int | None, n_scored: int) -> str | None:
    if n_alarms is None:
        return None
    return f"{n_alarms} of {n_scored} scored ({format_rate(n_alarms, n_scored).share})"


def _make_notes(detector: TrainedDetector, prediction: Prediction) -> list[str]:
    odd = prediction.describe_odd()
    notes = (
        detector.shortage,
        _NO_THRESHOLD if detector.threshold is None else None,
        f"odd images: {odd}" if odd else None,
        prediction.drift or None,
    )
    return [as_sentence(note) for note in notes if note is not None]
