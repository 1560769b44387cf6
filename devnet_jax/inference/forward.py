"""The one jitted function from images to scores; training's evaluation, prediction and services
all call it."""

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
    """uint8 images [B, S, S, 3] → scores [B] and maps [B, h, w]."""
    result = model.apply(variables, normalise(images), train=False)
    return cast(tuple[jax.Array, jax.Array], result)
