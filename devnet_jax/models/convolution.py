"""Convolution whose gradients are quick on a CPU, too: `nn.Conv`'s `conv_general_dilated`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STEM = ((7, 7), (2, 2), ((3, 3), (3, 3)))  # kernel, strides, padding of ResNet's first convolution
# Of a batch's input, at most, that one weight gradient of the stem is computed of: as much as a
# core's cache holds. Of 16 images of 224×224 at once it takes three times as long.
CHUNK_PIXELS = 4 * 224 * 224
# Height and width, at most, of an output that is computed position by position. Where the kernel is
# larger than the map, as 3×3 on 2×2, XLA's CPU convolutions take up to sixty times as long.
SMALL = 2


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, the same up to rounding: the smallest outputs are computed in
    another way, and on a CPU so are the gradients of ResNet's stem.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, F].
      window_strides: for height and width.
      padding: before and after, for height and width.
      **options: its others, at what `nn.Conv` gives where not told otherwise.
    """
    if (kernel.shape[:2], tuple(window_strides), tuple(map(tuple, padding))) == STEM:
        return _stem(x, kernel)
    sizes = zip(x.shape[1:3], kernel.shape[:2], window_strides, padding, strict=True)
    outputs = [(size + sum(pads) - window) // s + 1 for size, window, s, pads in sizes]
    if max(outputs) <= SMALL and max(kernel.shape[:2]) > 1:
        return _by_positions(x, kernel, outputs, window_strides, padding)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


def _by_positions(
    x: jax.Array,
    kernel: jax.Array,
    outputs: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Each position of the output as one matrix product, of that part of the kernel which meets the
    input there."""

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


@jax.custom_vjp
def _stem(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, F]."""
    _, strides, padding = STEM
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _stem(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def of_input(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _stem.fun(x, kernel), x)[1](gradient)[0]

    def of_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _stem.fun(x, kernel), kernel)[1](gradient)[0]

    def of_kernel_by_chunks(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        size = max(1, CHUNK_PIXELS // (x.shape[1] * x.shape[2]))
        starts = range(0, len(x), size)
        parts = (of_kernel(x[i : i + size], kernel, gradient[i : i + size]) for i in starts)
        return functools.reduce(jnp.add, parts)

    choose = functools.partial(lax.platform_dependent, x, kernel, gradient)
    # A model that is exported knows no number of images, and no gradient of its parameters is used.
    n_known = isinstance(x.shape[0], int)
    return (
        choose(cpu=_input_gradient, default=of_input),
        choose(cpu=of_kernel_by_chunks if n_known else of_kernel, default=of_kernel),
    )


def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of the stem's input as a convolution at the output's resolution.

    A pixel of the input takes part in every second place of the kernel: in the odd ones if its
    row (or column) is even, else in the even ones. The four kinds of pixels become channels of one
    4×4 convolution, laid out as a picture afterwards.
    """
    channels, features = kernel.shape[2:]
    # One zero in front: row 2q + r - 1 of the kernel belongs to the input's rows of parity r.
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    taps = taps.reshape(4, 2, 4, 2, channels, features)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 5, 1, 3, 4).reshape(4, 4, features, 4 * channels)
    parts = lax.conv_general_dilated(
        gradient, taps, (1, 1), ((1, 2), (1, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    n, height, width, _ = parts.shape
    picture = parts.reshape(n, height, width, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    picture = picture.reshape(n, 2 * height, 2 * width, channels)
    return picture[:, : x.shape[1], : x.shape[2]]  # an odd size has no last odd row


_stem.defvjp(_forward, _backward)
