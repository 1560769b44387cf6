"""ordinary.json: the summary of the training images, from which odd pictures are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from devnet_jax.data.description import describe_batch
from devnet_jax.data.ordinary import Ordinary
from devnet_jax.data.store import ImageReader
from devnet_jax.distributed.cluster import report_progress
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json, write_json
from devnet_jax.runtime.progress import Phase
from devnet_jax.runtime.workdir import Workdir

_MAX_DESCRIBED = 2000  # images of a large data set that are described
_CHUNK = 64  # images in memory at once, or tiles


def summarise_images(
    images: ImageReader, n_normal: int, sizes: Sequence[tuple[int, int]] = ()
) -> Ordinary:
    """Returns the summary of the normal training images; of very many, of an even sample.

    Args:
      images: normal training images, which may be followed by others.
      n_normal: number of normal images, at least 1.
      sizes: height and width of each of them at its own size; empty if they are not known.

    Raises:
      UserError: if an image cannot be decoded.
    """
    n = min(n_normal, _MAX_DESCRIBED)
    chosen = np.linspace(0, n_normal - 1, n).round().astype(int)
    settings = images.preprocessing
    size = max(_CHUNK // settings.n_tiles, 1)
    descriptions: list[np.ndarray] = []
    with Phase("describing good images", n) as phase:
        for start in range(0, n, size):
            pixels = images.read(chosen[start : start + size])
            descriptions += describe_batch(pixels, settings.columns)
            phase.update(len(pixels))
            report_progress()
    return Ordinary.of(descriptions, sizes)


def write_ordinary(workdir: Workdir, ordinary: Ordinary) -> None:
    """Writes ordinary.json, atomically."""
    write_json(workdir.ordinary, ordinary.to_dict())


def read_ordinary(workdir: Workdir) -> Ordinary | None:
    """Reads ordinary.json; `None` if there is none, as in runs of earlier versions.

    Raises:
      UserError: if the file is damaged.
    """
    if not workdir.ordinary.exists():
        return None
    values = read_json(workdir.ordinary)
    try:
        return Ordinary.from_dict(values)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{workdir.ordinary}: damaged; restore it, or delete it: odd pictures are then not told"
        ) from None
