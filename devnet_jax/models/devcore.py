"""DevCore: a frozen backbone, a memory of good parts, and a head that the deviation loss learns.

An image is a bag of positions, as in the deviation network. A position is scored by its residual:
its feature vector minus the nearest vector of the memory. Beside the positions, the image as a
whole is compared with the normal images, by the means of its feature maps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from devnet_jax.errors import UserError
from devnet_jax.models.backbones import get_backbone
from devnet_jax.models.memory import residuals

# Components of an image's score, in the order of `MemoryHead`'s weights.
COMPONENTS = ("local", "fine_distance", "coarse_distance", "fine_direction", "coarse_direction")
LABELLED_PER_IMAGE = 8  # feature vectors kept of each labelled anomaly
UNLIKE = -1  # kind of an image that is like no labelled anomaly
_EPSILON = 1e-6


class Features(NamedTuple):
    """Frozen features of B images.

    Attributes:
      patches: float32 [B, h, w, C], features of the positions: the two stages before the last,
        each smoothed by a 3×3 mean that is zero-padded, the coarser one enlarged, concatenated.
      coarse: float32 [B, D], mean of the last stage over its positions.
    """

    patches: Array
    coarse: Array

    @property
    def fine(self) -> Array:
        """float32 [B, C], mean of the patches over the positions."""
        return self.patches.mean(axis=(1, 2))


def position_scores(residual: Array, weight: Array, direction: Array) -> Array:
    """Scores positions by their residuals: the distance to the nearest good patch, reweighted.

    m = √(q + (u·r) / (2·√C)) with q = Σ_c exp(v_c)·r_c² / C. With v = u = 0, m is the distance
    itself, divided by √C: the score of PatchCore.

    Args:
      residual: r, floating [..., C], in units of its root mean square over normal images.
      weight: v, floating [C]: logarithms of the channels' weights.
      direction: u, floating [C].

    Returns:
      [...].
    """
    n_channels = residual.shape[-1]
    square = (jnp.exp(weight) * residual**2).mean(axis=-1)
    along = (residual @ direction) / (2 * np.sqrt(n_channels))
    return jnp.sqrt(jnp.maximum(square + along, _EPSILON))


def top_mean(maps: Array, k: int) -> Array:
    """Returns the mean of the k largest of position scores [..., P]."""
    return lax.top_k(maps, k)[0].mean(axis=-1)


def n_top(n_positions: int, share: float) -> int:
    """Returns K = max(⌊share·P⌋, 1), the number of positions that make up the local score."""
    return max(int(share * n_positions), 1)


class Whole(nn.Module):
    """Compares the mean of a feature map with that of normal images.

    With z the vector, standardised by mean and deviation of the normal images, the results are its
    distance from them, |z·W| / √C with W the whitening of their covariance (Rippel et al., arXiv
    2005.14140), and its component along the learned direction of the labelled anomalies.
    """

    @nn.compact
    def __call__(self, vectors: Array) -> tuple[Array, Array]:
        """Returns distances [B] and components along the direction [B] of vectors [B, C]."""
        n = vectors.shape[-1]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        mean = self.param("mean", zeros, (n,))
        std = self.param("std", ones, (n,))
        whitening = self.param("whitening", zeros, (n, n))
        direction = self.param("direction", zeros, (n,))
        return whole_scores(vectors, mean, std, whitening, direction)


def whole_scores(
    vectors: Array, mean: Array, std: Array, whitening: Array, direction: Array
) -> tuple[Array, Array]:
    """The scores of `Whole` as a pure function."""
    with jax.default_matmul_precision("highest"):
        z = (vectors - mean) / std
        distances = jnp.sqrt(jnp.mean((z @ whitening) ** 2, axis=-1) + _EPSILON)
        return distances, z @ direction


class MemoryHead(nn.Module):
    """Scores frozen features; its parameters are fitted by `devnet_jax.training.devcore`.

    Attributes:
      memory_size: M, number of memory vectors.
      n_labelled: L, number of feature vectors of labelled anomalies.
      top_positions: share of the positions that make up the local score.
    """

    memory_size: int
    n_labelled: int
    top_positions: float

    @nn.compact
    def __call__(self, features: Features) -> tuple[Array, Array, Array]:
        """Returns scores [B], position scores [B, h, w] and kinds [B]; see `DevCore`."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        batch_size, height, width, n_channels = features.patches.shape
        memory = self.param("memory", zeros, (self.memory_size, n_channels))
        scale = self.param("scale", ones, ())
        weight = self.param("weight", zeros, (n_channels,))
        direction = self.param("direction", zeros, (n_channels,))
        centre = self.param("centre", zeros, ())
        spread = self.param("spread", ones, ())
        labelled = self.param("labelled", zeros, (self.n_labelled, n_channels))
        labelled_kinds = self.param("labelled_kinds", _unlike, (self.n_labelled,))
        mixture = self.param("mixture", zeros, (len(COMPONENTS),))
        bias = self.param("bias", zeros, ())

        flat = (batch_size, height * width, n_channels)
        residual = residuals(features.patches, memory).reshape(flat)
        patches = features.patches.reshape(flat)
        positions = position_scores(residual / scale, weight, direction)
        fine_distance, fine_direction = Whole(name="fine")(features.fine)
        coarse_distance, coarse_direction = Whole(name="coarse")(features.coarse)
        local = top_mean(positions, n_top(height * width, self.top_positions))
        components = (local, fine_distance, coarse_distance, fine_direction, coarse_direction)
        scores = jnp.stack(components, axis=-1) @ mixture + bias
        maps = ((positions - centre) / spread).reshape(batch_size, height, width)
        kinds = self._kinds(patches, residual, positions, labelled, labelled_kinds)
        return scores, maps, kinds

    def _kinds(
        self, patches: Array, residual: Array, positions: Array, labelled: Array, kinds: Array
    ) -> Array:
        """Returns the kind of labelled anomaly that each image is like, or `UNLIKE`: int32 [B].

        A top position is like a labelled anomaly if it is nearer to one of its vectors than to the
        memory. An image is like the commonest kind of these positions, if they are at least half of
        its top positions.
        """
        _, top = lax.top_k(positions, n_top(positions.shape[-1], self.top_positions))
        vectors = jnp.take_along_axis(patches, top[..., None], axis=1)
        to_good = jnp.take_along_axis(jnp.sum(residual**2, axis=-1), top, axis=1)
        to_labelled = jnp.sum((vectors[:, :, None] - labelled) ** 2, axis=-1)
        to_labelled = jnp.where(kinds == UNLIKE, jnp.inf, to_labelled)
        is_like = to_labelled.min(axis=-1) < to_good
        kind = jnp.where(is_like, kinds[to_labelled.argmin(axis=-1)], UNLIKE)
        votes = ((kind[:, :, None] == kind[:, None, :]) & is_like[:, :, None]).sum(axis=-1)
        commonest = jnp.take_along_axis(kind, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        return jnp.where(is_like.mean(axis=1) >= 0.5, commonest, UNLIKE).astype(jnp.int32)


class DevCore(nn.Module):
    """Anomaly scores of a frozen backbone, a memory of good parts and a learned head.

    Attributes:
      backbone: key of `BACKBONES`.
      memory_size: number of memory vectors.
      n_labelled: number of feature vectors of labelled anomalies.
      top_positions: share of the positions that make up the local score, in [0, 1].
      dtype: compute dtype of the backbone; the head computes in float32.
      axis_name: device axis over which BatchNorm is synchronised; unused, as nothing is trained.
      folded: True if BatchNorm is folded into the convolutions (`fold_batch_norm`).
    """

    backbone: str = "resnet18"
    memory_size: int = 2000
    n_labelled: int = 1
    top_positions: float = 0.01
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False

    smooths_maps = True  # score maps are smoothed when they are enlarged

    def setup(self) -> None:
        self.feature_extractor = get_backbone(self.backbone).build(
            dtype=self.dtype, axis_name=self.axis_name, folded=self.folded
        )
        self.head = MemoryHead(self.memory_size, self.n_labelled, self.top_positions)

    def __call__(self, images: Array, train: bool = False) -> tuple[Array, Array, Array]:
        """Scores images.

        Args:
          images: [B, H, W, 3], floating, normalised as the backbone expects.
          train: unused, as the backbone is frozen.

        Returns:
          Scores [B]; position scores [B, h, w], of which 0 is the median of the local scores of
          normal training images and 1 their deviation; and for each image the index of the labelled
          kind that it is like, int32 [B], or `UNLIKE`.
        """
        del train
        scores, maps, kinds = self.head(self.features(images))
        return scores, maps, kinds

    def features(self, images: Array) -> Features:
        """Returns the frozen features, to be called as `apply(…, method="features")`."""
        entry = get_backbone(self.backbone)
        stages = self.feature_extractor(images, False, (*entry.patch_stages, entry.last_stage))
        smooth = [_smooth(stages[name].astype(jnp.float32)) for name in entry.patch_stages]
        size = smooth[0].shape[:3]
        enlarged = [jax.image.resize(x, (*size, x.shape[-1]), "linear") for x in smooth]
        coarse = stages[entry.last_stage].astype(jnp.float32).mean(axis=(1, 2))
        return Features(jnp.concatenate(enlarged, axis=-1), coarse)

    @nn.nowrap
    def contributions(self, maps: Array) -> Array:
        """Returns the position scores themselves."""
        return maps


def check_image_size(backbone: str, image_size: int) -> None:
    """Raises `UserError` if images of that size have no position in the last stage."""
    if get_backbone(backbone).feature_size(image_size) < 1:
        raise UserError(f"images of {image_size} pixels are too small for {backbone}")


def _smooth(features: Array) -> Array:
    """Returns the mean over 3×3 positions, zero outside the map: [B, h, w, C].

    So positions at the border have smaller features, and smaller distances from the memory. The
    backbone pads with zeros too, which makes every border unusual: with means over the positions
    that exist, normal images have their highest scores there.

    On a CPU, sums of shifted arrays take half the time of `flax.linen.avg_pool`.
    """
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def _unlike(key: Any, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, UNLIKE, jnp.int32)
