"""Streams the training images through the frozen backbone, for DevCore."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import jax
import numpy as np

from devnet_jax.config import Config
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import network_input
from devnet_jax.data.store import ImageReader
from devnet_jax.distributed.batching import apply_in_batches
from devnet_jax.distributed.cluster import gather, local_share, report_progress
from devnet_jax.models import DevCore
from devnet_jax.models.devcore import Features, Sum
from devnet_jax.rng import generator
from devnet_jax.runtime.progress import COMPILING, Phase


class GoodParts(NamedTuple):
    """Sampled feature vectors and mean features of N normal training images.

    Attributes:
      samples: float32 [n, C], feature vectors at random positions.
      owners: int [n], index of the image that each of them is from.
      fine: float32 [N, C], means of the patches over all positions of an image.
      coarse: float32 [N, D], means of the last stage.
    """

    samples: np.ndarray
    owners: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray


class TileFeatures(NamedTuple):
    """Features of m tiles; those of an image follow each other. Without tiles, of m images.

    Attributes:
      owners: int [m], index of the image that each tile is of.
      numbers: int [m], number of each tile in its image.
      features: the features, as NumPy arrays [m, …].
    """

    owners: np.ndarray
    numbers: np.ndarray
    features: Features


class FrozenNetwork(NamedTuple):
    """DevCore's network before it is fitted.

    Attributes:
      model: folded network.
      variables: its variables, not folded.
      folded: variables of the folded network.
    """

    model: DevCore
    variables: dict[str, Any]
    folded: dict[str, Any]


class FeatureSource(Protocol):
    """The interface of the features of images: `FeatureReader`, or features kept from earlier."""

    @property
    def n_tiles(self) -> int:
        """Number of tiles of an image."""

    def read(
        self, indices: np.ndarray, description: str, flip: tuple[int, ...] = ()
    ) -> Iterator[TileFeatures]:
        """Yields the features of images; see `FeatureReader.read`."""


@functools.partial(jax.jit, static_argnames="model")
def frozen_features(model: DevCore, variables: dict[str, Any], images: jax.Array) -> Features:
    """Returns the features of images, or tiles, uint8 [B, H, W, C]."""
    inputs, inside = network_input(images)
    return cast(Features, model.apply(variables, inputs, inside, method="features"))


class FeatureReader:
    """Reads training images and computes their features, batch by batch, with prefetching."""

    def __init__(self, config: Config, network: FrozenNetwork, images: ImageReader) -> None:
        """Creates a reader; nothing is read yet.

        Args:
          config: all settings.
          network: network that computes the features.
          images: the training images.
        """
        self._batch_size = config.evaluation.batch_size
        self._function = functools.partial(frozen_features, network.model, network.folded)
        self._images = images
        self._first = COMPILING

    @property
    def n_tiles(self) -> int:
        """Number of tiles of an image."""
        return self._images.preprocessing.n_tiles

    def read(
        self, indices: np.ndarray, description: str, flip: tuple[int, ...] = ()
    ) -> Iterator[TileFeatures]:
        """Yields the features of images, or of their tiles, in batches of `evaluation.batch_size`.

        Args:
          indices: int [n], indices of training images.
          description: name of the phase whose progress is shown.
          flip: axes of a tile that are reversed: 0 turns it upside down, 1 mirrors it.

        Raises:
          UserError: if an image cannot be decoded.
        """
        n_tiles = self.n_tiles
        per_batch = max(self._batch_size // n_tiles, 1)
        starts = range(0, len(indices), per_batch)
        parts = (indices[start : start + per_batch] for start in starts)
        batches = prefetch((part, self._images.read(part)) for part in parts)
        phase = Phase(description, len(indices), first=self._first)
        self._first = ""
        with phase, contextlib.closing(batches):
            for part, pixels in batches:
                tiles = pixels.reshape(-1, *pixels.shape[-3:])
                tiles = np.flip(tiles, tuple(axis + 1 for axis in flip))
                owners, numbers = np.repeat(part, n_tiles), np.tile(np.arange(n_tiles), len(part))
                for start in range(0, len(tiles), self._batch_size):
                    some = slice(start, start + self._batch_size)
                    found = apply_in_batches(self._function, tiles[some], self._batch_size)
                    yield TileFeatures(owners[some], numbers[some], found)
                phase.update(len(part))
                report_progress()


class _Levelled(Protocol):
    """The interface of results of a tile."""

    @property
    def level(self) -> Any:
        """Returns `inside_levels` of the tile's positions."""


