"""The jitted function from images to scores, which evaluation, prediction and export share."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax

from devnet_jax.data.preprocessing import normalise
from devnet_jax.models import DeviationNetwork


@functools.partial(jax.jit, static_argnames="model")
def score_images(
    model: DeviationNetwork, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns scores [B] and signed position scores [B, h, w] of images uint8 [B, S, S, 3]."""
    result = model.apply(variables, normalise(images), train=False)
    return cast(tuple[jax.Array, jax.Array], result)
