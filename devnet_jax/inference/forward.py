"""The jitted function from images to scores, which evaluation, prediction and export share."""

from __future__ import annotations

import functools
from typing import Any

import jax

from devnet_jax.models.bags import Model, score_bags


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
