"""Loads images and masks as the network's input, on all cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from devnet_jax.data.decode.mask import decode_mask
from devnet_jax.data.decode.npy import as_image_array
from devnet_jax.data.decode.opening import open_image, values_of_pillow
from devnet_jax.data.decode.rgb import to_rgb, to_rgb_image
from devnet_jax.data.decode.values import Values, values_of_array
from devnet_jax.data.preprocessing import PADDING, Preprocessing
from devnet_jax.runtime.host_devices import n_cores
from devnet_jax.runtime.progress import Phase

T = TypeVar("T")
R = TypeVar("R")


class EncodedImages(Protocol):
    """The interface of a source of encoded images."""

    def image_bytes(self, i: int) -> bytes:
        """Returns the content of image file i."""

    def image_name(self, i: int) -> str:
        """Returns the name of image i, for messages."""


class ImageCache(Protocol):
    """The interface of a cache of decoded images."""

    def read(self, i: int, pixels: np.ndarray) -> bool:
        """Reads image i into `pixels`, the network's input, uint8.

        Returns False if the image is not cached; the content of `pixels` is then undefined.
        """

    def write(self, i: int, pixels: np.ndarray) -> None:
        """Stores the network's input of image i, uint8, if possible."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """N images as the network's input.

    Attributes:
      pixels: uint8 [N, *preprocessing.shape].
      sizes: height and width of each image itself, upright.
      original: function that decodes image i at its own size, as a Pillow image.
      sizes_known: False for images that were given as the network's input, whose own sizes are not
        known; `sizes` are then those of the input.
    """

    pixels: np.ndarray
    sizes: Sequence[tuple[int, int]]
    original: Callable[[int], Image.Image]
    sizes_known: bool = True

    def __len__(self) -> int:
        """Returns N."""
        return len(self.sizes)

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Returns the images of several batches as one."""
        owners = [(batch, i) for batch in batches for i in range(len(batch))]

        def original(i: int) -> Image.Image:
            batch, position = owners[i]
            return batch.original(position)

        pixels = np.concatenate([batch.pixels for batch in batches])
        sizes_known = all(batch.sizes_known for batch in batches)
        return cls(pixels, [batch.sizes[i] for batch, i in owners], original, sizes_known)

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, preprocessing: Preprocessing) -> Batch:
        """Returns a batch to be scored, of images that are not known themselves."""

        def original(i: int) -> Image.Image:
            raise ValueError(f"image {i} is not known at its own size")

        return cls(pixels, [preprocessing.size] * len(pixels), original, sizes_known=False)


def load_image(
    data: bytes, path: str, preprocessing: Preprocessing, *, page: int | None = None
) -> np.ndarray:
    """Decodes an image and fits it to the network's input: uint8 [*preprocessing.shape].

    Resizing is bilinear with antialiasing, as torchvision resizes Pillow images.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      preprocessing: settings of the way to the network's input.
      page: number of the page, from 0; `None` for the only one.

    Raises:
      UserError: as `decode_image`, or if the region lies beyond the image.
    """
    picture = open_picture(data, path, page=page, white_level=preprocessing.white_level)
    return fit_image(picture, path, preprocessing)


def open_picture(
    data: bytes, path: str, *, page: int | None = None, white_level: int = 0
) -> Image.Image:
    """Decodes an image as `decode_image` does, to an upright Pillow image of mode L or RGB.

    Arguments and errors are those of `decode_image`.
    """
    return to_pillow(open_image(data, path, page).content, path, white_level)


