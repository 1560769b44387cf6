"""Opens files with Pillow, checks what it does not check, and tells its errors to people."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageFile, UnidentifiedImageError

from devnet_jax.data.decode.file_types import (
    UnreadableTypeError,
    one_line,
    too_large_error,
    unidentified,
)
from devnet_jax.errors import UserError

UPRIGHT = 1
_ORIENTATION = 0x0112  # EXIF tag
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# The parts of a PNG file that a picture needs; the others are texts, colour profiles, dates, …
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
# Not opened: EPS files are programs, which Pillow would run Ghostscript on; the others need
# handlers that an application installs.
_NOT_OPENED = ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")


def decode(data: bytes) -> tuple[ImageFile.ImageFile, str]:
    """Opens and decodes an image with Pillow.

    Returns:
      The image, and its attribute `tile` before it was decoded, in words.
    """
    image = identify(data)
    tiles = str(image.tile)  # emptied when the image is decoded
    try:
        image.load()
    except ValueError:  # texts may also follow the pixels
        if image.format != "PNG":
            raise
        image = identify(_needed_parts(data))
        image.load()
    if image.format == "PNG":
        _require_sound_png(data)
    return image, tiles


def identify(data: bytes) -> ImageFile.ImageFile:
    """Opens an image with Pillow, without decoding it."""
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except (ValueError, UnidentifiedImageError):
        if not data.startswith(_PNG_MAGIC):
            raise
        return Image.open(io.BytesIO(_needed_parts(data)), formats=_formats())


def _needed_parts(data: bytes) -> bytes:
    """Returns a PNG file without the parts that change no pixel.

    Pillow refuses texts and colour profiles of more than a MiB, or with a wrong checksum.
    """
    return _PNG_MAGIC + b"".join(part for kind, part in _png_parts(data) if kind in _PNG_NEEDED)


def _require_sound_png(data: bytes) -> None:
    """Raises `ValueError` if pixels of a PNG file differ from their checksum, as Pillow does not.

    Args:
      data: content of the file.
    """
    for kind, part in _png_parts(data):
        if kind == b"IDAT" and part[-4:] != struct.pack(">I", zlib.crc32(part[4:-4])):
            raise ValueError("wrong checksum of pixels")


def _png_parts(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the kind and the content of each part of a PNG file."""
    view = memoryview(data)
    start = len(_PNG_MAGIC)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length  # length, kind, content, checksum
        yield kind, view[start:end]
        start = end


@contextlib.contextmanager
def pillow_errors(data: bytes, path: str, tiff_samples: str = "") -> Iterator[None]:
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
            raise unreadable_tiff(path, tiff_samples) from error
        raise unidentified(data, path) from error
    except Image.DecompressionBombError as error:
        raise too_large_error(f"image '{path}'") from error
    except UserError:
        raise
    except Exception as error:  # on damaged data, decoders raise errors of many types
        reason = one_line(error)
        # Pillow says so of variants that it does not implement.
        if isinstance(error, NotImplementedError) or reason.startswith("Unsupported"):
            raise UnreadableTypeError(
                f"image '{path}' is of a kind that cannot be read ({reason}): convert it to PNG"
            ) from error
        raise UserError(
            f"image '{path}' is truncated or damaged ({reason}): restore or remove it"
        ) from error


def unreadable_tiff(path: str, samples: str) -> UnreadableTypeError:
    """Returns the error for a TIFF image of samples that cannot be read."""
    return UnreadableTypeError(
        f"image '{path}' is a TIFF image of a kind that cannot be read ({samples}): convert it to"
        " PNG, or to TIFF of greyscale or RGB with 8 or 16 unsigned bits"
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the file formats that are decoded."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_OPENED)


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image.

    The image must be decoded, except for TIFF: to find the tag, Pillow decodes a PNG file, and
    keeps what it has decoded of a damaged one.
    """
    # Viewers show images with unreadable EXIF data, too.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, UPRIGHT)
        if orientation in range(2, 9):
            return int(orientation)
    return UPRIGHT
