"""`ImageListReader`, the images that a caller gives, read in batches as those of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from devnet_jax.data.decode import Batch, map_in_threads
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.images import ImageLike, as_batch


class ImageListReader:
    """An `ImageReader` of given images, which are decoded on all cores when they are read.

    Attributes:
      preprocessing: settings of the way to the network's input.
      digests: digests of the decoded images read so far.
    """

    is_cached = False

    def __init__(
        self,
        images: Sequence[ImageLike],
        preprocessing: Preprocessing,
        positions: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Creates a reader; nothing is read yet.

        Args:
          images: images of any kind that `as_batch` accepts.
          preprocessing: settings of the way to the network's input.
          positions: positions of the images in X, for messages; the default is 0, 1, 2, …
        """
        self.preprocessing = preprocessing
        self.digests: set[bytes] = set()
        self._images = images
        self._positions = range(len(images)) if positions is None else positions

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """Reads images into a new array, uint8 [n, *preprocessing.shape].

        Args:
          indices: integers [n].
          description: label of the progress bar; `None` shows no bar.

        Raises:
          UserError: if an image cannot be read.
        """
        batch = np.empty((len(indices), *self.preprocessing.shape), np.uint8)

        def load(n: int) -> None:
            i = int(indices[n])
            try:
                batch[n] = as_batch([self._images[i]], self.preprocessing).pixels[0]
            except UserError as error:
                raise UserError(f"X[{self._positions[i]}]: {error}") from None
            self.digests.add(digest(batch[n]))

        for _ in map_in_threads(load, range(len(indices)), description):
            pass
        return batch


def digest(pixels: np.ndarray) -> bytes:
    """Returns the BLAKE2 digest of an image's pixels, to find duplicates."""
    return hashlib.blake2b(pixels.data, digest_size=16).digest()


def batches(reader: ImageListReader, size: int) -> Iterator[Batch]:
    """Yields all images in order, in batches of `size` tiles, with prefetching."""
    size = max(size // reader.preprocessing.n_tiles, 1)
    parts = (
        np.arange(start, min(start + size, len(reader))) for start in range(0, len(reader), size)
    )
    return prefetch(Batch.of_pixels(reader.read(part), reader.preprocessing) for part in parts)