def fit_image(
    image: Image.Image | np.ndarray | Values, name: str, preprocessing: Preprocessing
) -> np.ndarray:
    """Fits a decoded image to the network's input as `load_image` does.

    Args:
      image: upright image of any mode and size, an array that `decode_image` supports, or values.
      name: name of the image, for messages.
      preprocessing: settings of the way to the network's input.

    Raises:
      UserError: if the shape or the range of values is not supported, or the region lies beyond
        the image.
    """
    image = to_pillow(image, name, preprocessing.white_level)
    seen, place = preprocessing.place(image.width, image.height, name)
    # Greyscale is resized before it is expanded to three equal channels, which is faster.
    resized = np.asarray(image.resize((place.width, place.height), Image.Resampling.BILINEAR, seen))
    if resized.ndim == 2:
        resized = np.repeat(resized[..., None], 3, axis=-1)
    if preprocessing.n_channels == 3:
        return preprocessing.split(resized)
    canvas = np.empty((*preprocessing.canvas_size, 4), np.uint8)
    canvas[:] = (*PADDING, 0)
    canvas[place.slices] = np.pad(resized, ((0, 0), (0, 0), (0, 1)), constant_values=255)
    return preprocessing.split(canvas)


def to_pillow(
    image: Image.Image | np.ndarray | Values, name: str, white_level: int = 0
) -> Image.Image:
    """Converts a decoded image to a Pillow image of mode L or RGB, as a viewer shows it.

    Args:
      image: upright image of any mode and size, an array that `decode_image` supports, or values.
      name: name of the image, for messages.
      white_level: value that is white in images of 16 bits; 0 means 65535.

    Raises:
      UserError: if the shape or the range of values is not supported.
    """
    if isinstance(image, np.ndarray):
        image = values_of_array(as_image_array(image, name))
    elif isinstance(image, Image.Image):
        image = values_of_pillow(image, name) or image
    if isinstance(image, Values):
        return Image.fromarray(to_rgb(image, name, white_level))
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    return to_rgb_image(image, name)


def load_mask(
    data: bytes, path: str, preprocessing: Preprocessing, original: bool = False
) -> np.ndarray:
    """Decodes a defect mask, and resizes what the network sees of it: bool [h, w].

    Its size is that of `Preprocessing.frame_box`. Resizing is by nearest neighbour.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      preprocessing: settings of the way to the network's input.
      original: True for the mask's own size.

    Raises:
      UserError: as `decode_image`.
    """
    mask = Image.fromarray(decode_mask(data, path).astype(np.uint8))
    seen = preprocessing.place(mask.width, mask.height, path).seen
    box = preprocessing.frame_box((mask.height, mask.width), original)
    resized = mask.resize((box.width, box.height), Image.Resampling.NEAREST, seen)
    return np.asarray(resized) > 0


def load_images(
    source: EncodedImages,
    indices: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    description: str | None = None,
    cache: ImageCache | None = None,
) -> np.ndarray:
    """Loads images on all cores: uint8 [N, *preprocessing.shape], in the order of `indices`.

    Args:
      source: source of the encoded images.
      indices: indices of the images in the source.
      preprocessing: settings of the way to the network's input.
      description: label of the progress bar; None shows no bar.
      cache: cache of decoded images; images that it does not hold are decoded and written to it.

    Raises:
      UserError: as `decode_image`, for the first image that cannot be decoded.
    """
    images = np.empty((len(indices), *preprocessing.shape), np.uint8)

    def load(n: int) -> None:
        i, pixels = int(indices[n]), images[n]
        if cache is not None and cache.read(i, pixels):
            return
        pixels[:] = load_image(source.image_bytes(i), source.image_name(i), preprocessing)
        if cache is not None:
            cache.write(i, pixels)

    for _ in map_in_threads(load, range(len(indices)), description):
        pass
    return images


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], description: str | None
) -> Iterator[R]:
    """Yields function(item) for each item in order, computed by one thread per core.

    The first error, in the order of the items, is raised; calls that have not started by then are
    cancelled.

    Args:
      function: the function to call.
      items: its arguments.
      description: name of the phase whose progress is shown (`Phase`); None shows nothing.
    """
    items = list(items)
    pool = ThreadPoolExecutor(n_cores())
    try:
        results = pool.map(function, items)
        if description is None:
            yield from results
            return
        with Phase(description, len(items)) as phase:
            for result in results:
                yield result
                phase.update()
    finally:
        pool.shutdown(cancel_futures=True)
