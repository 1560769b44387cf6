"""Opens the content of an image file, and reads what its type and its tags say of the values."""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from devnet_jax.data.decode import tiff
from devnet_jax.data.decode.deep import (
    add_transparent_colour,
    correct_tiles,
    lacks_low_bytes,
    read_low_bytes,
    straighten,
)
from devnet_jax.data.decode.file_types import (
    NPY_MAGIC,
    NotAnImageError,
    is_named_as_image,
    one_line,
    require_no_raw_camera,
)
from devnet_jax.data.decode.npy import read_npy
from devnet_jax.data.decode.pillow import (
    UPRIGHT,
    decode,
    identify,
    pillow_errors,
    read_orientation,
    unreadable_tiff,
)
from devnet_jax.data.decode.values import FULL_16_BITS, Values, values_of_array, with_alpha
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

# Files of several pictures that belong to the first: its layers, and other views of it.
_ONE_PICTURE = ("PSD", "MPO")

_has_warned = threading.Event()


class Opened(NamedTuple):
    """An image, decoded and upright.

    Attributes:
      content: Pillow image of 8 bits or fewer in any mode; or the values of other images.
      orientation: EXIF orientation of the file, 1 to 8, which was applied; 1 is upright.
    """

    content: Image.Image | Values
    orientation: int = UPRIGHT


def count_pages(data: bytes | mmap.mmap) -> int:
    """Returns the number of pictures in a file: the pages of a TIFF file, else 1.

    Smaller copies of a page, and masks of its transparency, are no pages. An animation counts as
    one picture, its first frame. Of a truncated file, the pages that are left are counted.
    """
    return len(tiff.read_pages(data).numbers) if tiff.is_tiff(data) else 1


def open_image(data: bytes, path: str, page: int | None = None) -> Opened:
    """Opens the content of an image file.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      page: number of the page, from 0; `None` for the only one.

    Raises:
      NotAnImageError: if the content is empty or of no image type, in a file not named as an image.
      UnreadableTypeError: if it is an image of a type that cannot be read.
      UserError: if the file is empty, damaged or too large, or has several pages and none of them
        is chosen.
    """
    if not data:
        error = UserError if is_named_as_image(PurePath(path)) else NotAnImageError
        raise error(f"image '{path}' is empty (0 bytes): restore or remove it")
    if data.startswith(NPY_MAGIC):
        return Opened(values_of_array(read_npy(data, path)))
    if tiff.is_tiff(data):
        return _open_tiff(data, path, page)
    with pillow_errors(data, path):
        image, tiles = decode(data)
    orientation = read_orientation(image)
    _warn_of_sequence(image, data, path)
    values = _values_of_file(image, path, tiles)
    if values is None and ";16" in tiles:
        values = read_low_bytes(image, data, 0)
    return Opened(_upright(values or image, orientation), orientation)


def open_pillow(image: Image.Image, path: str) -> Image.Image | Values:
    """Decodes a Pillow image and turns it upright.

    Of one that Pillow has opened from a file, the values mean what they mean in the file, as far
    as Pillow still knows it.

    Raises:
      UserError: if its file is damaged, or it has values that cannot be read.
    """
    tiles = str(getattr(image, "tile", ""))
    try:
        image.load()
    except Exception as error:  # of many types; an empty one if its file was closed
        reason = one_line(error) if f"{error}" else "its file is closed"
        raise UserError(f"image {path} cannot be read: {reason}") from None
    orientation = read_orientation(image)
    content = _values_of_file(image, path, tiles) or image.copy()
    if isinstance(content, Image.Image) and content.mode == "RGB" and ";16" in tiles:
        # A colour of 16 bits, which Pillow would look for in 8.
        content.info.pop("transparency", None)
    return _upright(content, orientation)


