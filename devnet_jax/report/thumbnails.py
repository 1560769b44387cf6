"""Small WebP pictures, each within a budget of bytes whatever it shows."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from devnet_jax.report.content import MAX_PICTURES

_PAGE_BUDGET = 11e6  # bytes of a page's thumbnails, before Base64 adds a third
# Bytes for each pixel. A photograph looks good at this, and few masks are as intricate.
_IMAGE_BUDGET = 1 / 8
_MASK_BUDGET = 1 / 40
_LEAST_BUDGET = 256  # bytes, where that is more: a file of one pixel needs some too
_LARGEST = 320
_QUALITIES = (80, 60, 40, 20, 0)


def side_for(n: int) -> int:
    """The longest side in pixels of thumbnails, three for each of n pictures, that a page holds."""
    area = _PAGE_BUDGET / (min(max(n, 1), MAX_PICTURES) * (2 * _IMAGE_BUDGET + _MASK_BUDGET))
    return min(int(math.sqrt(area)) // 8 * 8, _LARGEST)


def thumbnail(image: np.ndarray, side: int) -> bytes:
    """A picture as a WebP file of at most side² / 8 or 256 bytes: quality gives way, then size.

    Args:
      image: uint8 [H, W, 3].
      side: the longest height or width in pixels; a smaller picture stays as it is.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        data = _webp(picture, quality=quality)
        if len(data) <= max(_IMAGE_BUDGET * side**2, _LEAST_BUDGET):
            return data
    return thumbnail(np.asarray(picture.reduce(2)), side)


def mask_thumbnail(mask: np.ndarray, side: int) -> bytes:
    """A mask, white where it is true, as a WebP file of at most side² / 40 or 256 bytes.

    The smallest defect stays visible: a pixel is white if anything below it is.

    Args:
      mask: bool [H, W].
      side: as for `thumbnail`; an intricate mask becomes smaller still.
    """
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    picture = picture.point(lambda share: 255 * (share > 0))
    data = _webp(picture, lossless=True)
    if len(data) <= max(_MASK_BUDGET * side**2, _LEAST_BUDGET):
        return data
    return mask_thumbnail(np.asarray(picture.reduce(2)) > 0, side)


def _webp(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="WEBP", method=2, **options)
    return file.getvalue()
