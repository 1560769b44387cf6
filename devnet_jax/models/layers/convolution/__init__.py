"""Convolution that is quick on a CPU, too: `nn.Conv`'s `conv_general_dilated`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from devnet_jax.models.layers.convolution import positions, stem, winograd


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    trained: bool = True,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, the same up to rounding: the smallest outputs are computed in
    another way, and on a CPU so are ResNet's 3×3 convolutions and its stem.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, F].
      window_strides: for height and width.
      padding: before and after, for height and width.
      trained: whether the kernel is being trained, which wants smaller rounding errors.
      **options: its others, at what `nn.Conv` gives where not told otherwise.
    """
    window = kernel.shape[:2], tuple(window_strides), tuple(map(tuple, padding))
    if window == stem.WINDOW:
        return stem.convolve(x, kernel)
    if window == winograd.WINDOW and winograd.pays(x, kernel):
        return winograd.convolve(x, kernel, trained)
    outputs = positions.output_shape(x, kernel, window_strides, padding)
    if max(outputs) <= positions.SMALL and max(kernel.shape[:2]) > 1:
        return positions.convolve(x, kernel, outputs, window_strides, padding)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
