"""Heads: from feature maps to scores of positions, and from these to the score of the image.

An image is a bag of positions (multiple-instance learning, arXiv 2108.00462, section 3.3). A head
defines how a position is scored, how the image's score follows from the position scores, and how
much each position contributes to it. `HEADS` is the table that settings choose from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from devnet_jax.errors import UserError, lookup


class Head(Protocol):
    """The interface of heads. A head is built from `topk`, a share of the positions in [0, 1]."""

    def __init__(self, topk: float) -> None: ...

    def position_scorer(self) -> nn.Module:
        """Returns the module from features [B, h, w, C] to position scores [B, h, w, 1]."""

    def image_scores(self, maps: Array) -> Array:
        """Returns image scores [B] of position scores [B, h, w]."""

    def contributions(self, maps: Array) -> Array:
        """Returns maps [B, h, w] in units of the score, larger where it is more anomalous."""


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

    def image_scores(self, maps: Array) -> Array:
        """Returns the mean of the K largest absolute scores, or of all with topk = 0."""
        positions = maps.reshape(maps.shape[0], -1)
        if self.topk == 0:
            return positions.mean(axis=1)
        k = max(int(self.topk * positions.shape[1]), 1)
        largest, _ = lax.top_k(jnp.abs(positions), k)
        return largest.mean(axis=1)

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
