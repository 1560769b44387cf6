"""ResNet's stem, 7×7 of stride 2: on a CPU it is computed in another way than XLA's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = ((7, 7), (2, 2), ((3, 3), (3, 3)))  # kernel, strides, padding
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, F]."""
    return lax.platform_dependent(x, kernel, cpu=_by_pairs_of_columns, default=_by_xla)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def of_both(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(_by_xla, x, kernel)[1](gradient)

    def of_both_on_a_cpu(
        x: jax.Array, kernel: jax.Array, gradient: jax.Array
    ) -> tuple[jax.Array, ...]:
        _, of_kernel = jax.vjp(lambda kernel: _by_pairs_of_columns(x, kernel), kernel)
        return _input_gradient(x, kernel, gradient), *of_kernel(gradient)

    return lax.platform_dependent(x, kernel, gradient, cpu=of_both_on_a_cpu, default=of_both)


convolve.defvjp(_forward, _backward)


def _by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, strides, padding = WINDOW
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_DIMENSIONS)


def _by_pairs_of_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Two columns of the input as one of twice the channels, which is how they lie in memory.

    XLA has less to gather for each product, and for its gradient. A column of zeros in front of the
    kernel makes it four pairs wide.
    """
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, width % 2), (0, 0)))
    pairs = x.reshape(n, height, (width + 1) // 2, 2 * channels)
    kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(7, 4, 2 * channels, -1)
    return lax.conv_general_dilated(
        pairs, kernel, (2, 1), ((3, 3), (2, 1)), dimension_numbers=_DIMENSIONS
    )


def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of the stem's input by convolutions at the output's resolution.

    A pixel of the input takes part in every second place of the kernel: in the odd ones if its
    row (or column) is even, else in the even ones. So the four kinds of pixels are channels of a
    4×4 convolution, laid out as a picture afterwards. Its four rows, too, become channels of one
    that is 1×4, and are summed where they meet: XLA has a quarter to gather for each product.
    """
    channels, features = kernel.shape[2:]
    n, height, width, _ = gradient.shape
    # One zero in front: row 2q + r - 1 of the kernel belongs to the input's rows of parity r.
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    taps = taps.reshape(4, 2, 4, 2, channels, features)[::-1, :, ::-1]
    taps = taps.transpose(2, 5, 0, 1, 3, 4).reshape(1, 4, features, 4 * 4 * channels)
    rows = lax.conv_general_dilated(
        gradient, taps, (1, 1), ((0, 0), (1, 2)), dimension_numbers=_DIMENSIONS
    )
    rows = rows.reshape(n, height, width, 4, 4 * channels)
    rows = jnp.pad(rows, ((0, 0), (1, 2), (0, 0), (0, 0), (0, 0)))
    parts = functools.reduce(jnp.add, (rows[:, i : i + height, :, i] for i in range(4)))
    picture = parts.reshape(n, height, width, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    picture = picture.reshape(n, 2 * height, 2 * width, channels)
    return picture[:, : x.shape[1], : x.shape[2]]  # an odd size has no last odd row