def values_of_pillow(image: Image.Image, path: str) -> Values | None:
    """Returns the values of a Pillow image of more than 8 bits; `None` for other images.

    Raises:
      UserError: if it has values that 16 unsigned bits do not hold.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    pixels = _to_unsigned(np.asarray(image), path)
    return Values(pixels, 1.0 if image.mode == "F" else None)


def _values_of_file(image: Image.Image, path: str, tiles: str) -> Values | None:
    """Returns `values_of_pillow`, with the meaning that they have in the image's file.

    Args:
      image: decoded image.
      path: name of the file, for messages.
      tiles: attribute `tile` of the image before it was decoded, in words.
    """
    if isinstance(image, TiffImageFile):
        return _values_of_tiff(image, path, tiff.page_of_pillow(image.tag_v2))
    values = values_of_pillow(image, path)
    # Pillow scales these to 16 bits by the maximum that the file itself states.
    if image.format == "JPEG2000" or (image.format == "PPM" and "'ppm" in tiles):
        values = values and values._replace(white=float(FULL_16_BITS))
    return values and add_transparent_colour(values, image)


def _values_of_tiff(image: Image.Image, path: str, page: tiff.Page) -> Values | None:
    """Returns `values_of_pillow`, with the meaning that they have by the tags of the page.

    Raises:
      UnreadableTypeError: if they are signed integers of 8 or 16 bits.
    """
    if page.is_signed and page.bits in (8, 16):
        raise unreadable_tiff(path, str(page))
    if image.mode == "I" and page.bits == 32 and not page.is_signed:
        # Pillow reads unsigned integers as signed ones.
        return Values(_to_unsigned(np.asarray(image).view(np.uint32), path), None)
    values = values_of_pillow(image, path)
    if values is None:
        return None
    if values.white is None and page.bits < 16:
        values = values._replace(white=float(2**page.bits - 1))
    return values._replace(inverted=page.white_is_zero)


def _warn_of_sequence(image: ImageFile.ImageFile, data: bytes, path: str) -> None:
    """Warns, once in a process, of an animation or another file of several pictures."""
    if image.format in _ONE_PICTURE or _has_warned.is_set():
        return
    # A GIF file moves to its next picture to tell whether there is one, and it may be damaged.
    with contextlib.suppress(Exception):
        moved = identify(data) if image.format == "GIF" else image
        if getattr(moved, "is_animated", False):
            _has_warned.set()
            logger.warning(
                "image '%s' is an animation, or has several pictures: of all such files, only the"
                " first picture is used; save the others as single images",
                path,
            )


def _open_tiff(data: bytes, path: str, page: int | None) -> Opened:
    """Opens one page of a TIFF file."""
    pages = tiff.read_pages(data)
    require_no_raw_camera(data, path, pages.is_raw_camera)
    numbers = pages.numbers
    if pages.is_truncated and pages.found:
        raise UserError(
            f"image '{path}' is truncated: more pages should follow the {len(pages.found)} that it"
            " has; restore or remove it"
        )
    if page is None and len(numbers) > 1:
        raise UserError(
            f"image '{path}' has {len(numbers)} pages: save its pages as single images, or give"
            f" the path of the file with the number of one, as in stack.tif#{len(numbers)}"
        )
    page = page or 0
    if page >= len(numbers):
        raise UserError(f"image '{path}' has {len(numbers)} pages, and no page {page + 1}")
    number = numbers[page]
    tags = pages.found[number] if number < len(pages.found) else tiff.Page({}, {})
    # Pillow inverts only plain greyscale of 8 bits or fewer.
    inverted = tags.white_is_zero and (tags.bits > 8 or tags.n_samples > 1)
    if inverted:
        data = tiff.as_black_is_zero(data, tags)
    with pillow_errors(data, path, str(tags) if tags.is_complete else ""):
        image = identify(data)
        image.seek(number)
        # Pillow turns TIFF images upright itself.
        orientation = read_orientation(image)
        correct_tiles(image, data)
        is_16_bit = ";16" in str(image.tile)
        image.load()
        content: Image.Image | Values | None = _values_of_tiff(image, path, tags)
        premultiplied = tags.is_premultiplied and image.mode in ("La", "RGBA")
        if content is None and is_16_bit:
            content = read_low_bytes(image, data, number, premultiplied)
            if content is None and lacks_low_bytes(image):
                raise unreadable_tiff(path, f"{tags}, compressed band by band")
        if content is None:
            content = straighten(image) if premultiplied else image
    if inverted and isinstance(content, Image.Image):
        grey, *others = content.split()
        values = Values(np.asarray(grey), 255.0, inverted=True)
        content = with_alpha(values, np.asarray(others[0])) if others else values
    return Opened(content, orientation)


def _upright(content: Image.Image | Values, orientation: int) -> Image.Image | Values:
    """Applies an EXIF orientation."""
    if orientation == UPRIGHT:
        return content
    if isinstance(content, Image.Image):
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(content, in_place=True)
        return content
    alpha = content.alpha
    return content._replace(
        stored=_turned(content.stored, orientation),
        alpha=alpha if alpha is None else _turned(alpha, orientation),
    )


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 2 to 8, to an array."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    # Axes that are reversed after rows and columns were exchanged.
    axes = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]
    return np.ascontiguousarray(np.flip(pixels, axes))


def _to_unsigned(array: np.ndarray, path: str) -> np.ndarray:
    """Converts greyscale of more than 8 bits to uint16 or float [H, W]."""
    if array.dtype.kind == "f":
        return array
    # Pillow reads 16-bit data of several file types as 32-bit integers.
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > FULL_16_BITS:
        raise UserError(
            f"image '{path}' has greyscale values from {low} to {high}, outside 0 to 65535:"
            " save it with 16 bits"
        )
    return array.astype(np.uint16)
