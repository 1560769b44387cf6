"""Winograd's algorithm for 3×3 convolutions on CPUs, with half the multiplications.

It is F(4, 3) of Lavin and Gray (arXiv 1509.09308) along the height, for four rows of the output at
a time. Six linear combinations of six input rows are convolved along the width with six linear
combinations of the kernel's three rows; four linear combinations of the results are the output. The
gradient of the kernel uses the same algorithm: three linear combinations of six products.

The coefficients follow from the interpolation points 0, 1, -1, 1/2, -2 and infinity. Rounding
errors are about twice those of the plain convolution (2.4 times with the point 2 for 1/2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from devnet_jax.models.layers.convolution import xla

WINDOW = ((3, 3), (1, 1), ((1, 1), (1, 1)))  # kernel, strides, padding
TILE = 4  # rows of the output that are computed together
# Limits below which XLA's convolution is used. With fewer channels, transforming the input takes as
# long as the algorithm saves; with fewer positions, transforming the kernel does. With fewer
# multiplications, compilation costs more time than the algorithm ever saves.
MIN_CHANNELS = 64
# Limit for outputs and the input's gradient in training, whose rounding errors propagate to other
# layers. With 64 channels, the stem's gradient in float32 had an error of 3e-4 of its largest value
# and a step was no faster.
MIN_CHANNELS_TRAINED = 128
MIN_POSITIONS = 384  # of a batch, or of an image if the batch size is symbolic
MIN_MULTIPLICATIONS = 10_000_000  # for each element of the 3×3 window

_Matrix = Sequence[Sequence[float]]
_INPUT_TRANSFORM: _Matrix = (
    (2, -3, -4, 3, 2, 0),
    (0, -2, 1, 5, 2, 0),
    (0, -2, 5, -1, -2, 0),
    (0, 32, 16, -32, -16, 0),
    (0, 1, -2, -1, 2, 0),
    (0, 2, -3, -4, 3, 2),
)
_KERNEL_TRANSFORM: _Matrix = (
    (1 / 2, 0, 0),
    (1 / 6, 1 / 6, 1 / 6),
    (1 / 6, -1 / 6, 1 / 6),
    (1 / 15, 1 / 30, 1 / 60),
    (1 / 30, -1 / 15, 2 / 15),
    (0, 0, 1 / 2),
)
_OUTPUT_TRANSFORM: _Matrix = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)


def is_faster(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns True if the algorithm is faster for x [B, H, W, C], and precise enough."""
    n, height, width, channels = x.shape
    n_images = n if isinstance(n, int) else 1  # symbolic in an exported detector
    positions = n_images * height * width
    return (
        jnp.finfo(x.dtype).bits >= 32
        and channels >= MIN_CHANNELS
        and height >= TILE
        and positions >= MIN_POSITIONS
        and positions * channels * kernel.shape[3] >= MIN_MULTIPLICATIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, trained: bool) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [3, 3, C, F]; returns [B, H, W, F].

    Args:
      x: input.
      kernel: kernel.
      trained: True if the kernel is being trained.
    """
    if not _is_precise_enough(kernel, trained):
        return _by_xla(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_by_winograd, default=_by_xla)


def _is_precise_enough(kernel: jax.Array, trained: bool) -> bool:
    """Returns True if the algorithm may compute outputs and the input's gradient, too."""
    return kernel.shape[2] >= (MIN_CHANNELS_TRAINED if trained else MIN_CHANNELS)


def _forward(
    x: jax.Array, kernel: jax.Array, trained: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, trained), (x, kernel)


