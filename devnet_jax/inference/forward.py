"""The jitted function from images to scores, which evaluation, prediction and export share."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax

from devnet_jax.data.preprocessing import normalise
from devnet_jax.models.build import Model


@functools.partial(jax.jit, static_argnames="model")
def score_images(
    model: Model, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, ...]:
    """Scores images uint8 [B, S, S, 3].

    Returns:
      Scores [B] and position scores [B, h, w]; for devcore also the kind of labelled anomaly that
      each image is like, int32 [B] (`devnet_jax.models.devcore.UNLIKE` for none).
    """
    result = model.apply(variables, normalise(images), train=False)
    return cast(tuple[jax.Array, ...], result)
