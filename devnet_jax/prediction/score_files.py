"""Scores image files and writes their overlays, in chunks of bounded memory."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from devnet_jax.data.decode import load_image, map_in_threads
from devnet_jax.data.paths import FileState, file_state, read_file
from devnet_jax.data.prefetch import prefetch
from devnet_jax.distributed.cluster import report_progress
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import as_written
from devnet_jax.prediction.inputs import Inputs
from devnet_jax.prediction.output import Output
from devnet_jax.prediction.progress import FileResult, Progress
from devnet_jax.runtime.io import write_jpeg

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = 2**30  # bytes; a file is read into memory at once
BATCHES_PER_CHUNK = 2  # a chunk is decoded and stored at once; a killed process loses one chunk


class ReadImage(NamedTuple):
    """An image file that was read and decoded.

    Attributes:
      path: path of the file.
      state: `FileState` of the file as text; "" if it could not be read.
      image: uint8 [S, S, 3]; `None` if the file could not be read.
      error: error message if the file could not be read, else "".
    """

    path: Path
    state: str
    image: np.ndarray | None
    error: str


def score_files(
    detector: TrainedDetector,
    inputs: Inputs,
    paths: Sequence[Path],
    output: Output,
    earlier: Progress,
    progress: Progress,
    strict: bool,
) -> None:
    """Scores the images that have no score yet, and writes their overlays.

    Args:
      detector: detector that scores the images.
      inputs: input images of all processes.
      paths: paths of the images that this process scores.
      output: output folder.
      earlier: results of earlier runs.
      progress: database that new results are added to.
      strict: if True, stops at the first image that cannot be read.

    Raises:
      UserError: if scores are not finite, or, with `strict`, an image cannot be read.
    """
    todo = [path for path in paths if not _is_scored(path, earlier.get(inputs.name(path)))]
    n_done = len(paths) - len(todo)
    if n_done:
        logger.info("%d of %d images already have a score", n_done, len(paths))
    # disable=None: no progress bar unless stderr is a terminal.
    bar = tqdm(total=len(paths), initial=n_done, unit="image", desc="predicting", disable=None)
    chunks = _read_in_chunks(
        todo,
        BATCHES_PER_CHUNK * detector.config.evaluation.batch_size,
        detector.config.dataset.image_size,
    )
    with bar, contextlib.closing(chunks):
        for chunk in chunks:
            errors = [read.error for read in chunk if read.image is None]
            if strict and errors:
                raise UserError(errors[0])
            progress.add(_score_chunk(detector, inputs, chunk, output))
            bar.update(len(chunk))
            report_progress()


def read_image(path: Path, image_size: int) -> ReadImage:
    """Reads a file and decodes it to image_size × image_size pixels."""
    try:
        state = file_state(path)  # before reading: a file that changes meanwhile is scored again
        if state.size > MAX_FILE_SIZE:
            error = (
                f"image '{path}' has {state.size:,} bytes, more than the maximum of "
                f"{MAX_FILE_SIZE:,}: make it smaller or crop it"
            )
            return ReadImage(path, "", None, error)
        image = load_image(read_file(path), str(path), image_size)
    except UserError as error:
        return ReadImage(path, "", None, str(error))
    return ReadImage(path, _as_text(state), image, "")


def _as_text(state: FileState) -> str:
    return " ".join(map(str, state))


def _is_scored(path: Path, result: FileResult | None) -> bool:
    """True if a file has a score and has not changed since."""
    if result is None or result.score is None:
        return False
    with contextlib.suppress(UserError):
        return _as_text(file_state(path)) == result.state
    return False


def _read_in_chunks(
    paths: Sequence[Path], chunk_size: int, image_size: int
) -> Generator[list[ReadImage], None, None]:
    """Yields the files in chunks; a thread reads the next chunk in advance."""
    read = functools.partial(read_image, image_size=image_size)
    return prefetch(
        list(map_in_threads(read, paths[start : start + chunk_size], None))
        for start in range(0, len(paths), chunk_size)
    )


def _score_chunk(
    detector: TrainedDetector, inputs: Inputs, chunk: Sequence[ReadImage], output: Output
) -> list[FileResult]:
    """Scores a chunk of images and writes their overlays; returns the results."""
    names = [inputs.name(read.path) for read in chunk]
    results = {
        name: FileResult(name, read.state, None, None, "", read.error)
        for name, read in zip(names, chunk, strict=True)
    }
    images = [read.image for read in chunk if read.image is not None]
    readable = [name for name, read in zip(names, chunk, strict=True) if read.image is not None]
    overlaid = []
    if readable:
        stacked = np.stack(images)
        scored = detector.score(stacked)
        scores, p_values = as_written(scored.scores), scored.p_values
        for i, name in enumerate(readable):
            results[name] = results[name]._replace(
                score=float(scores[i]),
                p_value=None if p_values is None else float(p_values[i]),
                reason=scored.reasons[i],
            )
        chosen = _overlay_indices(detector, scores)
        overlaid = [readable[i] for i in chosen]
        overlay_paths = [output.overlay(name) for name in overlaid]
        _write_overlays(
            detector, stacked[chosen], scores[chosen], scored.maps[chosen], overlay_paths
        )
    for name in set(names) - set(overlaid):
        output.overlay(name).unlink(missing_ok=True)  # an earlier prediction may have written it
    return list(results.values())


def _overlay_indices(detector: TrainedDetector, scores: np.ndarray) -> np.ndarray:
    """Returns the indices of the images that get an overlay, from `evaluation.overlays`."""
    settings = detector.config.evaluation
    if "none" in (settings.explanation, settings.overlays):
        return np.empty(0, int)
    if settings.overlays == "all":
        return np.arange(len(scores))
    assert detector.threshold is not None  # `predict` has checked it
    return np.flatnonzero(detector.threshold.alarms(scores))


def _write_overlays(
    detector: TrainedDetector,
    images: np.ndarray,
    scores: np.ndarray,
    score_maps: np.ndarray,
    paths: Sequence[Path],
) -> None:
    if not paths:
        return
    maps = detector.explain(images, maps=score_maps).maps

    def write(i: int) -> None:
        overlay = detector.overlay(images[i], scores[i], maps[i])
        write_jpeg(epath.Path(paths[i]), overlay)

    for _ in map_in_threads(write, range(len(paths)), None):
        pass
