"""The pictures of a review: those to look at, followed by those that the run has learned from."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from devnet_jax.data.decode import fit_image, map_in_threads
from devnet_jax.data.pages import split_page
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.images import decode_file
from devnet_jax.prediction.inputs import Inputs

MAX_SIZE = 4096  # pixels of the longer side that a page is given
_MAX_THUMBNAIL = 512  # pixels of the longer side of images that are kept
_MAX_PIXELS_KEPT = 1 << 28  # bytes of kept network inputs


class Pictures:
    """An `ImageReader` of files; one that cannot be read is black, and has an error.

    Attributes:
      names: name of each picture to look at: its path relative to `folder`.
      folder: absolute path of the folder that contains them.
      paths: paths of these pictures, followed by those of the run.
      preprocessing: settings of the way to the network's input.
      errors: message for each picture that could not be read, by its number.
    """

    is_cached = False

    def __init__(
        self, inputs: Inputs, others: Sequence[Path], preprocessing: Preprocessing
    ) -> None:
        """Lists the pictures; nothing is read yet.

        Args:
          inputs: pictures to look at.
          others: paths of the pictures that the run has learned from.
          preprocessing: settings of the way to the network's input.
        """
        self.names = [inputs.name(path) for path in inputs.paths]
        self.folder = inputs.folder
        self.paths = [*inputs.paths, *others]
        self.preprocessing = preprocessing
        self.errors: dict[int, str] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._n_kept = _MAX_PIXELS_KEPT // int(np.prod(preprocessing.shape))
        self._sizes: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._thumbnail = functools.lru_cache(maxsize=20_000)(self._encode)

    def __len__(self) -> int:
        """Returns the number of all pictures."""
        return len(self.paths)

    def fitted(self, preprocessing: Preprocessing) -> Pictures:
        """Returns the same pictures as another network's input; errors are those of both."""
        if preprocessing == self.preprocessing:
            return self
        inputs = Inputs(self.paths[: len(self.names)], self.folder)
        others = Pictures(inputs, self.paths[len(self.names) :], preprocessing)
        others.errors = self.errors
        return others

    def is_there(self, i: int) -> bool:
        """Returns True if a picture's file is there, and has not been found to be unreadable."""
        file, _ = split_page(self.paths[i])
        return i not in self.errors and os.path.isfile(file)  # noqa: PTH113 (Path.is_file may raise)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """Reads pictures into a new array, uint8 [n, *preprocessing.shape]; see `ImageReader`."""
        pixels = np.zeros((len(indices), *self.preprocessing.shape), np.uint8)

        def load(n: int) -> None:
            i = int(indices[n])
            kept = self._kept.get(i)
            if kept is None:
                kept = self._load(i)
            if kept is not None:
                pixels[n] = kept

        for _ in map_in_threads(load, range(len(indices)), description):
            pass
        return pixels

    def _load(self, i: int) -> np.ndarray | None:
        """Returns the network's input of a picture; `None` if it cannot be read."""
        try:
            pixels = fit_image(self._open(i), str(self.paths[i]), self.preprocessing)
        except UserError as error:
            self.errors[i] = str(error)
            return None
        if len(self._kept) < self._n_kept:
            self._kept[i] = pixels
        return pixels

    def _open(self, i: int) -> Image.Image:
        picture = decode_file(self.paths[i], self.preprocessing.white_level)
        self._sizes[i] = picture.height, picture.width
        return picture

    def size(self, i: int) -> tuple[int, int]:
        """Returns height and width of a picture; raises `UserError` if it cannot be read."""
        if i not in self._sizes:
            self._open(i)
        return self._sizes[i]

    def shown_size(self, i: int) -> tuple[int, int]:
        """Returns height and width of `image(i, None)`."""
        return reduced(self.size(i), MAX_SIZE)

    def image(self, i: int, size: int | None) -> tuple[bytes, str]:
        """Returns a picture as a JPEG file, and its media type.

        Args:
          i: number of the picture.
          size: largest number of pixels of a side; `None` for `MAX_SIZE`.

        Raises:
          UserError: if the picture cannot be read.
        """
        if size is not None and size <= _MAX_THUMBNAIL:
            return self._thumbnail(i, size)
        return self._encode(i, size)

    def _encode(self, i: int, size: int | None) -> tuple[bytes, str]:
        picture = self._open(i)
        height, width = reduced(self.shown_size(i), size or MAX_SIZE)
        shown = (width, height)
        if shown != picture.size:
            picture = picture.resize(shown, Image.Resampling.BILINEAR, reducing_gap=2.0)
        file = io.BytesIO()
        picture.convert("RGB").save(file, "JPEG", quality=90 if size is None else 80)
        return file.getvalue(), "image/jpeg"


def reduced(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Returns height and width of a picture that is reduced to `most` pixels of the longer side."""
    scale = min(1.0, most / max(size))
    return max(round(scale * size[0]), 1), max(round(scale * size[1]), 1)
