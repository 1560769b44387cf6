"""Normalisation of decoded pixels, the same in training and in scoring."""

from __future__ import annotations

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: jax.Array) -> jax.Array:
    """Normalises uint8 [..., 3] to float [..., 3] with ImageNet's channel means and deviations."""
    scaled = images / jnp.asarray(255.0)
    return (scaled - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
