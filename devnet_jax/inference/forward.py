"""The jitted functions from images, or their features, to scores, which all uses share."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from devnet_jax.models.bags import Model, score_bags
from devnet_jax.models.devcore import DevCore, Features


@functools.partial(jax.jit, static_argnames="model")
def score_images(
    model: Model, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, ...]:
    """Scores images uint8 [B, *preprocessing.shape].

    Returns:
      Scores [B] and position scores [B, h, w], or with tiles [B, T, h, w]; for devcore also the
      kind of labelled anomaly that each image is like, int32 [B]
      (`devnet_jax.models.devcore.UNLIKE` for none), and its likeness, float32 [B].
    """
    return score_bags(model, variables, images)[0]


@functools.partial(jax.jit, static_argnames="model")
def score_features(
    model: DevCore, variables: dict[str, Any], features: Features
) -> tuple[jax.Array, ...]:
    """Scores images by their frozen features, which are kept where one learns again and again.

    Args:
      model: DevCore.
      variables: its variables; those of the backbone are not used.
      features: of the T tiles of B images, leaves [B, T, …].

    Returns:
      As `score_images`, with position scores [B, T, h, w].
    """

    def per_tile(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    n_tiles = features.patches.shape[1]
    flat = jax.tree.map(per_tile, features)
    flat = flat._replace(patches=flat.patches.astype(jnp.float32))
    positions = model.apply(variables, flat, method="compare")
    tiles = jax.tree.map(lambda leaf: leaf.reshape(-1, n_tiles, *leaf.shape[1:]), positions)
    return cast(tuple[jax.Array, ...], model.apply(variables, tiles, method="image_scores"))