def _backward(
    trained: bool, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def input_gradient_by_xla(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _by_xla(x, kernel), x)[1](gradient)[0]

    def kernel_gradient_by_xla(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _by_xla(x, kernel), kernel)[1](gradient)[0]

    operands = x, kernel, gradient
    precise = _is_precise_enough(kernel, trained)
    input_gradient = _input_gradient if precise else input_gradient_by_xla
    return (
        lax.platform_dependent(*operands, cpu=input_gradient, default=input_gradient_by_xla),
        lax.platform_dependent(*operands, cpu=_kernel_gradient, default=kernel_gradient_by_xla),
    )


convolve.defvjp(_forward, _backward)


def _by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, strides, padding = WINDOW
    return xla.convolve(x, kernel, strides, padding)


@jax.jit  # so that layers of the same shape are traced only once; the gradients likewise
def _by_winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inputs = _combine(_INPUT_TRANSFORM, _every_fourth_row(x, before=1, n=6))
    kernels = _combine(_KERNEL_TRANSFORM, list(kernel))
    products = [
        xla.convolve(rows, taps[None], (1, 1), ((0, 0), (1, 1)))
        for rows, taps in zip(inputs, kernels, strict=True)
    ]
    outputs = jnp.stack(_combine(_OUTPUT_TRANSFORM, products), axis=2)  # [B, ⌈H / 4⌉, 4, W, F]
    return lax.collapse(outputs, 1, 3)[:, : x.shape[1]]


@jax.jit
def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """Convolves the output's gradient with the kernel rotated by 180 degrees."""
    channels, features = kernel.shape[2:]
    taps = kernel.reshape(9, channels, features)
    # In a separate loop, because XLA would fuse the rotation with the linear combinations, which
    # would then read memory with strides and take five times as long.
    rotated = lax.map(
        lambda i: lax.dynamic_index_in_dim(taps, i, keepdims=False).T, jnp.arange(9)[::-1]
    )
    return _by_winograd(gradient, rotated.reshape(3, 3, features, channels))


@jax.jit
def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    inputs = _combine(_INPUT_TRANSFORM, _every_fourth_row(x, before=1, n=6))
    outputs = _combine(_transpose(_OUTPUT_TRANSFORM), _every_fourth_row(gradient, before=0, n=4))
    # Sums over all positions, in the memory layout of both factors.
    products = [
        lax.dot_general(
            lax.collapse(input_rows, 0, 3),
            lax.collapse(_shift_columns(output_rows), 0, 3),
            (((0,), (0,)), ((), ())),
        )
        for input_rows, output_rows in zip(inputs, outputs, strict=True)
    ]  # six arrays [C, 3 F]
    rows = jnp.stack(_combine(_transpose(_KERNEL_TRANSFORM), products))
    return rows.reshape(3, channels, 3, features).swapaxes(1, 2)


def _shift_columns(x: jax.Array) -> jax.Array:
    """Returns columns w + 1, w and w - 1 of x [B, H, W, F] side by side at column w.

    These are the output columns that input column w contributes to, through the first, second and
    third column of the kernel. The result is [B, H, W, 3 F].
    """
    width = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, :, i : i + width] for i in (2, 1, 0)], axis=-1)


def _every_fourth_row(x: jax.Array, before: int, n: int) -> list[jax.Array]:
    """Returns rows 0, 4, 8, … of x [B, H, W, C], rows 1, 5, 9, … and so on.

    Args:
      x: input.
      before: number of rows of zeros to add before the first row.
      n: number of results.

    Returns:
      n arrays [B, ⌈H / 4⌉, W, C].
    """
    last = TILE * (-(-x.shape[1] // TILE) - 1)
    after = last + n - before - x.shape[1]
    x = jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0)))
    return [lax.slice_in_dim(x, i, i + last + 1, TILE, axis=1) for i in range(n)]


def _combine(matrix: _Matrix, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns a linear combination of the terms for each row of the matrix."""
    pairs = [[(w, term) for w, term in zip(row, terms, strict=True) if w] for row in matrix]
    return [sum((w * term for w, term in row[1:]), row[0][0] * row[0][1]) for row in pairs]


def _transpose(matrix: _Matrix) -> _Matrix:
    return tuple(zip(*matrix, strict=True))
