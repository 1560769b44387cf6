"""Max-pooling that is quick on a CPU, too."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """The largest value in each window.

    Its gradient goes to the first of a window's largest values, row by row. On a CPU XLA's own
    takes twice as long, and its gradient, which is the same, four times; elsewhere they are used.

    Args:
      x: [B, H, W, C], floating.
      window: height and width of a window.
      stride: from one window to the next, either way.
      padding: rows and columns of -∞ on each side.

    Returns:
      [B, h, w, C], h = ⌊(H + 2·padding - window) / stride⌋ + 1, and w alike.
    """

    def by_shifts(x: jax.Array) -> jax.Array:
        places = _places(_padded(x, padding), window, stride)
        return functools.reduce(jnp.maximum, (place for _, _, place in places))

    by_xla = functools.partial(_by_xla, window=window, stride=stride, padding=padding)
    return lax.platform_dependent(x, cpu=by_shifts, default=by_xla)


def _by_xla(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    return nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding, padding),) * 2)


def _padded(x: jax.Array, padding: int) -> jax.Array:
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(x, sides, constant_values=-jnp.inf)


def _places(x: jax.Array, window: int, stride: int) -> Iterator[tuple[int, int, jax.Array]]:
    """Row and column of each place in a window, row by row, and what all windows have there."""
    # From the first window's place to the last one's.
    rows, columns = ((n - window) // stride * stride + 1 for n in x.shape[1:3])
    for i in range(window):
        for j in range(window):
            yield i, j, x[:, i : i + rows : stride, j : j + columns : stride]


def _forward(
    x: jax.Array, window: int, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = max_pool(x, window, stride, padding)
    return largest, (x, largest)


def _backward(
    window: int,
    stride: int,
    padding: int,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    def by_xla(x: jax.Array, largest: jax.Array, gradient: jax.Array) -> jax.Array:
        pool = functools.partial(_by_xla, window=window, stride=stride, padding=padding)
        return jax.vjp(pool, x)[1](gradient)[0]

    def by_shifts(x: jax.Array, largest: jax.Array, gradient: jax.Array) -> jax.Array:
        """All windows at once, one place in the window after the other: vectorised throughout."""
        padded = _padded(x, padding)
        total = jnp.zeros_like(padded)
        given = jnp.zeros(largest.shape, bool)
        for i, j, place in _places(padded, window, stride):
            chosen = (place == largest) & ~given
            given |= chosen
            rows, columns = (stride * (n - 1) + 1 for n in place.shape[1:3])
            below, right = padded.shape[1] - rows - i, padded.shape[2] - columns - j
            total += lax.pad(
                jnp.where(chosen, gradient, 0),
                jnp.zeros((), x.dtype),
                ((0, 0, 0), (i, below, stride - 1), (j, right, stride - 1), (0, 0, 0)),
            )
        return total[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]

    return (lax.platform_dependent(*residuals, gradient, cpu=by_shifts, default=by_xla),)


max_pool.defvjp(_forward, _backward)
