"""Augmentation of decoded images, on the device, inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Rotates counter-clockwise about the centre: nearest pixel, same size, black outside.

    Args:
      image: [H, W, C].
      degrees: scalar.

    Returns:
      [H, W, C], of the image's dtype; pixel for pixel as Pillow's `Image.rotate` does it, up to
      positions that fall on the edge between two pixels.
    """
    height, width = image.shape[:2]
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    source_x = jnp.floor(cos * x - sin * y + width / 2).astype(jnp.int32)
    source_y = jnp.floor(sin * x + cos * y + height / 2).astype(jnp.int32)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    pixels = image[jnp.clip(source_y, 0, height - 1), jnp.clip(source_x, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, 0)


def random_rotations(
    images: jax.Array, key: jax.Array, positions: jax.Array, max_degrees: float
) -> jax.Array:
    """Rotates each image by its own angle, uniform in ±max_degrees.

    Args:
      images: [B, H, W, C].
      key: of the step.
      positions: int [B], each image's place in the global batch: its angle depends on the key
        and this alone, not on how the batch is divided among devices.
      max_degrees: of the rotation; 0 returns the images as they are.

    Returns:
      [B, H, W, C], of the images' dtype.
    """
    if max_degrees == 0:
        return images
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
    angles = jax.vmap(lambda k: jax.random.uniform(k, minval=-max_degrees, maxval=max_degrees))(
        keys
    )
    return jax.vmap(rotate)(images, angles)
