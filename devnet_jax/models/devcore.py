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
from devnet_jax.models.heads import are_inside, inside_levels, n_top, top_mean
from devnet_jax.models.memory import nearest, residuals

# Components of an image's score, in the order of `ImageHead`'s mixture.
COMPONENTS = ("local", "fine_distance", "coarse_distance", "fine_direction", "coarse_direction")
LABELLED_PER_IMAGE = 8  # feature vectors kept of each labelled anomaly
UNLIKE = -1  # kind of an image that is like no labelled anomaly
# Least likeness of an image that is named after a labelled kind. Lower, and unknown kinds are named
# after known ones; higher, and known kinds have no name (docs/devcore.md).
NEAR = 0.35
_EPSILON = 1e-6


class Sum(NamedTuple):
    """The sum of feature vectors over positions, and their number; tiles are added to a mean.

    Attributes:
      total: float32 [..., C].
      n: float32 [...].
      level: int32 [...], `inside_levels` of these positions; 2 without padding.
    """

    total: Array
    n: Array
    level: Array

    @classmethod
    def over(cls, maps: Array, levels: Array | None = None) -> Sum:
        """Sums feature maps [B, h, w, C] over their positions, or those inside the image."""
        if levels is None:
            count = jnp.full(maps.shape[:1], maps.shape[1] * maps.shape[2], jnp.float32)
            return cls(maps.sum(axis=(1, 2)), count, jnp.full(maps.shape[:1], 2))
        inside = levels > 0
        return cls(
            maps.sum(axis=(1, 2), where=inside[..., None]),
            inside.sum(axis=(1, 2), dtype=jnp.float32),
            levels.max(axis=(1, 2)),
        )

    def mean(self) -> Array:
        """Returns the mean over the tiles of each image: [B, C] of sums over B × T tiles."""
        inside = are_inside(self.level)
        n = self.n.sum(axis=1, where=inside)
        return self.total.sum(axis=1, where=inside[..., None]) / jnp.maximum(n, 1)[:, None]


class Features(NamedTuple):
    """Frozen features of B images, or tiles.

    Attributes:
      patches: float32 [B, h, w, C], features of the positions: the two stages before the last,
        each smoothed by a 3×3 mean that is zero-padded, the coarser one enlarged, concatenated.
      levels: int32 [B, h, w], `inside_levels`; `None` without padding.
      fine: the patches, summed over the positions.
      coarse: the last stage, summed over its positions.
    """

    patches: Array
    levels: Array | None
    fine: Sum
    coarse: Sum


class Positions(NamedTuple):
    """Scores of the positions of B images, or of B × T tiles, and of these as a whole.

    Attributes:
      scores: float32 [B, h, w] or [B, T, h, w], not standardised.
      kinds: int32 of the same shape, kind of the labelled anomaly that a position is most like;
        `UNLIKE` without labelled anomalies.
      likeness: float32 of the same shape, cosine between their residuals; -1 without labelled
        anomalies.
      levels: int32 of the same shape, `inside_levels`; `None` without padding.
      fine: sum of the patches.
      coarse: sum of the last stage.
    """

    scores: Array
    kinds: Array
    likeness: Array
    levels: Array | None
    fine: Sum
    coarse: Sum


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


class PositionHead(nn.Module):
    """Scores positions by the memory; its parameters are fitted by `devnet_jax.training.devcore`.

    Attributes:
      memory_size: M, number of memory vectors.
      n_labelled: L, number of feature vectors of labelled anomalies.
    """

    memory_size: int
    n_labelled: int

    @nn.compact
    def __call__(self, patches: Array) -> tuple[Array, Array, Array]:
        """Returns scores, kinds and likeness of positions [B, h, w], given patches [B, h, w, C].

        A position is of the kind of the labelled vector whose residual has the largest cosine with
        its own: both lack the same of good parts, or have the same beside them.
        """
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        n_channels = patches.shape[-1]
        memory = self.param("memory", zeros, (self.memory_size, n_channels))
        scale = self.param("scale", ones, ())
        weight = self.param("weight", zeros, (n_channels,))
        direction = self.param("direction", zeros, (n_channels,))
        labelled = self.param("labelled", zeros, (self.n_labelled, n_channels))
        labelled_kinds = self.param("labelled_kinds", _unlike, (self.n_labelled,))

        residual = residuals(patches, memory)
        scores = position_scores(residual / scale, weight, direction)
        with jax.default_matmul_precision("highest"):
            cosines = _unit(residual) @ _unit(labelled - memory[nearest(labelled, memory)]).T
        cosines = jnp.where(labelled_kinds == UNLIKE, -1, cosines)
        likeness = cosines.max(axis=-1)
        is_most = cosines == likeness[..., None]
        return scores, jnp.where(is_most, labelled_kinds, UNLIKE).max(axis=-1), likeness


