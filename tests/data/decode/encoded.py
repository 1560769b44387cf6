"""Image files written byte by byte, so that what they mean is known without any decoder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import tifffile

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6  # colour types of PNG


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a part of a PNG file."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(pixels: np.ndarray, colour_type: int, *before: bytes, after: bytes = b"") -> bytes:
    """Returns a PNG file.

    Args:
      pixels: uint8 or uint16 [H, W] or [H, W, C].
      colour_type: what its channels are.
      before: parts before the pixels.
      after: parts after the pixels.
    """
    height, width = pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return PNG_MAGIC + header + b"".join(before) + body + after + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **options: object) -> bytes:
    """Returns a TIFF file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()
