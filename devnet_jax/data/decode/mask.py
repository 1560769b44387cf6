"""Decodes defect masks, whatever their pixels are: two values, classes, colours, soft edges."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from devnet_jax.data.decode.opening import Opened, Values, open_image
from devnet_jax.data.decode.rgb import to_rgb_image

_JPEG_NOISE = 8  # of 255; a lossy file changes a value by about as much


class Mask(NamedTuple):
    """A decoded defect mask.

    Attributes:
      defect: bool [H, W], True on the defect.
      orientation: EXIF orientation of the file, which was applied; 1 is upright.
      levels: the grey levels that were taken as classes of defects although some are below half of
        the highest; empty if the meaning is clear.
    """

    defect: np.ndarray
    orientation: int
    levels: tuple[int, ...] = ()


def decode_mask(
    data: bytes, path: str, *, page: int | None = None, any_nonzero: bool = False
) -> np.ndarray:
    """Decodes a defect mask to bool [H, W], True on the defect; see `read_mask`."""
    return read_mask(data, path, page=page, any_nonzero=any_nonzero).defect


def read_mask(
    data: bytes, path: str, *, page: int | None = None, any_nonzero: bool = False
) -> Mask:
    """Decodes a defect mask.

    - Palette: the first colour, class 0, is background, and all others are defect.
    - Greyscale and colours, by the largest channel: if no pixel is above half of the range, as in
      masks that number the classes, all nonzero pixels are defect. If there are areas of one level
      below half, they are classes, too. Otherwise pixels above half are defect, so that soft edges
      neither widen the defect nor leave specks.
    - Transparent pixels are background.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      page: number of the page, from 0; `None` for the only one.
      any_nonzero: if True, all nonzero pixels are defect, in every mask.

    Raises:
      UserError: as `decode_image`.
    """
    opened = open_image(data, path, page)
    defect, levels = _read(opened, path, any_nonzero)
    return Mask(defect, opened.orientation, levels)


def _read(opened: Opened, path: str, any_nonzero: bool) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels`."""
    content = opened.content
    if isinstance(content, Image.Image):
        if content.mode == "P" and content.palette and not any_nonzero:
            colours = _palette(content)
            if not _are_grey(colours):
                return _nonzero_classes(content, colours), ()
        rgb = np.asarray(to_rgb_image(content, path, background="black"))
        content = Values(rgb, 255.0)
    pixels = content.pixels
    if pixels.ndim == 3:
        # Several times faster than max(axis=-1).
        pixels = functools.reduce(np.maximum, np.moveaxis(pixels[..., :3], -1, 0))
    if pixels.dtype == bool:
        return pixels, ()
    if any_nonzero:
        return pixels > 0, ()
    return _read_grey(pixels, content.white)


def _read_grey(pixels: np.ndarray, white: float | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels` of greyscale [H, W]."""
    highest = pixels.max()
    half = (white or np.iinfo(np.uint16).max) / 2
    if highest <= half:
        return pixels > 0, ()
    levels = _flat_levels(pixels, half)
    if len(levels):
        # At least half of the lowest class, so that noise of lossy files is no defect.
        return pixels > levels[0] / 2, tuple(int(level) for level in levels)
    return pixels > half, ()


def _flat_levels(pixels: np.ndarray, half: float) -> np.ndarray:
    """Returns the levels, up to half of the range, of areas that are too wide to be soft edges.

    Such an area contains 3×3 pixels of one level; the noise of lossy files is no level.
    """
    noise = half * 2 * _JPEG_NOISE / 255
    candidates = (pixels > noise) & (pixels <= half)
    if not candidates.any():
        return np.empty(0)
    lowest, highest = (
        function(pixels, size=3, mode="nearest")
        for function in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    return np.unique(pixels[candidates & (lowest == highest)])


def _palette(image: Image.Image) -> np.ndarray:
    """Returns the colours of a palette image that it uses: uint8 [n, 3], by index."""
    used = np.unique(np.asarray(image))
    colours = np.zeros((256, 3), np.uint8)
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(palette)] = palette
    return colours[used]


def _are_grey(colours: np.ndarray) -> bool:
    return bool((colours == colours[:, :1]).all())


def _nonzero_classes(image: Image.Image, colours: np.ndarray) -> np.ndarray:
    """Returns the defect pixels of a palette image with colours: all but the background.

    The background is index 0; if no pixel has it, it is black.

    Args:
      image: palette image.
      colours: the colours that it uses, by index.
    """
    indices = np.asarray(image)
    used = np.unique(indices)
    background = 0
    if used[0] != 0 and (black := ~colours.any(axis=1)).any():
        background = used[black.argmax()]
    defect = indices != background
    if image.has_transparency_data:
        defect &= np.asarray(image.convert("RGBA"))[..., 3] > 0
    return defect
