"""Makes thumbnails as WebP files of limited size."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from devnet_jax.report.content import MAX_PICTURES

_PAGE_BUDGET = 11e6  # bytes of all thumbnails in a page, before Base64 adds a third
# Bytes per pixel: enough for a photograph of good quality, and for most masks.
_IMAGE_BUDGET = 1 / 8
_MASK_BUDGET = 1 / 40
_MIN_BUDGET = 256  # bytes per file
_MAX_SIDE = 320  # pixels
_QUALITIES = (80, 60, 40, 20, 0)  # WebP qualities, tried in this order


def side_for(n: int) -> int:
    """Returns the side in pixels of the thumbnails, three per picture, of a page of n pictures."""
    area = _PAGE_BUDGET / (min(max(n, 1), MAX_PICTURES) * (2 * _IMAGE_BUDGET + _MASK_BUDGET))
    return min(int(math.sqrt(area)) // 8 * 8, _MAX_SIDE)


def thumbnail(image: np.ndarray, side: int) -> bytes:
    """Encodes an image as a WebP file of at most max(side² / 8, 256) bytes.

    Reduces the quality, then the size, until the file is small enough.

    Args:
      image: uint8 [H, W, 3].
      side: maximum height and width in pixels; a smaller image is not enlarged.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        data = _webp(picture, quality=quality)
        if len(data) <= max(_IMAGE_BUDGET * side**2, _MIN_BUDGET):
            return data
    return thumbnail(np.asarray(picture.reduce(2)), side)


def mask_thumbnail(mask: np.ndarray, side: int) -> bytes:
    """Encodes a mask, white where True, as a WebP file of at most max(side² / 40, 256) bytes.

    A pixel is white if any pixel of the mask in its area is True, so small defects stay visible.

    Args:
      mask: bool [H, W].
      side: maximum height and width in pixels; a mask whose file is too large is reduced further.
    """
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    picture = picture.point(lambda share: 255 * (share > 0))
    data = _webp(picture, lossless=True)
    if len(data) <= max(_MASK_BUDGET * side**2, _MIN_BUDGET):
        return data
    return mask_thumbnail(np.asarray(picture.reduce(2)) > 0, side)


def _webp(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="WEBP", method=2, **options)
    return file.getvalue()
