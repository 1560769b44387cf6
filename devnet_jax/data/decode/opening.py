"""Opens the content of an image file, and reads what its type and its tags say of the values."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import mmap
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from devnet_jax.data.decode import tiff
from devnet_jax.data.decode.file_types import (
    NPY_MAGIC,
    UnreadableTypeError,
    one_line,
    too_large_error,
    unidentified,
)
from devnet_jax.data.decode.npy import read_npy
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_UPRIGHT = 1
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Not opened: EPS files are programs, which Pillow would run Ghostscript on; the others need
# handlers that an application installs.
_NOT_OPENED = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")
# Files of several pictures that belong to the first: its layers, and other views of it.
_ONE_PICTURE = ("PSD", "MPO")

_has_warned = threading.Event()


class Values(NamedTuple):
    """The values of an image that has more than 8 bits, or that was given as an array.

    Attributes:
      pixels: [H, W] or [H, W, C] of bool, uint8, uint16 or floating dtype, with black as 0.
      white: value of white; `None` for 16 bits, because cameras often use fewer of them.
    """

    pixels: np.ndarray
    white: float | None


class Opened(NamedTuple):
    """An image, decoded and upright.

    Attributes:
      content: Pillow image of 8 bits or fewer in any mode; or the values of other images.
      orientation: EXIF orientation of the file, 1 to 8, which was applied; 1 is upright.
    """

    content: Image.Image | Values
    orientation: int = _UPRIGHT


def values_of_array(array: np.ndarray) -> Values:
    """Returns the values of an image array, as `as_image_array` returns it."""
    white = {"b": 1.0, "f": 1.0}.get(array.dtype.kind, 255.0)
    return Values(array, None if array.dtype == np.uint16 else white)


def values_of_pillow(image: Image.Image, path: str) -> Values | None:
    """Returns the values of a Pillow image of more than 8 bits; `None` for other images.

    Raises:
      UserError: if it has values that 16 unsigned bits do not hold.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    pixels = _to_unsigned(np.asarray(image), path)
    return Values(pixels, 1.0 if image.mode == "F" else None)


def count_pages(data: bytes | mmap.mmap) -> int:
    """Returns the number of pictures in a file: the pages of a TIFF file, else 1.

    Smaller copies of a page, and masks of its transparency, are no pages. An animation counts as
    one picture, its first frame.
    """
    return len(_page_numbers(tiff.read_pages(data))) if tiff.is_tiff(data) else 1


def open_image(data: bytes, path: str, page: int | None = None) -> Opened:
    """Opens the content of an image file.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      page: number of the page, from 0; `None` for the only one.

    Raises:
      NotAnImageError: if the content is of no image type, in a file not named as an image.
      UnreadableTypeError: if it is an image of a type that cannot be read.
      UserError: if the file is empty, damaged or too large, or has several pages and none of them
        is chosen.
    """
    if not data:
        raise UserError(f"image '{path}' is empty (0 bytes): restore or remove it")
    if data.startswith(NPY_MAGIC):
        return Opened(values_of_array(read_npy(data, path)))
    if tiff.is_tiff(data):
        return _open_tiff(data, path, page)
    with _pillow_errors(data, path):
        image = _identify(data)
        tiles = image.tile  # emptied when the image is decoded
        orientation = _read_orientation(image)
        image.load()
    _warn_of_sequence(image, data, path)
    values = values_of_pillow(image, path)
    # Pillow scales these to 16 bits by the maximum that the file itself states.
    if image.format == "JPEG2000" or (image.format == "PPM" and tiles[0].codec_name != "raw"):
        values = values and values._replace(white=65535.0)
    if ";16" in str(tiles) and values is None:
        values = _read_low_bytes(image, data, 0)
    content = values or image
    return Opened(_upright(content, orientation), orientation)


def _warn_of_sequence(image: ImageFile.ImageFile, data: bytes, path: str) -> None:
    """Warns, once in a process, of an animation or another file of several pictures."""
    if image.format in _ONE_PICTURE or _has_warned.is_set():
        return
    # A GIF file moves to its next picture to tell whether there is one, and it may be damaged.
    with contextlib.suppress(Exception):
        moved = _identify(data) if image.format == "GIF" else image
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
    numbers = _page_numbers(pages)
    if page is None and len(numbers) > 1:
        raise UserError(
            f"image '{path}' has {len(numbers)} pages: give one of them, {path}#1 to"
            f" {path}#{len(numbers)}, or save it as single images"
        )
    page = page or 0
    if page >= len(numbers):
        raise UserError(f"image '{path}' has {len(numbers)} pages, and no page {page + 1}")
    number = numbers[page]
    tags = pages[number] if number < len(pages) else None
    inverted = tags is not None and tags.white_is_zero and tags.bits > 8
    if tags is not None and inverted:
        data = tiff.as_black_is_zero(data, tags)
    with _pillow_errors(data, path, str(tags) if tags and tags.is_complete else ""):
        image = _identify(data)
        image.seek(number)
        # Pillow turns TIFF images upright itself.
        orientation = _read_orientation(image)
        _correct_tiles(image, data)
        is_16_bit = ";16" in str(image.tile)
        image.load()
    values = values_of_pillow(image, path)
    if values is None:
        content = (is_16_bit and _read_low_bytes(image, data, number)) or image
        return Opened(content, orientation)
    if tags is not None and values.white is None and tags.bits < 16:
        values = values._replace(white=float(2**tags.bits - 1))
    if inverted:
        highest = 65535 if values.white is None else values.white
        values = values._replace(pixels=(highest - values.pixels).astype(values.pixels.dtype))
    return Opened(values, orientation)


