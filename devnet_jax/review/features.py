"""Frozen features of pictures, kept in memory: they are computed once, and learned from often."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence

import jax
import numpy as np

from devnet_jax.config import Config
from devnet_jax.data.store import ImageReader
from devnet_jax.models.devcore import Features
from devnet_jax.training.frozen import FeatureReader, FrozenNetwork, TileFeatures

_GROUP_TILES = 256
_KEPT_DTYPE = np.float16
_Key = tuple[int, tuple[int, ...]]  # a picture, and the axes that are reversed


class FeatureStore:
    """Features of pictures, computed when they are first read.

    Patches are kept as float16, which halves their memory; a residual changes by about a thousandth
    of the patch. When the memory is full, pictures that `pin` has not named make room.

    Attributes:
      tiles_per_batch: number of tiles in a batch.
    """

    def __init__(
        self, config: Config, network: FrozenNetwork, images: ImageReader, capacity: int
    ) -> None:
        """Creates an empty store.

        Args:
          config: all settings.
          network: network that computes the features.
          images: the pictures.
          capacity: largest memory of all kept features, in bytes.
        """
        self._reader = FeatureReader(config, network, images)
        self.tiles_per_batch = config.evaluation.batch_size
        self._capacity = capacity
        self._kept: dict[_Key, Features] = {}  # leaves [T, …]
        self._pinned: frozenset[int] = frozenset()
        self._n_bytes = 0
        self._lock = threading.Lock()  # heat maps are made in other threads

    @property
    def n_tiles(self) -> int:
        """Number of tiles of a picture."""
        return self._reader.n_tiles

    def pin(self, pictures: Collection[int]) -> None:
        """Says which pictures will be read again, and stay when the memory is full."""
        self._pinned = frozenset(pictures)

    def batches(
        self, pictures: Sequence[int], flip: tuple[int, ...] = ()
    ) -> Iterator[tuple[Sequence[int], Features]]:
        """Yields pictures in batches, and their features, leaves [B, T, …].

        Args:
          pictures: numbers of the pictures.
          flip: axes of a tile that are reversed, as for `FeatureReader.read`.

        Raises:
          UserError: if a picture cannot be decoded.
        """
        per_batch = max(self.tiles_per_batch // self.n_tiles, 1)
        # Several batches together, so that few missing pictures do not fill many batches.
        group = per_batch * max(_GROUP_TILES // (per_batch * self.n_tiles), 1)
        for start in range(0, len(pictures), group):
            some = pictures[start : start + group]
            found = self._found(some, flip)
            for first in range(0, len(some), per_batch):
                batch = some[first : first + per_batch]
                leaves = [found[i] for i in batch]
                yield batch, jax.tree.map(lambda *parts: np.stack(parts), *leaves)

    def _found(self, pictures: Sequence[int], flip: tuple[int, ...]) -> dict[int, Features]:
        """Returns the features of pictures, from the memory or the network."""
        kept = ((i, self._kept.get((i, flip))) for i in pictures)
        found = {i: features for i, features in kept if features is not None}
        missing = np.array([i for i in pictures if i not in found], int)
        if len(missing):
            for i, features in _by_picture(self._reader.read(missing, "looking", flip)):
                found[i] = features
                self._keep((i, flip), features)
        return found

    def _keep(self, key: _Key, features: Features) -> None:
        """Keeps features if there is room, or others give way."""
        size = _n_bytes(features)
        with self._lock:
            if key in self._kept:
                return
            if self._n_bytes + size > self._capacity and key[0] in self._pinned:
                self._make_room(size)
            if self._n_bytes + size <= self._capacity:
                self._kept[key] = features
                self._n_bytes += size

    def _make_room(self, size: int) -> None:
        for key in [key for key in self._kept if key[0] not in self._pinned]:
            if self._n_bytes + size <= self._capacity:
                return
            self._n_bytes -= _n_bytes(self._kept.pop(key))


class LearningPictures:
    """A `FeatureSource` of some pictures of a store, numbered from 0 in the order given."""

    def __init__(self, store: FeatureStore, pictures: Sequence[int]) -> None:
        """Keeps a reference to the store; reads nothing.

        Args:
          store: features of all pictures.
          pictures: numbers of the pictures in the store.
        """
        self._store = store
        self._pictures = pictures

    @property
    def n_tiles(self) -> int:
        """Number of tiles of a picture."""
        return self._store.n_tiles

    def read(
        self, indices: np.ndarray, description: str, flip: tuple[int, ...] = ()
    ) -> Iterator[TileFeatures]:
        """Yields the features of pictures by their numbers here; see `FeatureReader.read`."""
        del description  # a review shows its own progress
        chosen = [self._pictures[i] for i in indices]
        numbers = iter(indices.tolist())
        n_tiles = self.n_tiles
        for batch, features in self._store.batches(chosen, flip):
            owners = np.repeat(list(itertools.islice(numbers, len(batch))), n_tiles)
            flat: Features = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), features)
            flat = flat._replace(patches=flat.patches.astype(np.float32))
            size = self._store.tiles_per_batch
            for start in range(0, len(owners), size):
                part = slice(start, start + size)
                tiles = jax.tree.map(lambda leaf, part=part: leaf[part], flat)
                yield TileFeatures(
                    owners[part], np.tile(np.arange(n_tiles), len(batch))[part], tiles
                )


def _by_picture(batches: Iterable[TileFeatures]) -> Iterator[tuple[int, Features]]:
    """Yields each picture and its features, leaves [T, …]; patches in `_KEPT_DTYPE` if they fit."""

    def tiles() -> Iterator[tuple[int, Features]]:
        for batch in batches:
            for n, owner in enumerate(batch.owners.tolist()):
                yield owner, jax.tree.map(lambda leaf, n=n: np.asarray(leaf[n]), batch.features)

    for owner, group in itertools.groupby(tiles(), lambda tile: tile[0]):
        features: Features = jax.tree.map(lambda *parts: np.stack(parts), *(f for _, f in group))
        with np.errstate(over="ignore"):
            half = features.patches.astype(_KEPT_DTYPE)
        yield owner, features._replace(patches=half) if np.isfinite(half).all() else features


def _n_bytes(features: Features) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(features))
