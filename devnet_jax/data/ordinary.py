"""Pictures that are unlike the training pictures as a whole, named with a reason.

Noise, the inside of a lens cap, another part, a blurred picture or one of another size get scores
that mean nothing, and these scores can be low. `Ordinary` keeps a small summary of the training
pictures, and `Ordinary.reason` names a picture that is far from all of them. No network takes part,
so the same summary serves every detector. This module needs only NumPy and
Pillow, for exported files.

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
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from devnet_jax.data.description import (
    BRIGHTNESS,
    CELLS,
    COARSEST,
    CONTRAST,
    DETAIL,
    FINEST,
    FINEST_SLOPE,
    SLOPES,
    VALUES,
    features_of,
    scaled_values,
    values_of,
)

_N_ALIKE = CELLS**2 * 3 // 4  # cells compared, the most alike: a defect may fill the others
_N_KEPT = 64  # training pictures that are kept
# Smallest spreads of the features that count: grey levels of brightness, contrast and two colours;
# binary orders of magnitude of detail at four scales, and between neighbouring scales.
_LEAST_SPREAD = np.array([6, 6, 4, 4, 0.2, 0.2, 0.2, 0.2, 0.07, 0.07, 0.07])
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
        features = features_of(values_of(every)).astype(np.float64)
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
        features = features_of(values_of(description))
        brightness, detail = features[BRIGHTNESS], features[DETAIL]
        darker, brighter = (
            (self.low[BRIGHTNESS] - brightness) / self.spread[BRIGHTNESS],
            (brightness - self.high[BRIGHTNESS]) / self.spread[BRIGHTNESS],
        )
        if features[CONTRAST] < 5 and detail[-1] < 1:  # finer detail is the camera's noise
            if brightness < 25 and darker > 0:
                return "nearly black"
            if brightness > 240 and brighter > 0:
                return "nearly white"
            if (detail < 0).all():
                return "empty, of one colour"
        finer = ((features - self.high) / self.spread)[[FINEST, FINEST_SLOPE]].min()
        known = self._others.features
        fall, falls = (x[..., FINEST] - x[..., COARSEST] for x in (features, known))
        causes = {
            "noise" if features[SLOPES].min() > 0.5 else "grainy": finer,
            "unlike the training pictures": 1.0,
        }
        if self._correlation(description) > _SAME_PART:
            causes |= {
                "blurred": (np.quantile(falls, 0.1) - fall) / self.spread[FINEST],
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
            kept=kept.reshape(-1, CELLS, CELLS, VALUES),
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
        return cls(values_of(descriptions), scaled_values(descriptions))

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Features of whole pictures, float32 [K, F]."""
        return features_of(self.values)

    def distances(self, description: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Returns both distances of a picture to each of these, float64 [2, K]."""
        values = values_of(description)
        differences = self.scaled - scaled_values(description)
        squares = np.einsum("kcv,kcv->kc", differences, differences)
        alike = np.argpartition(squares, _N_ALIKE - 1, axis=1)[:, :_N_ALIKE]
        theirs = np.take_along_axis(self.values, alike[..., None], axis=1)
        apart = (features_of(values[alike]) - features_of(theirs)) / spread
        colours = np.abs(values[:, :3] - self.values[..., :3]).sum(axis=2)
        smallest = np.partition(colours, _N_ALIKE - 1, axis=1)[:, :_N_ALIKE] / 3
        return np.stack([np.sqrt((apart**2).sum(axis=1)), smallest.mean(axis=1)])


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
