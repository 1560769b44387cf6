"""From decoded uint8 pixels to the network's input: the same in training and in scoring."""

from __future__ import annotations

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [..., 3] → float [..., 3], scaled by ImageNet's channel means and deviations."""
    scaled = images / jnp.asarray(255.0)
    return (scaled - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
