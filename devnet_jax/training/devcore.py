"""Trains DevCore: fills the memory with good parts, and fits the head; seconds on a CPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
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
    check_image_size,
    n_top,
)
from devnet_jax.models.memory import k_centre, residuals
from devnet_jax.rng import generator
from devnet_jax.training.devcore_head import FittedHead, LearningSet, fit_head
from devnet_jax.training.frozen import FeatureReader, GoodParts, collect_good_parts

logger = logging.getLogger(__name__)

# The head is learned from one in three positions of an image, those farthest from the memory: the
# others hardly ever reach the highest hundredth, whatever is learned.
_FAR_DIVISOR = 3
# Axes that are reversed in the flipped copies of labelled anomalies.
_FLIPS = ((1,), (2,), (1, 2))


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


def require_fittable(config: Config) -> None:
    """Raises `UserError` for settings that cannot work, whatever the data."""
    check_image_size(config.model.backbone, config.dataset.image_size)


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
    require_fittable(config)
    if n_normal < 2:
        raise UserError(
            f"normal images for training: {n_normal}; the memory needs at least two; add some, or "
            "hold fewer of them out (config.dataset.calibration)"
        )
    if config.model.pretrained == "none":
        logger.warning(
            "config.model.pretrained = 'none': the backbone is frozen with random weights, and "
            "detects little; use it for tests alone"
        )
    variables = first_variables(config)
    model = make_model(config).clone(folded=True)
    assert isinstance(model, DevCore)
    folded = jax.jit(fold_batch_norm, static_argnames="backbone")(
        variables, backbone=config.model.backbone
    )
    reader = FeatureReader(config, model, folded, images)
    good = collect_good_parts(config, reader, n_normal)
    if not all(np.isfinite(values).all() for values in good):
        raise UserError(
            f"config.model.pretrained = {config.model.pretrained!r}: the features of the images "
            "are not finite; use other weights"
        )
    if not is_rank_zero():
        return None
    memory = _choose_memory(config, good)
    data, scale, labelled = _learning_set(config, reader, memory, good, len(images) - n_normal)
    head = fit_head(config, data)
    learned = {
        **head.parameters,
        "memory": memory.vectors,
        "scale": np.float32(scale),
        "labelled": labelled,
        "labelled_kinds": _pad_kinds(kinds),
    }
    params = {**variables["params"], "head": jax.tree.map(jnp.asarray, learned)}
    return FittedDevCore({**variables, "params": params}, head)


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
    config: Config, reader: FeatureReader, memory: _Memory, good: GoodParts, n_anomaly: int
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
    parts, squares, fine, coarse = [], [], [], []
    labelled: list[np.ndarray] = []
    for indices, features in reader.read(np.concatenate([chosen, anomalies]), "comparing"):
        n = len(indices)
        padding = config.evaluation.batch_size - n
        padded = np.pad(features.patches, ((0, padding), (0, 0), (0, 0), (0, 0)))
        ids = np.pad(indices, (0, padding), constant_values=-1)
        far = jax.tree.map(
            lambda leaf, n=n: np.asarray(leaf)[:n], _far_positions(memory, padded, ids, share)
        )
        parts.append((far.residuals / unit).astype(np.float16))
        squares.append(far.mean_squares)
        fine.append(features.fine)
        coarse.append(features.coarse)
        for i in np.flatnonzero(indices >= n_all):
            farthest = np.resize(far.positions[i], LABELLED_PER_IMAGE)  # repeated in tiny images
            labelled.append(np.reshape(features.patches[i], (-1, padded.shape[-1]))[farthest])
    scale = float(np.sqrt(np.mean(np.concatenate(squares)[: len(chosen)], dtype=np.float64)))
    # Good parts may hardly differ; the floor keeps defects within float16.
    scale = max(scale, 1e-2 * unit)
    everything = np.concatenate(parts) / np.float16(scale / unit)
    n_positions = int(np.prod(features.patches.shape[1:3]))
    data = LearningSet(
        jnp.asarray(everything),
        n_top(n_positions, share),
        {"fine": np.concatenate(fine), "coarse": np.concatenate(coarse)},
        _flipped_vectors(reader, good, anomalies),
        {"fine": good.fine, "coarse": good.coarse},
        chosen,
    )
    empty = np.zeros((1, everything.shape[-1]), np.float32)
    return data, scale, np.concatenate(labelled) if labelled else empty


def _flipped_vectors(
    reader: FeatureReader, good: GoodParts, anomalies: np.ndarray
) -> dict[str, np.ndarray]:
    """Reads the labelled anomalies flipped in F ways: by view, float32 [a, F, D]."""
    flipped = {view: [getattr(good, view)[:0]] * len(_FLIPS) for view in ("fine", "coarse")}
    for i, flip in enumerate(_FLIPS):
        for _, features in reader.read(anomalies, "comparing", flip):
            for view, vectors in flipped.items():
                vectors[i] = np.concatenate([vectors[i], getattr(features, view)])
    return {view: np.stack(vectors, axis=1) for view, vectors in flipped.items()}


class _FarPositions(NamedTuple):
    """The positions of B images that are farthest from the memory, farthest first.

    Attributes:
      residuals: float32 [B, p, C].
      positions: int32 [B, p], their numbers.
      mean_squares: float32 [B], mean square of the residuals of all positions.
    """

    residuals: jax.Array
    positions: jax.Array
    mean_squares: jax.Array


@functools.partial(jax.jit, static_argnames="share")
def _far_positions(
    memory: _Memory, patches: jax.Array, indices: jax.Array, share: float
) -> _FarPositions:
    """Compares patches [B, h, w, C] with the memory; no image with its own memory vectors.

    Args:
      memory: the memory.
      patches: features of B images.
      indices: int [B], indices of the images.
      share: share of the positions that make up the local score; at least these are returned.
    """
    residual = residuals(patches, memory.vectors, memory.owners == indices[:, None])
    residual = residual.reshape(len(patches), -1, patches.shape[-1])
    squares = jnp.mean(residual**2, axis=-1)
    n_positions = squares.shape[1]
    n_kept = max(-(-n_positions // _FAR_DIVISOR), n_top(n_positions, share))
    _, positions = jax.lax.top_k(squares, n_kept)
    kept = jnp.take_along_axis(residual, positions[..., None], axis=1)
    return _FarPositions(kept, positions, squares.mean(axis=1))


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
