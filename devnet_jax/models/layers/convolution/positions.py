"""Convolutions with the smallest outputs, as one matrix product for each position."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Largest height and width of outputs that are computed position by position. If the kernel is
# larger than the map, such as 3×3 on 2×2, XLA's CPU convolutions take up to 43 times as long.
MAX_OUTPUT_SIZE = 2


def output_shape(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[int]:
    """Returns height and width of the output of a convolution."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    return [(size + sum(pads) - window) // s + 1 for size, window, s, pads in sizes]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    outputs: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [h, w, C, F]; returns [B, *outputs, F].

    Each position is a matrix product of the part of the kernel that overlaps the input there.

    Args:
      x: input.
      kernel: kernel.
      outputs: height and width of the output (`output_shape`).
      strides: strides along height and width.
      padding: padding before and after, for height and width.
    """

    def windows(axis: int) -> list[tuple[slice, slice]]:
        """Returns the overlapping slices of input and kernel for each position along an axis."""
        size, window = x.shape[1 + axis], kernel.shape[axis]
        firsts = [i * strides[axis] - padding[axis][0] for i in range(outputs[axis])]
        spans = [(first, max(first, 0), min(first + window, size)) for first in firsts]
        return [(slice(a, b), slice(a - first, b - first)) for first, a, b in spans]

    rows = [
        [
            jnp.tensordot(x[:, rows_x, columns_x], kernel[rows_k, columns_k], axes=3)
            for columns_x, columns_k in windows(axis=1)
        ]
        for rows_x, rows_k in windows(axis=0)
    ]
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1)
