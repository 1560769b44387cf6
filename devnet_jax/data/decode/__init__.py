"""Decodes image files to pixels: every type that Pillow opens, and `.npy` arrays."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from devnet_jax.data.decode.file_types import NPY_MAGIC, NotAnImageError, unidentified
from devnet_jax.errors import UserError
from devnet_jax.runtime.host_devices import n_cores

__all__ = [
    "EncodedImages",
    "ImageCache",
    "NotAnImageError",
    "decode_image",
    "decode_mask",
    "load_image",
    "load_images",
    "load_mask",
    "map_in_threads",
    "resize_image",
]

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
        """Reads image i into `pixels`, uint8 [S, S, 3].

        Returns False if the image is not cached; the content of `pixels` is then undefined.
        """

    def write(self, i: int, pixels: np.ndarray) -> None:
        """Stores image i, uint8 [S, S, 3], if possible."""


def decode_image(data: bytes, path: str) -> np.ndarray:
    """Decodes an image to RGB, as a viewer shows it: uint8 [H, W, 3].

    - The type is detected from the content, not from the file's name.
    - EXIF orientation is applied; colour profiles are not.
    - Transparent images are composited over white, as most viewers do.
    - An animation gives its first frame.
    - 16-bit greyscale is scaled, not clipped, to 8 bits. Floats must be in [0, 1].
    - An `.npy` array must be H×W, H×W×1 or H×W×C with C ≥ 3; its first three channels are used.

    Args:
      data: content of the file.
      path: name of the file, for messages.

    Raises:
      NotAnImageError: if the content has no known image type.
      UserError: if the file is empty, damaged or too large, or has an unsupported value range.
    """
    return _array_to_rgb(_decode(data, path, background="white"), path)


def decode_mask(data: bytes, path: str, *, any_nonzero: bool = False) -> np.ndarray:
    """Decodes a defect mask to bool [H, W], True on the defect.

    Pixels above half of the value range are defect. If there are none (as in masks that number
    the classes 0, 1, 2, …), all nonzero pixels are. Transparent pixels are not defect.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      any_nonzero: if True, all nonzero pixels are defect, in every mask.

    Raises:
      UserError: as `decode_image`.
    """
    pixels = _decode(data, path, background="black")
    if pixels.ndim == 3:
        # Several times faster than max(axis=-1).
        pixels = functools.reduce(np.maximum, np.moveaxis(pixels[..., :3], -1, 0))
    if pixels.dtype == bool:
        return pixels
    if any_nonzero:
        return pixels > 0
    full = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1.0
    return pixels > (full / 2 if pixels.max() > full / 2 else 0)


def load_image(data: bytes, path: str, image_size: int) -> np.ndarray:
    """Decodes and resizes an image: uint8 [S, S, 3], S = image_size.

    Resizing is bilinear with antialiasing, as torchvision resizes Pillow images. The aspect ratio
    is not preserved.

    Raises:
      UserError: as `decode_image`.
    """
    if data.startswith(NPY_MAGIC):
        return resize_image(_read_npy(data, path), path, image_size)
    return resize_image(_open_image(data, path), path, image_size)


def resize_image(image: Image.Image | np.ndarray, name: str, image_size: int) -> np.ndarray:
    """Converts a decoded image to RGB and resizes it as `load_image` does: uint8 [S, S, 3].

    Args:
      image: upright image of any mode and size, or an array that `decode_image` supports.
      name: name of the image, for messages.
      image_size: S.

    Raises:
      UserError: if the shape or the value range is not supported.
    """
    if isinstance(image, np.ndarray):
        _require_image(image, name)
        image = Image.fromarray(_array_to_rgb(image, name))
    elif _is_high_depth(image):
        image = Image.fromarray(_array_to_rgb(_high_depth_array(image, name), name))
    elif image.mode not in ("L", "RGB") or image.has_transparency_data:
        image = _to_rgb(image, name, background="white")
    # Greyscale is resized before it is expanded to three equal channels, which is faster.
    pixels = np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def load_mask(data: bytes, path: str, image_size: int) -> np.ndarray:
    """Decodes a defect mask and resizes it, nearest neighbour: bool [S, S], S = image_size.

    Raises:
      UserError: as `decode_image`.
    """
    mask = Image.fromarray(decode_mask(data, path).astype(np.uint8))
    return np.asarray(mask.resize((image_size, image_size), Image.Resampling.NEAREST)) > 0


def load_images(
    source: EncodedImages,
    indices: Sequence[int] | np.ndarray,
    image_size: int,
    description: str | None = None,
    cache: ImageCache | None = None,
) -> np.ndarray:
    """Loads images on all cores: uint8 [N, S, S, 3], in the order of `indices`.

    Args:
      source: source of the encoded images.
      indices: indices of the images in the source.
      image_size: S.
      description: label of the progress bar; None shows no bar.
      cache: cache of decoded images; images that it does not hold are decoded and written to it.

    Raises:
      UserError: as `decode_image`, for the first image that cannot be decoded.
    """
    images = np.empty((len(indices), image_size, image_size, 3), np.uint8)

    def load(n: int) -> None:
        i, pixels = int(indices[n]), images[n]
        if cache is not None and cache.read(i, pixels):
            return
        pixels[:] = load_image(source.image_bytes(i), source.image_name(i), image_size)
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
      description: label of the progress bar, shown on a terminal only; None shows no bar.
    """
    items = list(items)
    pool = ThreadPoolExecutor(n_cores())
    try:
        results = pool.map(function, items)
        if description is None:
            yield from results
            return
        from tqdm import (
            tqdm,  # not needed, thus not installed, for scoring with an exported detector
        )

        # disable=None: shown on a terminal only.
        yield from tqdm(
            results, total=len(items), desc=description, unit=" images", leave=False, disable=None
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(data: bytes, path: str, background: str) -> np.ndarray:
    """Decodes an image to [H, W] or [H, W, C] of bool, uint8, uint16 or float.

    Colour images and 8-bit images become uint8 RGB, composited over the background.
    """
    if data.startswith(NPY_MAGIC):
        return _read_npy(data, path)
    image = _open_image(data, path)
    if _is_high_depth(image):
        return _high_depth_array(image, path)
    return np.asarray(_to_rgb(image, path, background))


def _to_rgb(image: Image.Image, path: str, background: str) -> Image.Image:
    """Converts a colour or 8-bit image to mode RGB, composited over the background."""
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(
            f"image '{path}' has the colour mode {image.mode}, which cannot be converted to RGB:"
            " save it as an RGB or greyscale image"
        ) from error


def _open_image(data: bytes, path: str) -> Image.Image:
    """Returns the first frame, fully decoded and upright."""
    if not data:
        raise UserError(f"image '{path}' is empty (0 bytes): restore or remove it")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        image.load()
    except UnidentifiedImageError as error:
        raise unidentified(data, path) from error
    except Image.DecompressionBombError as error:
        raise _too_large_error(f"image '{path}'") from error
    except Exception as error:  # on damaged data, decoders raise errors of many types
        raise UserError(
            f"image '{path}' is truncated or damaged ({_one_line(error)}): restore or remove it"
        ) from error
    # Viewers show images with unreadable EXIF data, too.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _max_pixels() -> int:
    """Returns the largest number of pixels that Pillow decodes."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def _too_large_error(subject: str) -> UserError:
    return UserError(
        f"{subject} has more than {_max_pixels()} pixels, the most that are supported: make it"
        " smaller or cut it"
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the file formats that are decoded."""
    Image.init()
    # EPS files are programs: Pillow would run Ghostscript on them.
    return tuple(name for name in Image.ID if name != "EPS")


def _is_high_depth(image: Image.Image) -> bool:
    """Returns True for greyscale of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _high_depth_array(image: Image.Image, path: str) -> np.ndarray:
    """Converts greyscale of more than 8 bits to uint16 or float [H, W]."""
    array = np.asarray(image)
    if image.mode != "I":
        return array if image.mode == "F" else array.astype(np.uint16)
    # Pillow reads 16-bit data of several file types as 32-bit integers.
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise UserError(
            f"image '{path}' has greyscale values from {low} to {high}, outside 0 to 65535:"
            " save it with 16 bits"
        )
    return array.astype(np.uint16)


def _read_npy(data: bytes, path: str) -> np.ndarray:
    """Reads an image array, [H, W] or [H, W, C], from the content of an `.npy` file."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        complete = len(data) - file.tell() >= np.prod(shape, dtype=object) * dtype.itemsize
        n_pixels = np.prod(shape[:2], dtype=object)
        # The size is checked first: a damaged header may demand any amount of memory.
        array = None
        if complete and n_pixels <= _max_pixels():
            array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # damaged headers raise errors of many types; so do pickles
        raise UserError(
            f"array '{path}' cannot be read ({_one_line(error)}): save it again with numpy.save"
        ) from error
    if not complete:
        raise UserError(f"array '{path}' is truncated: restore or remove it")
    if array is None:
        raise _too_large_error(f"array '{path}'")
    _require_image(array, path)
    return array


def _require_image(array: np.ndarray, path: str) -> None:
    """Raises `UserError` unless the array has the shape and dtype of an image."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels == 2 or array.size == 0:
        raise UserError(
            f"array '{path}' has the shape {array.shape}: expected H×W, H×W×1 or H×W×C, C ≥ 3"
        )
    if array.dtype not in (np.bool_, np.uint8, np.uint16) and array.dtype.kind != "f":
        raise UserError(
            f"array '{path}' is of type {array.dtype}: save it as uint8, uint16 or float in [0, 1]"
        )


def _array_to_rgb(array: np.ndarray, path: str) -> np.ndarray:
    """Converts an array [H, W] or [H, W, C] to uint8 [H, W, 3]."""
    if array.ndim == 2:
        array = array[..., None]
    array = array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        # Rounds to the nearest: 257 × 255 = 65535.
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also True for NaN
            raise UserError(
                f"image '{path}' has floating-point values from {low:g} to {high:g},"
                " outside 0 to 1: rescale it"
            )
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _one_line(error: Exception) -> str:
    """Returns the error's message on one line, or its type if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__
