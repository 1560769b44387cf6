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

from devnet_jax.data.decode import Batch, fit_image, map_in_threads
from devnet_jax.data.pages import split_page
from devnet_jax.data.paths import FileState, file_state
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.distributed.cluster import report_progress
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.images import decode_file
from devnet_jax.inference.scores import Scores, as_written
from devnet_jax.prediction.inputs import Inputs
from devnet_jax.prediction.output import Output
from devnet_jax.prediction.progress import FileResult, Progress
from devnet_jax.runtime.io import write_jpeg
from devnet_jax.runtime.progress import COMPILING, Phase

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = 2**30  # bytes; a file is read into memory at once
BATCHES_PER_CHUNK = 2  # a chunk is decoded and stored at once; a killed process loses one chunk


class ReadImage(NamedTuple):
    """An image file that was read and decoded.

    Attributes:
      path: path of the file.
      state: `FileState` of the file as text; "" if it could not be read.
      image: network's input, uint8 [*preprocessing.shape]; `None` if the file could not be read.
      shape: height and width of the image itself.
      error: error message if the file could not be read, else "".
    """

    path: Path
    state: str
    image: np.ndarray | None
    shape: tuple[int, int]
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
    settings = detector.preprocessing
    n_batches = BATCHES_PER_CHUNK * detector.config.evaluation.batch_size
    chunks = read_in_chunks(todo, max(n_batches // settings.n_tiles, 1), settings)
    phase = Phase("predicting", len(paths), done=n_done, first=COMPILING if todo else "")
    with phase, contextlib.closing(chunks):
        for chunk in chunks:
            errors = [read.error for read in chunk if read.image is None]
            if strict and errors:
                raise UserError(errors[0])
            progress.add(_score_chunk(detector, inputs, chunk, output))
            phase.update(len(chunk))
            report_progress()


def read_image(path: Path, preprocessing: Preprocessing) -> ReadImage:
    """Reads an image file, and fits the image to the network's input."""

    def fail(error: str) -> ReadImage:
        return ReadImage(path, "", None, (0, 0), error)

    try:
        state = file_state(
            split_page(path)[0]
        )  # before reading: a file that changes meanwhile is scored again
        if state.size > MAX_FILE_SIZE:
            return fail(
                f"image '{path}' has {state.size:,} bytes, more than the maximum of "
                f"{MAX_FILE_SIZE:,}: make it smaller or crop it"
            )
        image = decode_file(path, preprocessing.white_level)
        pixels = fit_image(image, str(path), preprocessing)
    except UserError as error:
        return fail(str(error))
    return ReadImage(path, _as_text(state), pixels, (image.height, image.width), "")


def _as_text(state: FileState) -> str:
    return " ".join(map(str, state))


def _is_scored(path: Path, result: FileResult | None) -> bool:
    """True if a file has a score and has not changed since."""
    if result is None or result.score is None:
        return False
    with contextlib.suppress(UserError):
        return _as_text(file_state(split_page(path)[0])) == result.state
    return False


def read_in_chunks(
    paths: Sequence[Path], chunk_size: int, preprocessing: Preprocessing
) -> Generator[list[ReadImage], None, None]:
    """Yields the files in chunks; a thread reads the next chunk in advance."""
    read = functools.partial(read_image, preprocessing=preprocessing)
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
        name: FileResult(name, read.state, None, "", read.error)
        for name, read in zip(names, chunk, strict=True)
    }
    named = [(name, read) for name, read in zip(names, chunk, strict=True) if not read.error]
    readable = [name for name, _ in named]
    overlaid = []
    if readable:
        batch = readable_batch([read for _, read in named], detector.preprocessing.white_level)
        scored = detector.score(batch)
        scores = as_written(scored.scores)
        for i, name in enumerate(readable):
            results[name] = results[name]._replace(
                score=float(scores[i]),
                reason=scored.reasons[i],
                odd=scored.odd[i],
            )
        chosen = _overlay_indices(detector, scores)
        overlaid = [readable[i] for i in chosen]
        overlay_paths = [output.overlay(name) for name in overlaid]
        _write_overlays(detector, batch, scored, scores, chosen, overlay_paths)
    for name in set(names) - set(overlaid):
        output.overlay(name).unlink(missing_ok=True)  # an earlier prediction may have written it
    return list(results.values())


def readable_batch(images: Sequence[ReadImage], white_level: int) -> Batch:
    """Returns readable images as a batch."""
    return Batch(
        np.stack([read.image for read in images if read.image is not None]),
        [read.shape for read in images],
        lambda i: decode_file(images[i].path, white_level),
    )


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
    images: Batch,
    scored: Scores,
    scores: np.ndarray,
    chosen: np.ndarray,
    paths: Sequence[Path],
) -> None:
    """Writes the overlays of the chosen images.

    Args:
      detector: detector that explains.
      images: all images of the chunk.
      scored: result of `detector.score`.
      scores: scores, as written.
      chosen: int [n], indices of the images to write.
      paths: file of each of them.
    """
    if not paths:
        return
    some = Batch(
        images.pixels[chosen],
        [images.sizes[i] for i in chosen],
        lambda i: images.original(int(chosen[i])),
    )
    maps = detector.input_maps(some, maps=scored.maps[chosen])

    def write(i: int) -> None:
        laid = detector.lay(maps[i], some.sizes[i])
        overlay = detector.overlay(detector.picture(some, i), scores[chosen[i]], laid)
        write_jpeg(epath.Path(paths[i]), overlay)

    for _ in map_in_threads(write, range(len(paths)), None):
        pass