R = TypeVar("R", bound=_Levelled)


def join_tiles(old: R | None, new: R, join: Callable[[R, R], R]) -> R:
    """Joins the result of a tile with that of earlier tiles of its image.

    Of two levels, the higher alone counts.

    Args:
      old: result of the earlier tiles; `None` for the first tile.
      new: result of the tile.
      join: function that joins two results of one level.
    """
    if old is None or old.level < new.level:
        return new
    return old if old.level > new.level else join(old, new)


def _add(old: Sum, new: Sum) -> Sum:
    return Sum(old.total + new.total, old.n + new.n, old.level)


class Means:
    """Means of feature maps over all positions of each image, added up tile by tile."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Sum]] = {"fine": {}, "coarse": {}}

    def add(self, tiles: TileFeatures) -> None:
        """Adds tiles."""
        for view, sums in self._sums.items():
            for i, *values in zip(
                tiles.owners.tolist(), *getattr(tiles.features, view), strict=True
            ):
                sums[i] = join_tiles(sums.get(i), Sum(*values), _add)

    def vectors(self) -> dict[str, np.ndarray]:
        """Returns the means of all images, in their order: float32 [n, D] by the name of the view;
        nothing without images."""
        return {
            view: np.stack([found.total / found.n for found in sums.values()])
            for view, sums in self._sums.items()
            if sums
        }


def collect_good_parts(config: Config, reader: FeatureSource, n_normal: int) -> GoodParts:
    """Reads all normal training images once; several processes share them.

    It keeps about `devcore.memory_samples` positions, equally many of each image. Beyond these,
    memory grows by two vectors an image.

    Args:
      config: all settings.
      reader: reader of the training images.
      n_normal: number of normal training images, which come first.
    """
    wanted = config.devcore.memory_samples
    per_image = -(-wanted // n_normal)
    sampled = set(generator(config.seed, "sampled images").permutation(n_normal)[:wanted].tolist())
    kept: dict[int, _Sample] = {}
    means = Means()
    ranks, ranked = np.empty(0, int), -1
    share = local_share(range(n_normal))
    for tiles in reader.read(np.array(share, int), "reading good parts"):
        means.add(tiles)
        patches, levels = tiles.features.patches, tiles.features.levels
        vectors = np.reshape(patches, (len(patches), -1, patches.shape[-1]))
        n_positions = vectors.shape[1]
        for n, (i, number) in enumerate(zip(*tiles[:2], strict=True)):
            if i not in sampled:
                continue
            if i != ranked:  # tiles of an image follow each other
                draw = generator(config.seed, "sampled positions", int(i))
                ranks = np.argsort(draw.permutation(reader.n_tiles * n_positions))
                ranked = i
            of_tile = ranks[number * n_positions :][:n_positions]
            level, chosen = 2, np.ones(n_positions, bool)
            if levels is not None:
                level, chosen = int(levels[n].max()), np.reshape(levels[n], -1) > 0
            new = _Sample(of_tile[chosen], vectors[n][chosen], level)
            kept[i] = _lowest(join_tiles(kept.get(i), new, _concatenate), per_image)
    mine = means.vectors()
    if kept:
        mine["samples"] = np.concatenate([sample.vectors for sample in kept.values()])
        mine["owners"] = np.repeat(list(kept), [len(sample.ranks) for sample in kept.values()])
    everyones = gather(mine)
    return GoodParts(
        *(np.concatenate([e[name] for e in everyones if name in e]) for name in GoodParts._fields)
    )


class _Sample(NamedTuple):
    """Positions of one image: ranks in the image's random order int [k], vectors [k, C], and their
    `inside_levels`."""

    ranks: np.ndarray
    vectors: np.ndarray
    level: int


def _concatenate(old: _Sample, new: _Sample) -> _Sample:
    ranks, vectors = (np.concatenate(pair) for pair in zip(old[:2], new[:2], strict=True))
    return _Sample(ranks, vectors, old.level)


def _lowest(sample: _Sample, most: int) -> _Sample:
    """Returns the positions of lowest rank, at most `most`, in their order."""
    chosen = np.argsort(sample.ranks)[:most]
    return _Sample(sample.ranks[chosen], sample.vectors[chosen], sample.level)
