"""3×3 convolutions with half the multiplications, on a CPU: Winograd's algorithm along the height.

Four rows of the output at a time, F(4, 3) of Lavin and Gray (arXiv 1509.09308): six sums of six
rows of the input are convolved along the width with six sums of the kernel's three rows, and what
comes out is summed to four rows. By the same algorithm, the kernel's gradient is three sums of six
products.

The weights of the sums follow from the points 0, 1, -1, 1/2, -2 and infinity of a polynomial.
Rounding errors are about twice those of the plain convolution (2.4 times with 2 for 1/2).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = ((3, 3), (1, 1), ((1, 1), (1, 1)))  # kernel, strides, padding
TILE = 4  # rows of the output that are computed together
# From where on it pays: channels, positions of a batch (or of an image where their number is not
# known), and multiplications at each of the kernel's places. With fewer channels the sums of the
# input, with fewer positions those of the kernel take as long as what is saved; and of less work,
# compiling takes longer than is ever saved.
LEAST_CHANNELS = 64
# For outputs and the input's gradient in training, whose rounding errors other layers pass on: with
# 64 channels as well, the stem's gradient in float32 was off by 3e-4 of its largest value, and a
# step was no quicker.
LEAST_CHANNELS_TRAINED = 128
LEAST_POSITIONS = 384
LEAST_MULTIPLICATIONS = 10_000_000

_Weights = Sequence[Sequence[float]]
_OF_INPUT: _Weights = (
    (2, -3, -4, 3, 2, 0),
    (0, -2, 1, 5, 2, 0),
    (0, -2, 5, -1, -2, 0),
    (0, 32, 16, -32, -16, 0),
    (0, 1, -2, -1, 2, 0),
    (0, 2, -3, -4, 3, 2),
)
_OF_KERNEL: _Weights = (
    (1 / 2, 0, 0),
    (1 / 6, 1 / 6, 1 / 6),
    (1 / 6, -1 / 6, 1 / 6),
    (1 / 15, 1 / 30, 1 / 60),
    (1 / 30, -1 / 15, 2 / 15),
    (0, 0, 1 / 2),
)
_OF_OUTPUT: _Weights = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)


def pays(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether a 3×3 convolution of [B, H, W, C] is quicker this way, and exact enough."""
    n, height, width, channels = x.shape
    n_images = n if isinstance(n, int) else 1  # a model that is exported knows no number
    positions = n_images * height * width
    return (
        jnp.finfo(x.dtype).bits >= 32
        and channels >= LEAST_CHANNELS
        and height >= TILE
        and positions >= LEAST_POSITIONS
        and positions * channels * kernel.shape[3] >= LEAST_MULTIPLICATIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, trained: bool) -> jax.Array:
    """[B, H, W, C], [3, 3, C, F] → [B, H, W, F]; `trained` says whether the kernel is."""
    if not _is_passed_on(kernel, trained):
        return _by_xla(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_by_sums, default=_by_xla)


def _is_passed_on(kernel: jax.Array, trained: bool) -> bool:
    """Whether outputs and the input's gradient are computed this way, too."""
    return kernel.shape[2] >= (LEAST_CHANNELS_TRAINED if trained else LEAST_CHANNELS)


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
    input_gradient = _input_gradient if _is_passed_on(kernel, trained) else input_gradient_by_xla
    return (
        lax.platform_dependent(*operands, cpu=input_gradient, default=input_gradient_by_xla),
        lax.platform_dependent(*operands, cpu=_kernel_gradient, default=kernel_gradient_by_xla),
    )


convolve.defvjp(_forward, _backward)


def _by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, strides, padding = WINDOW
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.jit  # so that layers of the same shape are traced once; the gradients, too
def _by_sums(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inputs = _sums(_OF_INPUT, _every_fourth_row(x, before=1, n=6))
    kernels = _sums(_OF_KERNEL, list(kernel))
    products = [
        lax.conv_general_dilated(
            rows,
            taps[None],
            (1, 1),
            ((0, 0), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for rows, taps in zip(inputs, kernels, strict=True)
    ]
    outputs = jnp.stack(_sums(_OF_OUTPUT, products), axis=2)  # [B, ⌈H / 4⌉, 4, W, F]
    return lax.collapse(outputs, 1, 3)[:, : x.shape[1]]


@jax.jit
def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The output's gradient convolved with the kernel turned by 180 degrees."""
    channels, features = kernel.shape[2:]
    taps = kernel.reshape(9, channels, features)
    # In a loop of its own, or XLA fuses it with the sums, which then read across the rows and take
    # five times as long.
    turned = lax.map(
        lambda i: lax.dynamic_index_in_dim(taps, i, keepdims=False).T, jnp.arange(9)[::-1]
    )
    return _by_sums(gradient, turned.reshape(3, 3, features, channels))


@jax.jit
def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    inputs = _sums(_OF_INPUT, _every_fourth_row(x, before=1, n=6))
    outputs = _sums(_transposed(_OF_OUTPUT), _every_fourth_row(gradient, before=0, n=4))
    # All positions of one with all of the other, as they lie in memory.
    products = [
        lax.dot_general(
            lax.collapse(of_input, 0, 3),
            lax.collapse(_met_by_three_columns(of_output), 0, 3),
            (((0,), (0,)), ((), ())),
        )
        for of_input, of_output in zip(inputs, outputs, strict=True)
    ]  # six of [C, 3 F]
    rows = jnp.stack(_sums(_transposed(_OF_KERNEL), products))
    return rows.reshape(3, channels, 3, features).swapaxes(1, 2)


def _met_by_three_columns(x: jax.Array) -> jax.Array:
    """[B, H, W, F] → [B, H, W, 3 F]: what a column of the input meets in the kernel's first column,
    which is what was computed one column later, in its second and in its last."""
    width = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, :, i : i + width] for i in (2, 1, 0)], axis=-1)


def _every_fourth_row(x: jax.Array, before: int, n: int) -> list[jax.Array]:
    """Rows 0, 4, 8, … of [B, H, W, C], rows 1, 5, 9, … and so on, n in all, each
    [B, ⌈H / 4⌉, W, C], counted after so many rows of zeros before the first one."""
    last = TILE * (-(-x.shape[1] // TILE) - 1)
    after = last + n - before - x.shape[1]
    x = jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0)))
    return [lax.slice_in_dim(x, i, i + last + 1, TILE, axis=1) for i in range(n)]


def _sums(weights: _Weights, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """A weighted sum of the terms for each row of weights."""
    pairs = [[(w, term) for w, term in zip(row, terms, strict=True) if w] for row in weights]
    return [sum((w * term for w, term in row[1:]), row[0][0] * row[0][1]) for row in pairs]


def _transposed(weights: _Weights) -> _Weights:
    return tuple(zip(*weights, strict=True))
