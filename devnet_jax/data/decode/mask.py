"""Decodes defect masks, whatever their pixels are: two values, classes, colours, soft edges."""

from __future__ import annotations

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from devnet_jax.data.decode.file_types import NPY_MAGIC
from devnet_jax.data.decode.npy import read_header
from devnet_jax.data.decode.opening import Opened, Values, open_image
from devnet_jax.data.decode.rgb import to_rgb_image

_JPEG_NOISE = 8  # of 255; a lossy file changes a value by about as much
_FEW_LEVELS = 16  # soft edges have more, labels seldom
_LOSSY_IN_TIFF = ("jpeg", "tiff_jpeg", "webp")


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

    - Palette of colours: the first colour, class 0, is background, and all others are defect. If no
      pixel has it, black is background, and without black, the commonest colour of the border.
    - Palette of greys: the order tells nothing. Of at most 16 levels without noise, the lowest is
      background; other palettes are read as greyscale.
    - Transparency: if everything visible has one colour, alpha is the mask, read as greyscale.
      Otherwise transparent pixels are background.
    - Greyscale and other colours, by the largest channel: if no pixel is above half of the range,
      as in masks that number the classes, all nonzero pixels are defect. If levels below half are
      classes, too, their pixels are defect: those of areas of one level and, in masks of at most 16
      levels without noise, those of lines that no brighter pixel touches. Otherwise pixels above
      half are defect, so that soft edges neither widen the defect nor leave specks.
    - Lossy files (JPEG, WebP, AVIF): pixels above half of the lowest class, whose areas have one
      level but for noise, or without such areas, above half of the highest value.

    Args:
      data: content of the file; an `.npy` array may have any integer type.
      path: name of the file, for messages.
      page: number of the page, from 0; `None` for the only one.
      any_nonzero: if True, all nonzero pixels are defect, in every mask.

    Raises:
      UserError: as `decode_image`.
    """
    opened = open_image(_without_wide_integers(data), path, page)
    defect, levels = _read(opened, data, path, any_nonzero)
    return Mask(defect, opened.orientation, levels)


def _without_wide_integers(data: bytes) -> bytes:
    """Returns a file as it is, or for an `.npy` array of integers that no image has, its nonzeros.

    Damaged files are returned as they are, so that reading them tells what is wrong.
    """
    if not data.startswith(NPY_MAGIC):
        return data
    try:
        shape, is_fortran, dtype, start = read_header(data)
        if dtype.kind not in "iu" or dtype.newbyteorder("=") in (np.uint8, np.uint16):
            return data
        values = np.frombuffer(data, dtype, int(np.prod(shape, dtype=object)), start)
    except Exception:  # as in `read_npy`, errors of many types
        return data
    nonzero = io.BytesIO()
    np.save(nonzero, (values != 0).reshape(shape, order="F" if is_fortran else "C"))
    return nonzero.getvalue()


def _read(
    opened: Opened, data: bytes, path: str, any_nonzero: bool
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels`."""
    content = opened.content
    is_lossy = _is_lossy(data)
    if isinstance(content, Image.Image):
        is_lossy = is_lossy or content.info.get("compression") in _LOSSY_IN_TIFF
        is_palette = content.mode == "P" and content.palette is not None
        if is_palette and not any_nonzero and not _are_grey(colours := _palette(content)):
            return _nonzero_classes(content, colours), ()
        grey = _alpha_mask(content)
        if grey is None:
            grey = np.asarray(to_rgb_image(content, path, background="black"))
        if is_palette and not any_nonzero:
            grey = grey if grey.ndim == 2 else grey[..., 0]
            levels = np.unique(grey)
            if _are_labels(levels, _JPEG_NOISE):
                return _above_lowest(grey, levels)
        content = Values(grey, 255.0)
    pixels = content.pixels
    if pixels.ndim == 3:
        # Several times faster than max(axis=-1).
        pixels = functools.reduce(np.maximum, np.moveaxis(pixels[..., :3], -1, 0))
    if pixels.dtype == bool:
        return pixels, ()
    if any_nonzero:
        return pixels > 0, ()
    return _read_lossy(pixels) if is_lossy else _read_grey(pixels, content.white)


