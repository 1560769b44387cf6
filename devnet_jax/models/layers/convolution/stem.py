"""ResNet's stem, a 7×7 convolution of stride 2, with a faster algorithm on CPUs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from devnet_jax.models.layers.convolution import xla

WINDOW = ((7, 7), (2, 2), ((3, 3), (3, 3)))  # kernel, strides, padding


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves x [B, H, W, C] with a kernel [7, 7, C, F]; returns [B, ⌈H/2⌉, ⌈W/2⌉, F]."""
    return lax.platform_dependent(x, kernel, cpu=_by_pairs_of_columns, default=_by_xla)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def by_xla(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(_by_xla, x, kernel)[1](gradient)

    def on_cpu(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        _, kernel_vjp = jax.vjp(lambda kernel: _by_pairs_of_columns(x, kernel), kernel)
        return _input_gradient(x, kernel, gradient), *kernel_vjp(gradient)

    return lax.platform_dependent(x, kernel, gradient, cpu=on_cpu, default=by_xla)


convolve.defvjp(_forward, _backward)


def _by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, strides, padding = WINDOW
    return xla.convolve(x, kernel, strides, padding)


def _by_pairs_of_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with pairs of columns as one column of twice the channels.

    Pairs are contiguous in memory, so XLA copies less for each product and for its gradient. A
    column of zeros before the kernel makes it four pairs wide.
    """
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, width % 2), (0, 0)))
    pairs = x.reshape(n, height, (width + 1) // 2, 2 * channels)
    kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(7, 4, 2 * channels, -1)
    return xla.convolve(pairs, kernel, (2, 1), ((3, 3), (2, 1)))


def _input_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """Computes the gradient of the stem's input by convolutions at the output's resolution.

    A pixel of the input meets every second row (column) of the kernel: the odd ones if its row
    (column) is even, else the even ones. The four kinds of pixels are therefore channels of a 4×4
    convolution, which are interleaved afterwards. The four rows of that convolution become channels
    of a 1×4 convolution, shifted and summed afterwards, so XLA copies a quarter for each product.
    """
    channels, features = kernel.shape[2:]
    n, height, width, _ = gradient.shape
    # With one zero row before it, row 2q + r - 1 of the kernel meets the input's rows of parity r.
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    taps = taps.reshape(4, 2, 4, 2, channels, features)[::-1, :, ::-1]
    taps = taps.transpose(2, 5, 0, 1, 3, 4).reshape(1, 4, features, 4 * 4 * channels)
    rows = xla.convolve(gradient, taps, (1, 1), ((0, 0), (1, 2)))
    rows = rows.reshape(n, height, width, 4, 4 * channels)
    rows = jnp.pad(rows, ((0, 0), (1, 2), (0, 0), (0, 0), (0, 0)))
    kinds = functools.reduce(jnp.add, (rows[:, i : i + height, :, i] for i in range(4)))
    result = kinds.reshape(n, height, width, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    result = result.reshape(n, 2 * height, 2 * width, channels)
    return result[:, : x.shape[1], : x.shape[2]]  # odd sizes lack the last odd row or column
