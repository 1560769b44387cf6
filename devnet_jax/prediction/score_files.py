"""Image files → scores on disk and overlays, part by part in bounded memory."""

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
from devnet_jax.data.paths import read_file
from devnet_jax.data.prefetch import prefetch
from devnet_jax.distributed.cluster import report_progress
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import Detector
from devnet_jax.inference.scorer import as_written
from devnet_jax.prediction.inputs import Inputs
from devnet_jax.prediction.output import Output
from devnet_jax.prediction.progress import Progress, Result
from devnet_jax.runtime.io import write_jpeg

logger = logging.getLogger(__name__)

LARGEST_FILE = 2**30  # bytes, which are read at once
BATCHES_AT_ONCE = 2  # decoded together, and lost together when the process is killed


class ReadImage(NamedTuple):
    """An image file.

    Attributes:
      path: of the file.
      size: its bytes.
      mtime_ns: when it was changed last, in nanoseconds.
      image: uint8 [S, S, 3]; `None` if it cannot be read.
      error: why not, else "".
    """

    path: Path
    size: int
    mtime_ns: int
    image: np.ndarray | None
    error: str


def score_files(
    detector: Detector,
    inputs: Inputs,
    paths: Sequence[Path],
    output: Output,
    earlier: Progress,
    progress: Progress,
    strict: bool,
) -> None:
    """Scores those of the inputs' paths that have no score yet, and writes their overlays.

    Args:
      detector: what scores them.
      inputs: all of them.
      paths: those of this process.
      output: where overlays go.
      earlier: what has been done before.
      progress: is given what is done now.
      strict: whether to stop at the first image that cannot be read.

    Raises:
      UserError: scores are not finite, or, if `strict`, an image cannot be read.
    """
    todo = [path for path in paths if not _is_done(path, earlier.get(inputs.name(path)))]
    n_done = len(paths) - len(todo)
    if n_done:
        logger.info("%d of %d images were done before", n_done, len(paths))
    # disable=None: shown on a terminal, silent in a log file.
    bar = tqdm(total=len(paths), initial=n_done, unit="image", desc="predicting", disable=None)
    parts = _read_in_parts(
        todo,
        BATCHES_AT_ONCE * detector.config.evaluation.batch_size,
        detector.config.dataset.image_size,
    )
    with bar, contextlib.closing(parts):
        for part in parts:
            errors = [one.error for one in part if one.image is None]
            if strict and errors:
                raise UserError(errors[0])
            progress.add(_results(detector, inputs, part, output))
            bar.update(len(part))
            report_progress()


def read_image(path: Path, image_size: int) -> ReadImage:
    """Reads and decodes a file to image_size × image_size pixels."""
    try:
        status = path.stat()  # before it is read: changed meanwhile, it is another file
        if status.st_size > LARGEST_FILE:
            error = (
                f"image '{path}' has {status.st_size:,} bytes, and no more than {LARGEST_FILE:,} "
                "are read: make it smaller or cut it"
            )
            return ReadImage(path, 0, 0, None, error)
        image = load_image(read_file(path), str(path), image_size)
    except UserError as error:
        return ReadImage(path, 0, 0, None, str(error))
    except OSError as error:
        return ReadImage(path, 0, 0, None, f"cannot read '{path}': {error.strerror}")
    return ReadImage(path, status.st_size, status.st_mtime_ns, image, "")


def _is_done(path: Path, result: Result | None) -> bool:
    """Whether a file has a score, and has not changed since."""
    if result is None or result.score is None:
        return False
    with contextlib.suppress(OSError):
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (result.size, result.mtime_ns)
    return False


def _read_in_parts(
    paths: Sequence[Path], at_once: int, image_size: int
) -> Generator[list[ReadImage], None, None]:
    """Reads the files, so many at once; while they are worked with, a thread reads the next."""
    read = functools.partial(read_image, image_size=image_size)
    return prefetch(
        list(map_in_threads(read, paths[start : start + at_once], None))
        for start in range(0, len(paths), at_once)
    )


def _results(
    detector: Detector, inputs: Inputs, part: Sequence[ReadImage], output: Output
) -> list[Result]:
    """The results of some images, whose overlays are on disk by then."""
    names = [inputs.name(one.path) for one in part]
    results = {
        name: Result(name, one.size, one.mtime_ns, None, None, one.error)
        for name, one in zip(names, part, strict=True)
    }
    images = [one.image for one in part if one.image is not None]
    readable = [name for name, one in zip(names, part, strict=True) if one.image is not None]
    overlaid = []
    if readable:
        stacked = np.stack(images)
        scores = as_written(detector.score(stacked).scores)
        p_values = detector.p_values(scores)
        for i, name in enumerate(readable):
            p_value = None if p_values is None else float(p_values[i])
            results[name] = results[name]._replace(score=float(scores[i]), p_value=p_value)
        chosen = _to_overlay(detector, scores)
        overlaid = [readable[i] for i in chosen]
        places = [output.overlay(name) for name in overlaid]
        _write_overlays(detector, stacked[chosen], scores[chosen], places)
    for name in set(names) - set(overlaid):
        output.overlay(name).unlink(missing_ok=True)  # of an earlier prediction
    return list(results.values())


def _to_overlay(detector: Detector, scores: np.ndarray) -> np.ndarray:
    """The indices of the images whose overlays the settings ask for."""
    settings = detector.config.evaluation
    if "none" in (settings.explanation, settings.overlays):
        return np.empty(0, int)
    if settings.overlays == "all":
        return np.arange(len(scores))
    assert detector.threshold is not None  # predict has seen to that
    return np.flatnonzero(detector.threshold.alarms(scores))


def _write_overlays(
    detector: Detector, images: np.ndarray, scores: np.ndarray, places: Sequence[Path]
) -> None:
    if not places:
        return
    maps = detector.explain(images).maps

    def write(i: int) -> None:
        overlay = detector.overlay(images[i], scores[i], maps[i])
        write_jpeg(epath.Path(places[i]), overlay)

    for _ in map_in_threads(write, range(len(places)), None):
        pass