def _correct_tiles(image: ImageFile.ImageFile, data: bytes) -> None:
    """Corrects Pillow's choice of a decoder for two kinds of TIFF files, before it decodes.

    Floats that libtiff decompresses are in the byte order of the host, not of the file. Colours of
    16 bits that are stored band by band have 16 bits, not 8.
    """
    order = "L" if data[:2] == b"II" else "B"
    tiles = []
    for tile in image.tile:
        mode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "libtiff" and mode == "F;32BF":
            mode = "F;32NF"
        if tile.codec_name == "raw" and mode in ("R", "G", "B", "A") and _bits(image) == 16:
            mode = f"{mode};16{order}"
        tiles.append(tile._replace(args=(mode, *rest)))
    image.tile = tiles


def _bits(image: ImageFile.ImageFile) -> int:
    """Returns the bits of a sample of a TIFF image."""
    return int(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0])  # type: ignore[attr-defined]


def _page_numbers(pages: Sequence[tiff.Page]) -> list[int]:
    """Returns the numbers, among all images of a TIFF file, of those that are pictures."""
    return [i for i, page in enumerate(pages) if page.is_picture] or [0]


def _identify(data: bytes) -> ImageFile.ImageFile:
    """Opens an image with Pillow, without decoding it."""
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except ValueError:
        if not data.startswith(_PNG_MAGIC):
            raise
        # Pillow refuses texts and colour profiles of more than a MiB, which change no pixel.
        return Image.open(io.BytesIO(b"".join(_png_without_texts(data))), formats=_formats())


def _png_without_texts(data: bytes) -> Iterator[bytes]:
    """Yields the parts of a PNG file without its texts and its colour profile."""
    yield _PNG_MAGIC
    start = len(_PNG_MAGIC)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length  # length, kind, content, checksum
        if kind not in _PNG_TEXTS:
            yield data[start:end]
        start = end


@contextlib.contextmanager
def _pillow_errors(data: bytes, path: str, tiff_samples: str = "") -> Iterator[None]:
    """Raises Pillow's errors as `UserError`.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      tiff_samples: kind of the samples of a TIFF file whose tags could be read.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        if tiff_samples:
            raise UnreadableTypeError(
                f"image '{path}' is a TIFF image of a kind that cannot be read ({tiff_samples}):"
                " convert it to PNG, or to TIFF with 8 or 16 unsigned bits"
            ) from error
        raise unidentified(data, path) from error
    except Image.DecompressionBombError as error:
        raise too_large_error(f"image '{path}'") from error
    except Exception as error:  # on damaged data, decoders raise errors of many types
        raise UserError(
            f"image '{path}' is truncated or damaged ({one_line(error)}): restore or remove it"
        ) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the file formats that are decoded."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_OPENED)


def _read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image that is not decoded yet."""
    # Viewers show images with unreadable EXIF data, too.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
        if orientation in range(2, 9):
            return int(orientation)
    return _UPRIGHT


def _upright(content: Image.Image | Values, orientation: int) -> Image.Image | Values:
    """Applies an EXIF orientation."""
    if orientation == _UPRIGHT:
        return content
    if isinstance(content, Image.Image):
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(content, in_place=True)
        return content
    pixels = content.pixels
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    # Axes that are reversed after rows and columns were exchanged.
    axes = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]
    return content._replace(pixels=np.ascontiguousarray(np.flip(pixels, axes)))


def _to_unsigned(array: np.ndarray, path: str) -> np.ndarray:
    """Converts greyscale of more than 8 bits to uint16 or float [H, W]."""
    if array.dtype.kind == "f":
        return array
    # Pillow reads 16-bit data of several file types as 32-bit integers.
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise UserError(
            f"image '{path}' has greyscale values from {low} to {high}, outside 0 to 65535:"
            " save it with 16 bits"
        )
    return array.astype(np.uint16)


def _read_low_bytes(image: Image.Image, data: bytes, number: int) -> Values | None:
    """Reads the colours of 16 bits of which Pillow has kept the high bytes.

    Pillow has no such mode. But it decodes either byte order, and with the wrong one it keeps the
    low bytes.

    Args:
      image: the high bytes.
      data: content of the file.
      number: number of the image in the file.

    Returns:
      Values [H, W, 3]; `None` for images with transparent parts, and where Pillow cannot do this.
    """
    if image.mode not in ("RGB", "RGBA") or (
        image.mode == "RGBA" and image.getchannel("A").getextrema() not in ((255, 255), (0, 0))
    ):
        return None
    other = _identify(data)
    other.seek(number)
    if other.format == "TIFF":
        _correct_tiles(other, data)
    swapped = {"16B": "16L", "16L": "16B", "16N": "16B"}
    tiles = []
    for tile in other.tile or ():
        mode, *rest = tile.args if isinstance(tile.args, tuple) else (str(tile.args),)
        base, _, depth = mode.partition(";")
        if depth not in swapped:
            return None
        mode = f"{base};{swapped[depth]}"
        tiles.append(tile._replace(args=(mode, *rest) if rest else mode))
    other.tile = tiles
    try:
        other.load()
    except ValueError:  # no such mode
        return None
    high, low = (np.asarray(part)[..., :3] for part in (image, other))
    return Values((high.astype(np.uint16) << 8) | low, None)
