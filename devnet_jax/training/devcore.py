"""Trains DevCore: fills the memory with good parts, and fits the head; seconds on a CPU."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from devnet_jax.config import Config
from devnet_jax.data.store import ImageReader
from devnet_jax.distributed.cluster import is_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.models import DevCore, fold_batch_norm
from devnet_jax.models.build import first_variables, make_model
from devnet_jax.models.devcore import (
    LABELLED_PER_IMAGE,
    UNLIKE,
)
from devnet_jax.models.heads import n_top
from devnet_jax.models.memory import k_centre, residuals
from devnet_jax.rng import generator
from devnet_jax.runtime.progress import Phase
from devnet_jax.training.devcore_head import FittedHead, LearningSet, fit_head
from devnet_jax.training.frozen import (
    FeatureReader,
    FeatureSource,
    FrozenNetwork,
    GoodParts,
    Means,
    TileFeatures,
    collect_good_parts,
    join_tiles,
)

logger = logging.getLogger(__name__)

# The head is learned from one in three positions of an image, those farthest from the memory: the
# others hardly ever reach the highest hundredth, whatever is learned.
_FAR_DIVISOR = 3
_MAX_FAR = 1024  # of all tiles of an image together, unless more make up the local score
# Axes that are reversed in the flipped copies of labelled anomalies.
_FLIPS = ((0,), (1,), (0, 1))


class FittedDevCore(NamedTuple):
    """A fitted DevCore.

    Attributes:
      variables: variables of the network.
      head: the fitted head, with its cross-validated scores.
    """

    variables: dict[str, Any]
    head: FittedHead


class _Memory(NamedTuple):
    """Memory vectors [M, C] on the device, and the image that each of them is from, int32 [M]."""

    vectors: jax.Array
    owners: jax.Array


def fit_devcore(
    config: Config, images: ImageReader, n_normal: int, kinds: Sequence[int]
) -> FittedDevCore | None:
    """Fits DevCore to training images.

    Several processes share the reading of the normal images; rank zero alone fits the head.

    Args:
      config: all settings.
      images: normal training images, followed by labelled anomalies.
      n_normal: number of normal training images.
      kinds: kind of each labelled anomaly, numbered from 0.

    Returns:
      The fitted network in rank zero, `None` in the other processes.

    Raises:
      UserError: if there are fewer than two normal images, the images are too small for the
        backbone, the weights cannot be loaded or give features that are not finite, or an image
        cannot be decoded.
    """
    network = frozen_network(config)
    reader = FeatureReader(config, network, images)
    return fit_features(config, network, reader, n_normal, kinds)


def frozen_network(config: Config) -> FrozenNetwork:
    """Returns DevCore's network before it is fitted, with the pretrained backbone.

    Raises:
      UserError: if the weights cannot be loaded.
    """
    if config.model.pretrained == "none":
        logger.warning(
            "config.model.pretrained = 'none': the backbone is frozen with random weights, and "
            "detects little; use it for tests alone"
        )
    variables = first_variables(config)
    model = make_model(config).clone(folded=True)
    assert isinstance(model, DevCore)
    fold = jax.jit(fold_batch_norm, static_argnames="backbone")
    return FrozenNetwork(model, variables, fold(variables, backbone=config.model.backbone))


def fit_features(
    config: Config,
    network: FrozenNetwork,
    reader: FeatureSource,
    n_normal: int,
    kinds: Sequence[int],
) -> FittedDevCore | None:
    """Fits DevCore to the features of training images; see `fit_devcore`.

    Args:
      config: all settings.
      network: network that the features are of.
      reader: features of normal training images, followed by labelled anomalies.
      n_normal: number of normal training images.
      kinds: kind of each labelled anomaly, numbered from 0.
    """
    if n_normal < 2:
        raise UserError(
            f"normal images for training: {n_normal}; the memory needs at least two; add some, or "
            "hold fewer of them out (config.dataset.calibration)"
        )
    good = collect_good_parts(config, reader, n_normal)
    if not all(np.isfinite(values).all() for values in good):
        raise UserError(
            f"config.model.pretrained = {config.model.pretrained!r}: the features of the images "
            "are not finite; use other weights"
        )
    if not is_rank_zero():
        return None
    with Phase("choosing the memory"):
        memory = _choose_memory(config, good)
    data, scale, labelled = _learning_set(config, reader, memory, good, len(kinds))
    head = fit_head(config, data)
    learned = {
        "position_head": {
            **head.position_parameters,
            "memory": memory.vectors,
            "scale": np.float32(scale),
            "labelled": labelled,
            "labelled_kinds": _pad_kinds(kinds),
        },
        "image_head": head.image_parameters,
    }
    params = {**network.variables["params"], **jax.tree.map(jnp.asarray, learned)}
    return FittedDevCore({**network.variables, "params": params}, head)


def _choose_memory(config: Config, good: GoodParts) -> _Memory:
    """Chooses the memory among the samples, on a random projection; repeats vectors if there are
    fewer samples than the memory holds."""
    n_channels = good.samples.shape[1]
    dimensions = min(config.devcore.projection, n_channels)
    drawn = generator(config.seed, "projection").standard_normal((n_channels, dimensions))
    projection = (drawn / np.sqrt(dimensions)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        projected = jnp.asarray(good.samples) @ projection
    size = config.devcore.memory_size
    chosen = np.asarray(k_centre(projected, min(size, len(projected))))
    chosen = np.resize(chosen, size)
    return _Memory(jnp.asarray(good.samples[chosen]), jnp.asarray(good.owners[chosen], jnp.int32))


def _learning_set(
    config: Config, reader: FeatureSource, memory: _Memory, good: GoodParts, n_anomaly: int
) -> tuple[LearningSet, float, np.ndarray]:
    """Reads the images that the head is learned from.

    Returns:
      Their features; the root mean square of the residuals of normal images; and the feature
      vectors of the labelled anomalies that a new defect is compared with, float32 [L, C].
    """
    n_all = len(good.fine)
    order = generator(config.seed, "learning images").permutation(n_all)
    chosen = np.sort(order[: config.devcore.learning_images])
    anomalies = n_all + np.arange(n_anomaly)
    unit = _unit(memory.vectors)
    share = config.devcore.top_positions
    means, found = Means(), dict[int, _Far]()
    for tiles in reader.read(np.concatenate([chosen, anomalies]), "comparing with the memory"):
        means.add(tiles)
        most = _n_far(reader.n_tiles * math.prod(tiles.features.patches.shape[1:3]), share)
        for i, far in _far_positions(tiles, memory, most, config.evaluation.batch_size, unit):
            found[i] = join_tiles(found.get(i), far, functools.partial(_farthest, most=most))
    images = list(found.values())
    squares = np.array([far.total_square / far.n_positions for far in images])
    scale = float(np.sqrt(np.mean(squares[: len(chosen)], dtype=np.float64)))
    # Good parts may hardly differ; the floor keeps defects within float16.
    scale = max(scale, 1e-2 * unit)
    residuals = _stack([far.residuals for far in images]) / np.float16(scale / unit)
    data = LearningSet(
        jnp.asarray(residuals),
        np.array([n_top(int(far.n_positions), share) for far in images]),
        means.vectors(),
        _flipped_vectors(reader, good, anomalies),
        {"fine": good.fine, "coarse": good.coarse},
        chosen,
    )
    # Repeated in tiny images.
    labelled = [
        np.resize(
            far.vectors[far.squares[: len(far.vectors)] >= 0],
            (LABELLED_PER_IMAGE, far.vectors.shape[-1]),
        )
        for far in images[len(chosen) :]
    ]
    empty = np.zeros((1, residuals.shape[-1]), np.float32)
    return data, scale, np.concatenate(labelled) if labelled else empty


def _flipped_vectors(
    reader: FeatureSource, good: GoodParts, anomalies: np.ndarray
) -> dict[str, np.ndarray]:
    """Reads the labelled anomalies flipped in F ways: by view, float32 [a, F, D]."""
    flipped = []
    for flip in _FLIPS if len(anomalies) else ():
        means = Means()
        for tiles in reader.read(anomalies, "reading flipped defects", flip):
            means.add(tiles)
        flipped.append(means.vectors())
    if not flipped:
        return {view: getattr(good, view)[:0, None] for view in ("fine", "coarse")}
    return {view: np.stack([vectors[view] for vectors in flipped], axis=1) for view in flipped[0]}


class _Far(NamedTuple):
    """The positions of one image that are farthest from the memory, farthest first.

    Attributes:
      squares: float32 [p], their mean squared residuals; negative in padding.
      residuals: float16 [p, C], in units of the memory's vectors; 0 in padding.
      vectors: float32 [LABELLED_PER_IMAGE or fewer, C], features of the farthest.
      total_square: sum of the mean squares of all positions.
      n_positions: number of all positions.
      level: `inside_levels` of the positions.
    """

    squares: np.ndarray
    residuals: np.ndarray
    vectors: np.ndarray
    total_square: float
    n_positions: float
    level: int


def _n_far(n_positions: int, share: float) -> int:
    """Returns the number of positions of an image that the head is learned from."""
    return max(min(-(-n_positions // _FAR_DIVISOR), _MAX_FAR), n_top(n_positions, share))


def _far_positions(
    tiles: TileFeatures, memory: _Memory, most: int, batch_size: int, unit: float
) -> Iterator[tuple[int, _Far]]:
    """Compares tiles with the memory; no image with its own memory vectors.

    Args:
      tiles: features of the tiles.
      memory: the memory.
      most: number of positions to return of each image.
      batch_size: number of tiles that the program is compiled for.
      unit: `_unit` of the memory.

    Yields:
      The image of each tile, and the tile's farthest positions.
    """
    n = len(tiles.owners)
    patches = np.asarray(tiles.features.patches)
    levels = np.full(patches.shape[:3], 2)
    if tiles.features.levels is not None:
        levels = np.asarray(tiles.features.levels)

    def pad(values: np.ndarray, fill: int) -> np.ndarray:
        widths = [(0, batch_size - n), *[(0, 0)] * (values.ndim - 1)]
        return np.pad(values, widths, constant_values=fill)

    found = _compare(memory, pad(patches, 0), pad(levels > 0, 0), pad(tiles.owners, -1), most)
    residuals, *others = (np.asarray(leaf)[:n] for leaf in found)
    scaled = (residuals / unit).astype(np.float16)
    squares, vectors, *sums = others
    highest = levels.max(axis=(1, 2)).tolist()
    for values in zip(tiles.owners.tolist(), squares, scaled, vectors, *sums, highest, strict=True):
        yield values[0], _Far(*values[1:])


def _farthest(old: _Far, new: _Far, most: int) -> _Far:
    """Returns the farthest positions of two parts of an image, at most `most`."""
    squares, residuals = (np.concatenate(pair) for pair in zip(old[:2], new[:2], strict=True))
    order = np.argsort(-squares, kind="stable")[:most]
    n_vectors = [len(part.vectors) for part in (old, new)]
    leading = np.concatenate(
        [part.squares[:n] for part, n in zip((old, new), n_vectors, strict=True)]
    )
    best = np.argsort(-leading, kind="stable")[:LABELLED_PER_IMAGE]
    return _Far(
        squares[order],
        residuals[order],
        np.concatenate([old.vectors, new.vectors])[best],
        old.total_square + new.total_square,
        old.n_positions + new.n_positions,
        old.level,
    )


@functools.partial(jax.jit, static_argnames="most")
def _compare(
    memory: _Memory, patches: jax.Array, inside: jax.Array, owners: jax.Array, most: int
) -> tuple[jax.Array, ...]:
    """Compares patches [B, h, w, C] with the memory.

    Returns:
      Residuals [B, p, C] of the `most` farthest positions, or of all if there are fewer; their mean
      squares [B, p]; feature vectors [B, 8, C] of the farthest; the sum of all mean squares [B] and
      the number of positions [B] inside.
    """
    n_tiles, n_channels = len(patches), patches.shape[-1]
    residual = residuals(patches, memory.vectors, memory.owners == owners[:, None])
    residual = jnp.where(inside[..., None], residual, 0).reshape(n_tiles, -1, n_channels)
    inside = inside.reshape(n_tiles, -1)
    squares = jnp.mean(residual**2, axis=-1)
    ranked = jnp.where(inside, squares, -1)
    largest, positions = jax.lax.top_k(ranked, min(most, ranked.shape[1]))
    leading = positions[:, :LABELLED_PER_IMAGE, None]
    return (
        jnp.take_along_axis(residual, positions[..., None], axis=1),
        largest,
        jnp.take_along_axis(patches.reshape(n_tiles, -1, n_channels), leading, axis=1),
        squares.sum(axis=1),
        inside.sum(axis=1),
    )


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks arrays [p, C] of different lengths; zeros are appended to the shorter ones."""
    longest = max(map(len, arrays))
    return np.stack([np.pad(array, ((0, longest - len(array)), (0, 0))) for array in arrays])


def _unit(vectors: jax.Array) -> float:
    """Returns the power of two nearest to the root mean square, so that float16 does not overflow;
    a power of two changes no digit."""
    mean_square = float(np.mean(np.square(np.asarray(vectors, np.float64))))
    return float(2.0 ** np.round(np.log2(max(mean_square, 1e-30)) / 2))


def _pad_kinds(kinds: Sequence[int]) -> np.ndarray:
    """Returns the kind of each labelled vector, int32 [L]; that of a zero vector without labels."""
    if not kinds:
        return np.array([UNLIKE], np.int32)
    return np.repeat(np.asarray(kinds, np.int32), LABELLED_PER_IMAGE)