def _is_lossy(data: bytes) -> bool:
    """Returns True if a file is of a type that changes values: JPEG, lossy WebP, AVIF."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return b"VP8L" not in data  # the chunk of a lossless image
    return data.startswith(b"\xff\xd8\xff") or data[4:12] == b"ftypavif"


def _alpha_mask(image: Image.Image) -> np.ndarray | None:
    """Returns alpha, uint8 [H, W], if it alone tells the defect; else `None`.

    So it does if parts are transparent and everything else has one colour.
    """
    if not image.has_transparency_data:
        return None
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() == alpha.max():
        return None
    visible = pixels[alpha > 0]
    return alpha if (visible[:, :3] == visible[0, :3]).all() else None


def _are_labels(levels: np.ndarray, noise: float) -> bool:
    """Returns True if these can be all levels of a mask without soft edges and without noise.

    Masks that were JPEG files once have levels close to the highest.
    """
    is_close = (levels < levels[-1]) & (levels >= levels[-1] - noise)
    return len(levels) <= _FEW_LEVELS and not is_close.any()


def _above_lowest(grey: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels` where the lowest of few levels is background.

    Args:
      grey: greyscale [H, W].
      levels: its levels, in ascending order; a single one is background if it is black.
    """
    background = levels[0] if len(levels) > 1 else 0
    half = np.iinfo(np.uint8).max / 2
    low = levels[1:][levels[1:] <= half] if levels[-1] > half else ()
    return grey > background, tuple(map(int, low))


def _read_lossy(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels` of greyscale [H, W] of 8 bits with noise.

    Noise spreads the level of an area, so that levels without a gap between them are one. If such a
    group is wider than noise, the mask is blurred, and its levels are no classes.
    """
    highest = float(pixels.max())
    if highest <= _JPEG_NOISE:
        return pixels > 0, ()
    smooth = ndimage.median_filter(pixels, size=3, mode="nearest")
    lowest, highest_near = _extremes(smooth)
    values, counts = np.unique(smooth[highest_near - lowest <= 2 * _JPEG_NOISE], return_counts=True)
    starts = np.flatnonzero(np.diff(values.astype(int)) > _JPEG_NOISE) + 1
    groups = list(zip(np.split(values, starts), np.split(counts, starts), strict=True))
    is_soft = any(np.ptp(group) > 3 * _JPEG_NOISE for group, _ in groups if group.size)
    classes = [
        float(np.average(group, weights=n))
        for group, n in groups
        if not is_soft and n.sum() >= 9 and group[0] > _JPEG_NOISE  # an area of 3×3
    ]
    threshold = min(classes, default=highest) / 2
    half = np.iinfo(np.uint8).max / 2
    levels = tuple(round(level) for level in classes if level <= half) if len(classes) > 1 else ()
    return pixels > threshold, levels


def _read_grey(pixels: np.ndarray, white: float | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns `Mask.defect` and `Mask.levels` of greyscale [H, W]."""
    highest = pixels.max()
    half = (white or np.iinfo(np.uint16).max) / 2
    if highest <= half:
        return pixels > 0, ()
    levels = _class_levels(pixels, half)
    if len(levels):
        # At least half of the lowest class, so that faint edges are no defect.
        return pixels > levels[0] / 2, tuple(int(level) for level in levels)
    return pixels > half, ()


def _class_levels(pixels: np.ndarray, half: float) -> np.ndarray:
    """Returns the levels, up to half of the range, that cannot be soft edges.

    Such are the levels of areas, which contain 3×3 pixels of one level. In a mask of few levels,
    they may be as low as 1, and lines count, too: soft edges touch brighter pixels, lines do not.
    The ripples that some edges have are fainter than the noise of lossy files.
    """
    noise = half * 2 * _JPEG_NOISE / 255
    candidates = (pixels > 0) & (pixels <= half)
    if not candidates.any():
        return np.empty(0)
    lowest, highest = _extremes(pixels)
    is_class = candidates & (lowest == highest)
    if not _are_labels(np.unique(pixels), noise):
        return np.unique(pixels[is_class & (pixels > noise)])
    lines, counts = np.unique(
        pixels[candidates & (pixels == highest) & (pixels > noise)], return_counts=True
    )
    return np.union1d(pixels[is_class], lines[counts > 1])


def _extremes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest value of the 3×3 pixels around each pixel."""
    lowest, highest = (
        function(pixels, size=3, mode="nearest")
        for function in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    return lowest, highest


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

    The background is index 0; if no pixel has it, it is black, and if no pixel is black, it is the
    commonest colour of the border.

    Args:
      image: palette image.
      colours: the colours that it uses, by index.
    """
    indices = np.asarray(image)
    used = np.unique(indices)
    background = 0
    if used[0] != 0:
        black = ~colours.any(axis=1)
        border = np.concatenate([indices[0], indices[-1], indices[:, 0], indices[:, -1]])
        background = int(used[black.argmax()] if black.any() else np.bincount(border).argmax())
    defect = indices != background
    if image.has_transparency_data:
        defect &= np.asarray(image.convert("RGBA"))[..., 3] > 0
    return defect
