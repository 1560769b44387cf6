"""Random rotation of decoded images, on the device, inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Rotates an image counter-clockwise about its centre.

    Nearest-neighbour sampling; the size stays, and pixels from outside the image are black. The
    result equals Pillow's `Image.rotate`, except where a source position falls on the edge between
    two pixels.

    Args:
      image: [H, W, C].
      degrees: scalar angle.

    Returns:
      [H, W, C], of the image's dtype.
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
    """Rotates each image by its own random angle, uniform in ±max_degrees.

    Args:
      images: [B, H, W, C] or, with tiles, [B, T, H, W, C]; tiles of an image turn alike.
      key: random key of the training step.
      positions: int [B], index of each image in the global batch. An angle depends on the key and
        this index only, not on how the batch is divided among devices.
      max_degrees: largest angle; 0 returns the images unchanged.

    Returns:
      Images of the same shape and dtype.
    """
    if max_degrees == 0:
        return images
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
    angles = jax.vmap(lambda k: jax.random.uniform(k, minval=-max_degrees, maxval=max_degrees))(
        keys
    )
    rotate_all = rotate if images.ndim == 4 else jax.vmap(rotate, in_axes=(0, None))
    return jax.vmap(rotate_all)(images, angles)