class ImageHead(nn.Module):
    """Combines the positions of an image, and the image as a whole, into its score.

    Its parameters are fitted by `devnet_jax.training.devcore`.

    Attributes:
      top_positions: share of the positions that make up the local score.
    """

    top_positions: float

    @nn.compact
    def __call__(self, positions: Positions) -> tuple[Array, Array, Array, Array]:
        """Returns scores [B], position scores [B, T, h, w], kinds [B] and likeness [B].

        See `DevCore`.
        """
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        centre = self.param("centre", zeros, ())
        spread = self.param("spread", ones, ())
        mixture = self.param("mixture", zeros, (len(COMPONENTS),))
        bias = self.param("bias", zeros, ())

        flat = (positions.scores.shape[0], -1)
        scores = positions.scores.reshape(flat)
        inside = None
        if positions.levels is not None:
            inside = are_inside(positions.levels.reshape(flat))
        fine_distance, fine_direction = Whole(name="fine")(positions.fine.mean())
        coarse_distance, coarse_direction = Whole(name="coarse")(positions.coarse.mean())
        local = top_mean(scores, self.top_positions, inside)
        components = (local, fine_distance, coarse_distance, fine_direction, coarse_direction)
        maps = (positions.scores - centre) / spread
        image_scores = jnp.stack(components, axis=-1) @ mixture + bias
        kinds, likeness = positions.kinds.reshape(flat), positions.likeness.reshape(flat)
        return image_scores, maps, *self._kinds(scores, kinds, likeness, inside)

    def _kinds(
        self, scores: Array, kinds: Array, likeness: Array, inside: Array | None
    ) -> tuple[Array, Array]:
        """Returns the kind of labelled anomaly that each image is like, and how much it is.

        The top positions vote for their kinds, each with its likeness. The likeness of the image is
        their mean; if that is below `NEAR`, the image is `UNLIKE`.
        """
        if inside is not None:
            scores = jnp.where(inside, scores, -jnp.inf)
        top_scores, top = lax.top_k(scores, n_top(scores.shape[-1], self.top_positions))
        counted = jnp.isfinite(top_scores)
        kind = jnp.take_along_axis(kinds, top, axis=1)
        like = jnp.take_along_axis(likeness, top, axis=1)
        weights = jnp.where(counted, jnp.maximum(like, 0), 0)
        votes = jnp.sum((kind[:, :, None] == kind[:, None, :]) * weights[:, None, :], axis=-1)
        leading = jnp.take_along_axis(kind, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        mean = like.mean(axis=1, where=counted)
        return jnp.where(mean >= NEAR, leading, UNLIKE).astype(jnp.int32), mean


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
        self.position_head = PositionHead(self.memory_size, self.n_labelled)
        self.image_head = ImageHead(self.top_positions)

    def __call__(
        self, images: Array, train: bool = False, inside: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Scores images.

        Args:
          images: [B, H, W, 3], floating, normalised as the backbone expects.
          train: unused, as the backbone is frozen.
          inside: floating [B, H, W], 1 inside the image and 0 in its padding; `None` without
            padding.

        Returns:
          Scores [B]; position scores [B, h, w], of which 0 is the median of the local scores of
          normal training images and 1 their deviation; for each image the index of the labelled
          kind that it is like, int32 [B], or `UNLIKE`; and its likeness to labelled anomalies,
          float32 [B], at most 1: the mean cosine of its top positions.
        """
        tiles = jax.tree.map(lambda leaf: leaf[:, None], self.positions(images, train, inside))
        scores, maps, kinds, likeness = self.image_scores(tiles)
        return scores, maps[:, 0], kinds, likeness

    def positions(
        self, images: Array, train: bool = False, inside: Array | None = None
    ) -> Positions:
        """Scores the positions of images, or of tiles; arguments as for `__call__`."""
        del train
        return self.compare(self.features(images, inside))

    def compare(self, features: Features) -> Positions:
        """Scores the positions of images, or of tiles, by their features."""
        scores, kinds, likeness = self.position_head(features.patches)
        return Positions(scores, kinds, likeness, features.levels, features.fine, features.coarse)

    def image_scores(self, positions: Positions) -> tuple[Array, Array, Array, Array]:
        """Combines the positions of all tiles of an image.

        Args:
          positions: scores of the positions of B × T tiles.

        Returns:
          As `__call__`, but the position scores are [B, T, h, w].
        """
        return self.image_head(positions)

    def features(self, images: Array, inside: Array | None = None) -> Features:
        """Returns the frozen features, to be called as `apply(…, method="features")`."""
        entry = get_backbone(self.backbone)
        stages = self.feature_extractor(images, False, (*entry.patch_stages, entry.last_stage))
        smooth = [_smooth(stages[name].astype(jnp.float32)) for name in entry.patch_stages]
        size = smooth[0].shape[:3]
        enlarged = [jax.image.resize(x, (*size, x.shape[-1]), "linear") for x in smooth]
        patches = jnp.concatenate(enlarged, axis=-1)
        last = stages[entry.last_stage].astype(jnp.float32)
        if inside is None:
            return Features(patches, None, Sum.over(patches), Sum.over(last))
        fine, coarse = (inside_levels(inside, *maps.shape[1:3]) for maps in (patches, last))
        return Features(patches, fine, Sum.over(patches, fine), Sum.over(last, coarse))

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


def _unit(vectors: Array) -> Array:
    """Returns vectors [..., C] divided by their lengths; 0 for a vector of zeros."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), _EPSILON)


def _unlike(key: Any, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, UNLIKE, jnp.int32)
