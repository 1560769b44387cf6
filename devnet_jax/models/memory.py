"""A memory of good parts: feature vectors of normal images, and the nearest of them.

The memory is that of PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): a greedy k-centre
selection among the feature vectors of all positions of the normal training images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax


@functools.partial(jax.jit, static_argnames="n")
def k_centre(vectors: Array, n: int) -> Array:
    """Chooses vectors so that every vector is near a chosen one: the greedy k-centre algorithm.

    It starts with the first vector; each further choice is the vector farthest from all chosen
    ones, the first of them if several are equally far.

    Args:
      vectors: floating [N, C].
      n: number of vectors to choose, at most N.

    Returns:
      Indices of the chosen vectors, int32 [n], in the order of their choice.
    """
    with jax.default_matmul_precision("highest"):
        squares = jnp.sum(vectors * vectors, axis=1)

        def distances_to(i: Array | int) -> Array:
            return squares + squares[i] - 2 * (vectors @ vectors[i])

        def choose(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            nearest_chosen, chosen = state
            farthest = jnp.argmax(nearest_chosen)
            nearest_chosen = jnp.minimum(nearest_chosen, distances_to(farthest))
            return nearest_chosen, chosen.at[step].set(farthest)

        start = (distances_to(0), jnp.zeros(n, jnp.int32))
        return lax.fori_loop(1, n, choose, start)[1]


def nearest(vectors: Array, memory: Array, excluded: Array | None = None) -> Array:
    """Finds the nearest memory vector of each vector.

    Args:
      vectors: floating [..., C].
      memory: floating [M, C].
      excluded: bool, broadcast to [..., M], True for memory vectors that must not be found; `None`
        excludes none.

    Returns:
      Indices into the memory, int32 [...].
    """
    with jax.default_matmul_precision("highest"):
        # |v - m|² without |v|², which is the same for all m.
        distances = jnp.sum(memory * memory, axis=1) - 2 * (vectors @ memory.T)
    if excluded is not None:
        distances = jnp.where(excluded, jnp.inf, distances)
    # The first of the smallest, as jnp.argmin, which takes XLA's CPU backend four times as long.
    smallest = distances.min(axis=-1, keepdims=True)
    numbers = lax.broadcasted_iota(jnp.int32, distances.shape, distances.ndim - 1)
    return jnp.where(distances == smallest, numbers, len(memory) - 1).min(axis=-1)


def residuals(patches: Array, memory: Array, excluded: Array | None = None) -> Array:
    """Returns what each position has that no good part has: the vector minus its nearest.

    Args:
      patches: floating [B, h, w, C], feature vectors of the positions of B images.
      memory: floating [M, C].
      excluded: bool [B, M], memory vectors that an image must not be compared with: those of the
        image itself, so that a training image looks like a new one. `None` excludes none.

    Returns:
      [B, h, w, C].
    """
    masked = None if excluded is None else excluded[:, None]

    def of_row(row: Array) -> Array:
        return row - memory[nearest(row, memory, masked)]

    # Row by row, as all distances of an image take 6 MB; not image by image, because the images may
    # be divided among devices.
    return jnp.moveaxis(lax.map(of_row, jnp.moveaxis(patches, 1, 0)), 0, 1)
