"""Convolution that is fast on CPUs and accelerators, for `conv_general_dilated` of `nn.Conv`."""

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
    """Equals `lax.conv_general_dilated` up to rounding, and is faster in some cases.

    Outputs of at most 2×2 positions are computed position by position. On a CPU, ResNet's 3×3
    convolutions and its stem have their own algorithms (`winograd`, `stem`).

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, F].
      window_strides: strides along height and width.
      padding: padding before and after, for height and width.
      trained: True if the kernel is being trained, which needs smaller rounding errors.
      **options: other arguments of `lax.conv_general_dilated`. Dilated and grouped convolutions
        are left to it.
    """
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    if any(d != 1 for d in dilations) or options.get("feature_group_count", 1) != 1:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    window = kernel.shape[:2], tuple(window_strides), tuple(map(tuple, padding))
    if window == stem.WINDOW:
        return stem.convolve(x, kernel)
    if window == winograd.WINDOW and winograd.is_faster(x, kernel):
        return winograd.convolve(x, kernel, trained)
    outputs = positions.output_shape(x, kernel, window_strides, padding)
    if max(outputs) <= positions.MAX_OUTPUT_SIZE and max(kernel.shape[:2]) > 1:
        return positions.convolve(x, kernel, outputs, window_strides, padding)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
