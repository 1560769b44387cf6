"""Scores bags: an image, or all tiles of one, whose positions compete for the image's score."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from devnet_jax.data.preprocessing import network_input
from devnet_jax.models.devcore import DevCore
from devnet_jax.models.network import DeviationNetwork

Model = DeviationNetwork | DevCore

_MAX_UNROLLED = 16  # tiles; each adds to the time of compilation


def score_bags(
    model: Model,
    variables: dict[str, Any],
    images: Array,
    inside: Array | None = None,
    train: bool = False,
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Scores images or bags of tiles.

    Tiles are computed one after the other, and once more for their gradient. So activations take
    the memory of one tile of each image, however many there are.

    Args:
      model: network.
      variables: its "params" and "batch_stats".
      images: uint8 [B, H, W, C] or, with tiles, [B, T, H, W, C], as `network_input` takes them; or
        floating, with C = 3, as it returns them.
      inside: floating [B, H, W] or [B, T, H, W], the second result of `network_input`, if the
        images are floating.
      train: True to normalise by batch statistics: those of one tile of each image at a time.

    Returns:
      Scores [B]; position scores [B, h, w] or [B, T, h, w] of the finest scale; for devcore also
      kinds [B] and likeness [B]. And the updated variables: "batch_stats" if `train`, else none.
    """
    has_tiles = images.ndim == 5

    def positions(stats: dict[str, Any], tile: tuple[Array, Array | None]) -> tuple[Any, Any]:
        # Here, so that only one tile of each image is floating at a time.
        inputs, inside = network_input(tile[0]) if tile[0].dtype == jnp.uint8 else tile
        result, updated = model.apply(
            {**variables, **stats},
            inputs,
            train,
            inside,
            method="positions",
            mutable=["batch_stats"] if train else [],
        )
        # A backbone without BatchNorm has no statistics.
        return ({"batch_stats": updated.get("batch_stats", {})} if train else stats), result

    stats = {"batch_stats": variables["batch_stats"]} if train else {}
    if has_tiles:
        tiles = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (images, inside))
        unroll = train and unrolls_training() and images.shape[1] <= _MAX_UNROLLED
        stats, found = lax.scan(jax.checkpoint(positions), stats, tiles, unroll=unroll)
        found = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
    else:
        stats, found = positions(stats, (images, inside))
        found = jax.tree.map(lambda leaf: leaf[:, None], found)
    result = cast(tuple[Array, ...], model.apply(variables, found, method="image_scores"))
    scores, maps, *others = result
    return (scores, maps if has_tiles else maps[:, 0], *others), stats


def unrolls_training() -> bool:
    """Returns True if loops of a training step are unrolled instead of scanned: on a CPU.

    In a loop, the gradients of kernels take ten times as long there
    (benchmarks/results/cpu_profile.md).
    """
    return jax.default_backend() == "cpu"
