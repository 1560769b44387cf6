"""Convolutions with the smallest outputs: one matrix product for each position."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Height and width, at most, of an output that is computed position by position. Where the kernel is
# larger than the map, as 3×3 on 2×2, XLA's CPU convolutions take up to sixty times as long.
SMALL = 2


def output_shape(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[int]:
    """Height and width of the output of a convolution."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    return [(size + sum(pads) - window) // s + 1 for size, window, s, pads in sizes]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    outputs: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """[B, H, W, C], [h, w, C, F] → [B, *outputs, F]: each position is the matrix product of that
    part of the kernel which meets the input there."""

    def windows(axis: int) -> list[tuple[slice, slice]]:
        """Of the input, and of the kernel, for each position."""
        size, window = x.shape[1 + axis], kernel.shape[axis]
        firsts = [i * strides[axis] - padding[axis][0] for i in range(outputs[axis])]
        spans = [(first, max(first, 0), min(first + window, size)) for first in firsts]
        return [(slice(a, b), slice(a - first, b - first)) for first, a, b in spans]

    rows = [
        [
            jnp.tensordot(x[:, of_x, to_x], kernel[of_k, to_k], axes=3)
            for to_x, to_k in windows(axis=1)
        ]
        for of_x, of_k in windows(axis=0)
    ]
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1)
