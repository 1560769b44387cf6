"""Heads: from feature maps to scores of positions, and from these to the score of the image.

An image is a bag of positions (multiple-instance learning, arXiv 2108.00462, section 3.3). A head
defines how a position is scored, how the image's score follows from the position scores, and how
much each position contributes to it. `HEADS` is the table that settings choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from devnet_jax.errors import UserError, lookup


def n_top(n_positions: int, share: float) -> int:
    """Returns K = max(⌊share·P⌋, 1), the number of positions that make up the image's score."""
    return max(int(share * n_positions), 1)


def top_mean(scores: Array, share: float, inside: Array | None = None) -> Array:
    """Returns the mean of the K largest scores of each bag, K = `n_top` of its positions: [B].

    Args:
      scores: floating [B, P].
      share: share of the positions.
      inside: bool [B, P], False for positions in the padding of an image, which do not count;
        `None` if there is no padding.
    """
    k = n_top(scores.shape[-1], share)
    if inside is None:
        return lax.top_k(scores, k)[0].mean(axis=-1)
    # 1e-6: a product that is a whole number must not be rounded down.
    counts = jnp.clip(jnp.floor(inside.sum(axis=-1) * share * (1 + 1e-6)), 1, k)
    return mean_of_largest(jnp.where(inside, scores, -jnp.inf), counts, k)


def mean_of_largest(scores: Array, counts: Array, most: int) -> Array:
    """Returns the mean of the largest scores of each bag: [B].

    Args:
      scores: floating [B, P].
      counts: [B], number of scores to average, at least 1.
      most: largest of these numbers.
    """
    largest, _ = lax.top_k(scores, most)
    counted = jnp.arange(most) < counts[:, None]
    return jnp.where(counted, largest, 0).sum(axis=-1) / counts


def inside_levels(inside: Array, height: int, width: int) -> Array:
    """Grades the positions of a feature map by how much image they have: int32 [B, height, width].

    2 is a position of which at least half is image. In a tile without any, as of a thin strip, 1
    are those with the most; 0 is padding. `are_inside` compares the levels of all tiles.

    Args:
      inside: floating [B, H, W], 1 inside the image and 0 in its padding.
      height: height of the feature map.
      width: its width.
    """
    share = jax.image.resize(inside, (inside.shape[0], height, width), "linear")
    most = share.max(axis=(1, 2), keepdims=True)
    has_most = (most > 0) & (most < 0.5) & (share >= most - 1e-6)
    return jnp.where(share >= 0.5, 2, has_most.astype(jnp.int32))


def are_inside(levels: Array) -> Array:
    """Returns the positions that count: bool [B, …], those of the highest level of each image.

    Args:
      levels: `inside_levels` of the positions of an image, or of all its tiles, [B, …].
    """
    return levels == levels.max(axis=tuple(range(1, levels.ndim)), keepdims=True)


class Head(Protocol):
    """The interface of heads. A head is built from `topk`, a share of the positions in [0, 1]."""

    def __init__(self, topk: float) -> None: ...

    def position_scorer(self) -> nn.Module:
        """Returns the module from features [B, h, w, C] to position scores [B, h, w, 1]."""

    def image_scores(self, maps: Array, inside: Array | None = None) -> Array:
        """Returns image scores [B] of position scores [B, …].

        Args:
          maps: position scores.
          inside: bool [B, …], False for positions in padding, which do not count.
        """

    def contributions(self, maps: Array) -> Array:
        """Returns maps [B, …] in units of the score, larger where it is more anomalous."""


@dataclasses.dataclass(frozen=True)
class TopKHead:
    """The paper's head: a 1×1 convolution, and the mean of the K largest absolute scores.

    K = max(⌊topk·h·w⌋, 1). With topk = 0 the image's score is the mean of all position scores,
    with their signs: the paper's ablation without multiple-instance learning.

    Attributes:
      topk: share of the positions that make up the image's score, in [0, 1].
    """

    topk: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.topk <= 1:
            raise UserError(f"topk is a share of the positions, in [0, 1]; got {self.topk}")

    def position_scorer(self) -> nn.Module:
        """Returns the 1×1 convolution, with PyTorch's default initialisation."""
        # The kernel is drawn from ±1/√C; the bias starts at zero.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Conv(features=1, kernel_size=(1, 1), kernel_init=init)

    def image_scores(self, maps: Array, inside: Array | None = None) -> Array:
        """Returns the mean of the K largest absolute scores, or of all with topk = 0."""
        positions = maps.reshape(maps.shape[0], -1)
        if inside is not None:
            inside = inside.reshape(positions.shape)
        if self.topk == 0:
            return positions.mean(axis=1, where=inside)
        return top_mean(jnp.abs(positions), self.topk, inside)

    def contributions(self, maps: Array) -> Array:
        """Returns absolute scores, or signed ones with topk = 0."""
        return jnp.abs(maps) if self.topk else maps


HEADS: Mapping[str, type[Head]] = {
    "topk": TopKHead,
}


def get_head(name: str, topk: float) -> Head:
    """Builds a head of `HEADS`.

    Raises:
      UserError: if there is no head of that name, or `topk` is out of range.
    """
    return lookup(HEADS, name, "head")(topk)
