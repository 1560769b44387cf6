"""Descriptions of whole pictures: colours and detail of 8×8 cells, and summary features of these.

This module needs only NumPy and Pillow, for exported files.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from devnet_jax.data.decode import map_in_threads

CELLS = 8  # rows and columns of cells
_LEVELS = 4  # scales of detail: differences of pixels, and of means of 2×2, 4×4 and 8×8 pixels
VALUES = 3 + _LEVELS  # of a cell: red, green, blue, and detail from the finest scale on
# Differences of colour, in grey levels, and of detail, in binary orders of magnitude, that count
# the same where cells are compared.
_COLOUR_UNIT, _DETAIL_UNIT = 20.0, 0.5
_FAINTEST = 0.25  # detail below is that of rounding
_STEPS = 24  # kept steps in a binary order of magnitude of detail
_UNITS = np.array([_COLOUR_UNIT] * 3 + [_DETAIL_UNIT * _STEPS] * _LEVELS, np.float32)

# Places of the features of `features_of`: brightness, contrast and two colours, in grey levels;
# detail at four scales, and its differences between neighbouring scales, in binary orders.
BRIGHTNESS, CONTRAST, FINEST, COARSEST, FINEST_SLOPE = 0, 1, 4, 7, 8
DETAIL, SLOPES = slice(4, 8), slice(8, 11)


def describe(pixels: np.ndarray, columns: int = 1) -> np.ndarray:
    """Returns the description of a picture, uint8 [8, 8, 7]; padding is left out.

    Args:
      pixels: network's input of one picture, uint8 [H, W, C], or [T, H, W, C] with tiles, C = 3 or,
        with padding, 4 (`Preprocessing.n_channels`).
      columns: number of columns of tiles.
    """
    cells = _cells(pixels) if pixels.ndim == 3 else _cells_of_tiles(pixels, columns)
    detail = _STEPS * (np.log2(cells[..., 3:] + _FAINTEST) - math.log2(_FAINTEST))
    return np.rint(np.concatenate([cells[..., :3], detail], axis=-1)).astype(np.uint8)


def describe_batch(images: np.ndarray, columns: int = 1) -> list[np.ndarray]:
    """Returns the description of each of N pictures, computed by one thread per core.

    Args:
      images: network's input, uint8 [N, H, W, C] or [N, T, H, W, C].
      columns: number of columns of tiles.
    """
    if len(images) == 1:  # a thread takes longer to start
        return [describe(images[0], columns)]
    return list(map_in_threads(lambda pixels: describe(pixels, columns), images, None))


def _box(tile: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the ends of the rows and of the columns of a tile inside the picture."""
    if tile.shape[-1] == 3:
        return (0, tile.shape[0]), (0, tile.shape[1])
    inside = tile[..., 3] > 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return (0, 0), (0, 0)
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _cells(pixels: np.ndarray) -> np.ndarray:
    """Returns mean colours and detail of 8×8 cells of a picture, float32 [8, 8, 7]."""
    (top, bottom), (left, right) = _box(pixels)
    pixels = pixels[top:bottom, left:right, :3]
    if not pixels.size:
        return np.zeros((CELLS, CELLS, VALUES), np.float32)
    result = [_means(pixels)]
    grey: np.ndarray = pixels[..., 0].astype(np.float32)
    grey += pixels[..., 1]
    grey += pixels[..., 2]
    grey /= 3
    for level in range(_LEVELS):
        if min(grey.shape) < 2:  # a sliver of a picture has no coarser scale
            result.append(result[-1] if level else np.zeros((CELLS, CELLS, 1), np.float32))
            continue
        grey = grey[: len(grey) // 2 * 2, : grey.shape[1] // 2 * 2]
        # Every second row and the one below it: half the work, and the same means.
        upper, lower = grey[::2], grey[1::2]
        differences = lower - upper
        np.abs(differences, out=differences)
        across = np.diff(upper, axis=1)
        np.abs(across, out=across)
        differences[:, 1:] += across
        differences[:, 0] += across[:, 0]
        result.append(_means(differences[..., None]) / 2)
        if level < _LEVELS - 1:
            pairs = upper + lower
            grey = pairs[:, ::2] + pairs[:, 1::2]
            grey /= 4
    return np.concatenate(result, axis=-1)


def _cells_of_tiles(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Returns the cells of a picture in tiles [T, H, W, C], as `_cells`.

    Tiles are laid side by side, what they overlap twice: alike in training and in scoring.
    """
    rows = len(tiles) // columns
    canvas = np.full((rows * CELLS, columns * CELLS, VALUES), np.nan, np.float32)
    for i, tile in enumerate(tiles):
        ends = _box(tile)
        if ends[0][0] == ends[0][1]:
            continue
        # The cells of a tile's part inside the picture, in the place of that part.
        where, source = [], []
        for (start, end), length, first in zip(
            ends, tile.shape[:2], (i // columns * CELLS, i % columns * CELLS), strict=True
        ):
            low = min(start * CELLS // length, CELLS - 1)
            n = max(round(end * CELLS / length) - low, 1)
            where.append(first + low + np.arange(n))
            source.append(np.arange(n) * CELLS // n)
        canvas[np.ix_(*where)] = _cells(tile)[np.ix_(*source)]
    known = ~np.isnan(canvas[..., 0])
    if not known.any():
        return np.zeros((CELLS, CELLS, VALUES), np.float32)
    return _means(canvas[np.ix_(known.any(axis=1), known.any(axis=0))])


def _means(values: np.ndarray) -> np.ndarray:
    """Returns the means of 8×8 cells of [h, w, C], float32 [8, 8, C]."""
    exact = np.uint32 if values.dtype == np.uint8 else np.float32
    strips = np.stack(
        [
            values[start:end].sum(axis=0, dtype=exact) / np.float32(end - start)
            for start, end in _parts(values.shape[0])
        ]
    )
    cells = [strips[:, start:end].mean(axis=1) for start, end in _parts(values.shape[1])]
    return np.stack(cells, axis=1).astype(np.float32)


def _parts(length: int) -> list[tuple[int, int]]:
    """Returns the ends of 8 equal parts of an axis; where it has fewer pixels, some share one."""
    starts = [i * length // CELLS for i in range(CELLS + 1)]
    return [(start, max(end, start + 1)) for start, end in itertools.pairwise(starts)]


def values_of(descriptions: np.ndarray) -> np.ndarray:
    """Returns colours and detail, float32 [..., 64, 7], of descriptions uint8 [..., 8, 8, 7]."""
    values = descriptions.reshape(*descriptions.shape[:-3], -1, VALUES).astype(np.float32)
    values[..., 3:] = _FAINTEST * np.exp2(values[..., 3:] / _STEPS)
    return values


def scaled_values(descriptions: np.ndarray) -> np.ndarray:
    """Returns cells in units of equal weight, float32 [..., 64, 7]."""
    return descriptions.reshape(*descriptions.shape[:-3], -1, VALUES) / _UNITS


def features_of(values: np.ndarray) -> np.ndarray:
    """Returns summary features [..., F] of cells [..., n, 7], see `BRIGHTNESS` and the others."""
    means = values.mean(axis=-2)
    red, green, blue = (means[..., i : i + 1] for i in range(3))
    contrast = values[..., :3].mean(axis=-1).std(axis=-1)[..., None]
    detail = np.log2(means[..., 3:])
    slopes = detail[..., :-1] - detail[..., 1:]
    brightness = (red + green + blue) / 3
    return np.concatenate(
        [brightness, contrast, red - green, blue - green, detail, slopes], axis=-1
    )
