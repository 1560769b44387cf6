"""ResNet's stem, 7×7 of stride 2: on a CPU its gradients are computed in another way than XLA's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = ((7, 7), (2, 2), ((3, 3), (3, 3)))  # kernel, strides, padding
# Of a batch's input, at most, that one weight gradient is computed of: as much as a core's cache
# holds. Of 16 images of 224×224 at once it takes three times as long.
CHUNK_PIXELS = 4 * 224 * 224


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, F]."""
    _, strides, padding = WINDOW
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def of_input(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: convolve.fun(x, kernel), x)[1](gradient)[0]

    def of_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: convolve.fun(x, kernel), kernel)[1](gradient)[0]

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


convolve.defvjp(_forward, _backward)
