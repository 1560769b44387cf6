"""Images of any kind that a caller may give, decoded and fitted to the network's input."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from PIL import Image

from devnet_jax.data.decode import Batch, fit_image, map_in_threads, open_picture, to_pillow
from devnet_jax.data.decode.file_types import one_line
from devnet_jax.data.decode.opening import open_pillow
from devnet_jax.data.pages import read_picture
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError

ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
Errors = Literal["raise", "coerce"]  # the two ways with images that cannot be read, as in pandas
ImagesLike = ImageLike | Iterable[ImageLike] | Batch
_Given = ImageLike | UserError  # an image, or why an open file cannot be read

# A Pillow image reads its file lazily, and the same one may be given twice to two threads.
_pillow_lock = threading.Lock()


def as_batch(images: ImagesLike, preprocessing: Preprocessing) -> Batch:
    """Returns images of any kind as a batch of the network's input.

    Args:
      images: one image, any number of images, or a batch, which is returned unchanged. An image is
        a path, the content of a file as bytes, an open file, a Pillow image, or an array [H, W],
        [H, W, 1] or [H, W, C] of uint8, uint16, bool, or floats in [0, 1], whose channels are red,
        green and blue. An array [N, H, W, C] is N images. Arrays may be of any library that NumPy
        converts. All are decoded and fitted in the same way.
      preprocessing: settings of the way to the network's input.

    Raises:
      UserError: if there is no image, or one cannot be read.
    """
    return read_images(images, preprocessing)[0]


def read_images(
    images: ImagesLike, preprocessing: Preprocessing, errors: Errors = "raise"
) -> tuple[Batch, list[str]]:
    """Returns images as `as_batch` does, and for each the reason why it cannot be read, else "".

    Args:
      images: images as `as_batch` accepts them.
      preprocessing: settings of the way to the network's input.
      errors: "raise" to raise the first error; "coerce" to return white images in place of those
        that cannot be read.

    Raises:
      UserError: if there is no image, one cannot be read, or `errors` has another value.
    """
    if errors not in ("raise", "coerce"):
        raise UserError(f'errors={errors!r}: give "raise" or "coerce"')
    if isinstance(images, Batch):
        return images, [""] * len(images)
    if _is_network_input(images, preprocessing):
        pixels = cast(np.ndarray, images)
        sizes = [preprocessing.size] * len(pixels)
        batch = Batch(pixels, sizes, lambda i: Image.fromarray(pixels[i]), sizes_known=False)
        return batch, [""] * len(pixels)
    given = _as_list(images)
    if not given:
        raise UserError("no image is given; give one, or a sequence of them")
    decode = functools.partial(_decode, white_level=preprocessing.white_level)

    def fit(numbered: tuple[int, _Given]) -> tuple[np.ndarray, tuple[int, int], str]:
        try:
            image = decode(*numbered)
            fitted = fit_image(image, _name(*numbered), preprocessing)
        except UserError as error:
            if errors == "raise":
                raise
            return np.full(preprocessing.shape, 255, np.uint8), preprocessing.size, str(error)
        return fitted, (image.height, image.width), ""

    pixels, sizes, found = zip(*map_in_threads(fit, enumerate(given), None), strict=True)
    return Batch(np.stack(pixels), sizes, lambda i: decode(i, given[i])), list(found)


def _is_network_input(images: ImagesLike, preprocessing: Preprocessing) -> bool:
    """Returns True for an array of images that need no fitting."""
    return (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 4
        and len(images) > 0
        and images.shape[1:] == preprocessing.shape == (*preprocessing.size, 3)
        and not preprocessing.region
    )


def _as_list(images: ImagesLike) -> list[_Given]:
    """Returns the images one by one."""
    if _is_array(images):
        images = _to_array(images, "the images")
        if images.dtype.kind in "OUS" and images.ndim == 1:  # paths, or images in an array
            return list(images)
        if images.ndim == 4:
            return list(images)
        return [images] if images.size else []
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(images, single) or hasattr(images, "read"):
        return [_read(cast(ImageLike, images))]
    if isinstance(images, (Mapping, set, frozenset)):
        raise UserError(
            f"the images are a {type(images).__name__}; give a list, so that it is clear which"
            " images are meant and which score is whose"
        )
    if not isinstance(images, Iterable):
        raise UserError(
            f"the images are a {type(images).__name__}; give a path, a Pillow image, an array or a"
            " sequence of these"
        )
    return [_read(image) for image in images]


def _read(image: ImageLike) -> _Given:
    """Returns the content of an open file, or why it has none; other images as they are."""
    if not hasattr(image, "read"):
        return image
    try:
        content = image.read()
    except (OSError, ValueError) as error:  # such as a closed file
        reason = one_line(error).rstrip(".")
        return UserError(f"an image file cannot be read ({reason}): open it again")
    if isinstance(content, str):
        return UserError("an image file is open as text; open it with mode 'rb'")
    return cast(bytes, content)


def _is_array(image: object) -> bool:
    """Returns True for arrays of NumPy and of other libraries, such as those of JAX."""
    return hasattr(image, "__array__") and not isinstance(image, (str, bytes, Image.Image))


def _to_array(image: object, name: str) -> np.ndarray:
    """Converts an array of any library to one of NumPy."""
    try:
        return np.asarray(image)
    except Exception as error:  # of the other library
        raise UserError(f"{name} cannot be converted to an array ({one_line(error)})") from None


def _name(i: int, image: _Given) -> str:
    """Returns the name of an image, for messages."""
    return str(image) if isinstance(image, (str, os.PathLike)) else f"number {i}"


def _decode(i: int, image: _Given, white_level: int) -> Image.Image:
    """Returns an image as an upright Pillow image of mode L or RGB."""
    if isinstance(image, UserError):
        raise image
    name = _name(i, image)
    if _is_array(image):
        return to_pillow(_to_array(image, f"image {name}"), name, white_level)
    if isinstance(image, Image.Image):
        with _pillow_lock:
            upright = open_pillow(image, name)
        return to_pillow(upright, name, white_level)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return open_picture(bytes(image), name, white_level=white_level)
    if not isinstance(image, (str, os.PathLike)):
        raise UserError(
            f"image {name} is a {type(image).__name__}; give a path, a Pillow image or an array"
        )
    try:
        return decode_file(Path(image), white_level)
    except ValueError as error:  # a zero byte in the path
        raise UserError(f"image '{image}' cannot be read: {error}") from None


def decode_file(path: Path, white_level: int) -> Image.Image:
    """Decodes a file, or a page of it, to an upright Pillow image of mode L or RGB.

    Args:
      path: path of a picture, with the number of its page if the file has several.
      white_level: value that is white in images of 16 bits; 0 means 65535.

    Raises:
      UserError: if the file cannot be read or decoded.
    """
    data, page = read_picture(path)
    return open_picture(data, str(path), page=page, white_level=white_level)
