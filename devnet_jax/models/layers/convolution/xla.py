"""XLA's convolution in Flax's layout."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [h, w, C, F]; returns [B, H', W', F]."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
