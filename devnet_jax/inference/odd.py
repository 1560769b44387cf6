"""Pictures that are unlike the training pictures as a whole, named with a reason.

Noise, the inside of a lens cap, another part, a blurred picture or one of another size get scores
that mean nothing, and these scores can be low. `Ordinary` keeps a small summary of the training
pictures, and `Ordinary.reason` names a picture that is far from all of them. No network takes part,
so the same summary serves every detector. This module needs only NumPy, for exported files.

A picture is described by 8×8 cells: the mean colour of each, and its detail, the mean difference of
neighbouring pixels, at four scales. Noise has detail at the finest scale, a blurred picture only at
the coarser ones. Two distances to the nearest kept training picture are compared with limits: that
of summary features, and that of the colours. Both are taken over the three quarters of the cells
that are most alike, because a defect changes a part of a picture and is not meant to be found here.
The limits are multiples of the same distances between the training pictures, so a data set that
varies much allows much. Noise that passes in silence is the worse error, because nothing else finds
it; a defect that is named is a nuisance.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_CELLS = 8  # rows and columns of cells
_LEVELS = 4  # scales of detail: differences of pixels, and of means of 2×2, 4×4 and 8×8 pixels
_VALUES = 3 + _LEVELS  # of a cell: red, green, blue, and detail from the finest scale on
_N_ALIKE = _CELLS**2 * 3 // 4  # cells compared, the most alike: a defect may fill the others
# Differences of colour, in grey levels, and of detail, in binary orders of magnitude, that count
# the same where cells are compared.
_COLOUR_UNIT, _DETAIL_UNIT = 20.0, 0.5
_FAINTEST = 0.25  # detail below is that of rounding
_STEPS = 24  # kept steps in a binary order of magnitude of detail
_UNITS = np.array([_COLOUR_UNIT] * 3 + [_DETAIL_UNIT * _STEPS] * _LEVELS, np.float32)

_N_KEPT = 64  # training pictures that are kept
# Smallest spreads of the features that count: grey levels of brightness, contrast and two colours;
# binary orders of magnitude of detail at four scales, and between neighbouring scales.
_LEAST_SPREAD = np.array([6, 6, 4, 4, 0.2, 0.2, 0.2, 0.2, 0.07, 0.07, 0.07])
_BRIGHTNESS, _CONTRAST, _FINEST, _COARSEST, _FINEST_SLOPE = 0, 1, 4, 7, 8
_DETAIL, _SLOPES = slice(4, 8), slice(8, 11)
# Limits on both distances: at least `_LEAST`, `_TYPICAL` times the median among the training
# pictures, and `_FAR` times their 98 % quantile, which a few bad pictures among few can raise by a
# factor of `_MOST` only. Tuned on two data sets of benchmarks/odd.py so that at most about one good
# picture in 200 is named.
_LEAST, _TYPICAL, _FAR, _MOST = np.array([2.0, 8.0]), np.array([3.5, 5.0]), 1.3, 3
_SAME_PART = 0.7  # correlation of cells from which on a picture may be blurred, dark or bright

_N_SIZES = 3  # sizes that training pictures of fixed sizes can have
_RARE = 1 / 200  # share of good pictures that may be named
_SAME_SIZE = 0.02  # relative difference of heights or widths that is not named
_SAME_ASPECT = 0.05  # likewise for the logarithm of the aspect ratio

_ARRAYS = ("spread", "low", "high", "limits")


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


@dataclasses.dataclass(frozen=True, eq=False)
class Ordinary:
    """Summary of the training pictures, from which `reason` tells odd pictures.

    Attributes:
      kept: uint8 [K, 8, 8, 7], descriptions of the kept training pictures.
      spread: float64 [F], robust spread of the features over all training pictures.
      low: float64 [F], smallest features of the training pictures.
      high: float64 [F], largest features.
      limits: float64 [2], largest distances of ordinary pictures to the nearest kept one: of the
        features, in spreads, and of the colours, in grey levels.
      sizes: heights and widths of training pictures if these are fixed, else empty.
      aspects: smallest and largest width by height of the training pictures; `None` if not known.
    """

    kept: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    limits: np.ndarray
    sizes: Sequence[tuple[int, int]] = ()
    aspects: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, descriptions: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] = ()
    ) -> Ordinary:
        """Returns the summary of training pictures, in any order.

        Args:
          descriptions: those of `describe`, of at least one picture.
          sizes: height and width of each picture itself; empty if they are not known.

        Raises:
          ValueError: if there is no picture.
        """
        if not len(descriptions):
            raise ValueError("no training picture is described; give at least one")
        # In sorted order: a folder's order changes nothing. Copies of a picture count once.
        every = np.unique(np.stack(descriptions), axis=0)
        n = len(every)
        kept = np.unique(np.linspace(0, n - 1, min(n, _N_KEPT)).round().astype(int))
        features = _features(_values(every)).astype(np.float64)
        quartiles = np.quantile(features, [0.25, 0.75], axis=0)
        # The quartiles of a normal distribution are 1.35 standard deviations apart.
        spread = np.maximum(np.round((quartiles[1] - quartiles[0]) / 1.35, 3), _LEAST_SPREAD)
        others = _Cells.of(every[kept])
        among = np.stack([others.distances(description, spread) for description in every])
        among[kept, :, np.arange(len(kept))] = np.inf  # of a picture to itself; [n, 2, K]
        limits, usual = np.copy(_LEAST), np.ones(n, bool)
        if n > 1:
            nearest = among.min(axis=2)
            median, far = np.quantile(nearest, [0.5, 0.98], axis=0)
            limits = np.maximum(_TYPICAL * median, limits)
            limits = np.clip(_FAR * far, limits, _MOST * limits)
            # Pictures that no other training picture is like do not make others ordinary.
            usual = (nearest <= limits).all(axis=1)
            kept = kept[(among.min(axis=0) <= limits[:, None]).all(axis=0)]
        return cls(
            every[kept],
            spread,
            np.round(features[usual].min(axis=0), 3),
            np.round(features[usual].max(axis=0), 3),
            np.round(limits * (1 + 2 / n), 3),  # the range of few pictures is too narrow
            _fixed_sizes(sizes),
            _aspect_range(sizes),
        )

    @functools.cached_property
    def _others(self) -> _Cells:
        return _Cells.of(self.kept)

    def reason(self, description: np.ndarray, size: tuple[int, int] | None = None) -> str:
        """Returns "" for an ordinary picture, else a short reason to look at it.

        Args:
          description: that of `describe`.
          size: height and width of the picture itself; `None` if they are not known.
        """
        content = self._content_reason(description) if self.excess(description) > 1 else ""
        return "; ".join(filter(None, [content, self._size_reason(size)]))

    def excess(self, description: np.ndarray) -> float:
        """Returns the larger of both distances, divided by its limit: above 1 if it is odd."""
        distances = self._others.distances(description, self.spread).min(axis=1)
        return float((distances / self.limits).max())

    def _content_reason(self, description: np.ndarray) -> str:
        """Returns the reason of a picture whose distance is beyond a limit."""
        features = _features(_values(description))
        brightness, detail = features[_BRIGHTNESS], features[_DETAIL]
        darker, brighter = (
            (self.low[_BRIGHTNESS] - brightness) / self.spread[_BRIGHTNESS],
            (brightness - self.high[_BRIGHTNESS]) / self.spread[_BRIGHTNESS],
        )
        if features[_CONTRAST] < 5 and detail[-1] < 1:  # finer detail is the camera's noise
            if brightness < 25 and darker > 0:
                return "nearly black"
            if brightness > 240 and brighter > 0:
                return "nearly white"
            if (detail < 0).all():
                return "empty, of one colour"
        finer = ((features - self.high) / self.spread)[[_FINEST, _FINEST_SLOPE]].min()
        known = self._others.features
        fall, falls = (x[..., _FINEST] - x[..., _COARSEST] for x in (features, known))
        causes = {
            "noise" if features[_SLOPES].min() > 0.5 else "grainy": finer,
            "unlike the training pictures": 1.0,
        }
        if self._correlation(description) > _SAME_PART:
            causes |= {
                "blurred": (np.quantile(falls, 0.1) - fall) / self.spread[_FINEST],
                "darker than the training pictures": darker,
                "brighter than the training pictures": brighter,
            }
        return max(causes, key=lambda cause: causes[cause])

    def _correlation(self, description: np.ndarray) -> float:
        """Returns the largest correlation of the picture's cells with those of a kept one."""
        every = np.stack([description, *self.kept])[..., :3].astype(np.float32)
        grey = every.mean(axis=3).reshape(len(every), -1)
        grey -= grey.mean(axis=1, keepdims=True)
        grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
        return float((grey[1:] @ grey[0]).max())

    def _size_reason(self, size: tuple[int, int] | None) -> str:
        """Returns the reason of a picture of another size or aspect ratio, else ""."""
        if size is None or self.aspects is None:
            return ""
        shown = _shown(size)
        if self.sizes:
            if any(_alike(size, known) for known in self.sizes):
                return ""
            known = " or ".join(map(_shown, self.sizes))
            return f"another size ({shown}; the training pictures are {known})"
        low, high = map(math.log, self.aspects)
        fixed = high - low < _SAME_ASPECT
        margin = _SAME_ASPECT if fixed else max(high - low, math.log(2))
        if low - margin <= math.log(size[1] / size[0]) <= high + margin:
            return ""
        ends = " to ".join(dict.fromkeys(f"{aspect:.2f}" for aspect in self.aspects))
        return (
            f"another aspect ratio ({shown}; the training pictures' width is {ends} of the height)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as values that JSON can hold."""
        return {
            "kept": base64.b64encode(self.kept.tobytes()).decode(),
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            "sizes": [list(size) for size in self.sizes],
            "aspects": None if self.aspects is None else list(self.aspects),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ordinary:
        """Returns the summary that `to_dict` wrote."""
        kept = np.frombuffer(base64.b64decode(values["kept"]), np.uint8)
        aspects = values["aspects"]
        return cls(
            kept=kept.reshape(-1, _CELLS, _CELLS, _VALUES),
            **{name: np.array(values[name], np.float64) for name in _ARRAYS},
            sizes=[(height, width) for height, width in values["sizes"]],
            aspects=None if aspects is None else (aspects[0], aspects[1]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of kept training pictures, ready to be compared.

    Attributes:
      values: float32 [K, 64, 7], colours and detail.
      scaled: float32 [K, 64, 7], in units of equal weight.
    """

    values: np.ndarray
    scaled: np.ndarray

    @classmethod
    def of(cls, descriptions: np.ndarray) -> _Cells:
        """Returns the cells of descriptions uint8 [K, 8, 8, 7]."""
        return cls(_values(descriptions), _scaled(descriptions))

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Features of whole pictures, float32 [K, F]."""
        return _features(self.values)

    def distances(self, description: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Returns both distances of a picture to each of these, float64 [2, K]."""
        values = _values(description)
        differences = self.scaled - _scaled(description)
        squares = np.einsum("kcv,kcv->kc", differences, differences)
        alike = np.argpartition(squares, _N_ALIKE - 1, axis=1)[:, :_N_ALIKE]
        theirs = np.take_along_axis(self.values, alike[..., None], axis=1)
        apart = (_features(values[alike]) - _features(theirs)) / spread
        colours = np.abs(values[:, :3] - self.values[..., :3]).sum(axis=2)
        smallest = np.partition(colours, _N_ALIKE - 1, axis=1)[:, :_N_ALIKE] / 3
        return np.stack([np.sqrt((apart**2).sum(axis=1)), smallest.mean(axis=1)])


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
        return np.zeros((_CELLS, _CELLS, _VALUES), np.float32)
    result = [_means(pixels)]
    grey: np.ndarray = pixels[..., 0].astype(np.float32)
    grey += pixels[..., 1]
    grey += pixels[..., 2]
    grey /= 3
    for level in range(_LEVELS):
        if min(grey.shape) < 2:  # a sliver of a picture has no coarser scale
            result.append(result[-1] if level else np.zeros((_CELLS, _CELLS, 1), np.float32))
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
    canvas = np.full((rows * _CELLS, columns * _CELLS, _VALUES), np.nan, np.float32)
    for i, tile in enumerate(tiles):
        ends = _box(tile)
        if ends[0][0] == ends[0][1]:
            continue
        # The cells of a tile's part inside the picture, in the place of that part.
        where, source = [], []
        for (start, end), length, first in zip(
            ends, tile.shape[:2], (i // columns * _CELLS, i % columns * _CELLS), strict=True
        ):
            low = min(start * _CELLS // length, _CELLS - 1)
            n = max(round(end * _CELLS / length) - low, 1)
            where.append(first + low + np.arange(n))
            source.append(np.arange(n) * _CELLS // n)
        canvas[np.ix_(*where)] = _cells(tile)[np.ix_(*source)]
    known = ~np.isnan(canvas[..., 0])
    if not known.any():
        return np.zeros((_CELLS, _CELLS, _VALUES), np.float32)
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
    starts = [i * length // _CELLS for i in range(_CELLS + 1)]
    return [(start, max(end, start + 1)) for start, end in itertools.pairwise(starts)]


def _values(descriptions: np.ndarray) -> np.ndarray:
    """Returns colours and detail, float32 [..., 64, 7], of descriptions uint8 [..., 8, 8, 7]."""
    values = descriptions.reshape(*descriptions.shape[:-3], -1, _VALUES).astype(np.float32)
    values[..., 3:] = _FAINTEST * np.exp2(values[..., 3:] / _STEPS)
    return values


def _scaled(descriptions: np.ndarray) -> np.ndarray:
    """Returns cells in units of equal weight, float32 [..., 64, 7]."""
    return descriptions.reshape(*descriptions.shape[:-3], -1, _VALUES) / _UNITS


def _features(values: np.ndarray) -> np.ndarray:
    """Returns summary features [..., F] of cells [..., n, 7], in the order of _LEAST_SPREAD."""
    means = values.mean(axis=-2)
    red, green, blue = (means[..., i : i + 1] for i in range(3))
    contrast = values[..., :3].mean(axis=-1).std(axis=-1)[..., None]
    detail = np.log2(means[..., 3:])
    slopes = detail[..., :-1] - detail[..., 1:]
    brightness = (red + green + blue) / 3
    return np.concatenate(
        [brightness, contrast, red - green, blue - green, detail, slopes], axis=-1
    )


def _fixed_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the few sizes that the pictures have, the commonest first; [] if sizes vary."""
    counts = collections.Counter((int(height), int(width)) for height, width in sizes)
    # The share of pictures whose size occurs once estimates the share of new sizes to come (Good,
    # 1953, https://doi.org/10.1093/biomet/40.3-4.237).
    single = sum(n == 1 for n in counts.values())
    if len(counts) > _N_SIZES or (len(sizes) > 1 and single > _RARE * len(sizes)):
        return []
    return [size for size, _ in counts.most_common()]


def _aspect_range(sizes: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
    """Returns the smallest and the largest width by height."""
    aspects = [width / height for height, width in sizes]
    return (min(aspects), max(aspects)) if aspects else None


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Returns True if two sizes differ by a few pixels at most, as by a cut edge."""
    return all(abs(n - m) <= _SAME_SIZE * m for n, m in zip(size, other, strict=True))


def _shown(size: tuple[int, int]) -> str:
    """Returns a size as people write it, width first."""
    return f"{size[1]}×{size[0]}"
