"""The deviation network: image pyramid, backbone and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from devnet_jax.errors import UserError
from devnet_jax.models.backbones import get_backbone
from devnet_jax.models.heads import are_inside, get_head, inside_levels


class PositionScores(NamedTuple):
    """Scores of the positions of B images, or of B × T tiles.

    Attributes:
      maps: for each scale, finest first, signed scores [B, h, w] or [B, T, h, w], in float32 at
        least.
      levels: for each scale int32 of the same shape, `inside_levels`; `None` without padding.
    """

    maps: tuple[Array, ...]
    levels: tuple[Array, ...] | None


class DeviationNetwork(nn.Module):
    """End-to-end anomaly scores by multiple-instance learning (arXiv 2108.00462, section 3).

    The head scores every position of the backbone's last feature map and combines the position
    scores into the image's score. With several scales, the same weights are applied to the image at
    1/1, 1/2, 1/4, … of its size, and the scores are averaged.

    Attributes:
      backbone: key of `BACKBONES`.
      n_scales: number of pyramid levels.
      topk: share of the positions that make up the image's score, in [0, 1]; see the head.
      dtype: compute dtype of the features; None promotes from images and parameters. The head
        always computes in float32 at least.
      axis_name: device axis over which BatchNorm is synchronised.
      folded: True if BatchNorm is folded into the convolutions (`fold_batch_norm`); evaluation
        only.
      head: key of `HEADS`.

    Raises:
      UserError: on construction, for an unknown backbone or head, or n_scales or topk out of
        range; when called, for images too small for n_scales.
    """

    backbone: str = "resnet18"
    n_scales: int = 2
    topk: float = 0.1
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False
    head: str = "topk"

    smooths_maps = False  # score maps are enlarged as they are

    def __post_init__(self) -> None:
        get_backbone(self.backbone)
        get_head(self.head, self.topk)
        if self.n_scales < 1:
            raise UserError(f"n_scales must be at least 1, got {self.n_scales}")
        super().__post_init__()

    def setup(self) -> None:
        self.feature_extractor = get_backbone(self.backbone).build(
            dtype=self.dtype, axis_name=self.axis_name, folded=self.folded
        )
        self.score = get_head(self.head, self.topk).position_scorer()

    def __call__(
        self, images: Array, train: bool = False, inside: Array | None = None
    ) -> tuple[Array, Array]:
        """Scores images. In training mode BatchNorm updates `batch_stats`, finest scale first.

        Args:
          images: [B, H, W, 3], floating, normalised as the backbone expects.
          train: True to normalise by batch statistics.
          inside: floating [B, H, W], 1 inside the image and 0 in its padding; `None` without
            padding.

        Returns:
          Scores [B], and signed position scores [B, h, w] of the finest scale; both in float32 at
          least.
        """
        return self.image_scores(self.positions(images, train, inside))

    def positions(
        self, images: Array, train: bool = False, inside: Array | None = None
    ) -> PositionScores:
        """Scores the positions of images, or of tiles; arguments as for `__call__`."""
        check_n_scales(self.backbone, self.n_scales, min(images.shape[1:3]))
        stage = get_backbone(self.backbone).last_stage
        maps, levels = [], []
        for scale in range(self.n_scales):
            features = self.features(downscale(images, 2**scale), (stage,), train)[stage]
            features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
            scores = self.score(features)
            if scores.shape != (*features.shape[:3], 1):
                raise ValueError(f"head {self.head!r} scores {features.shape} as {scores.shape}")
            maps.append(scores[..., 0])
            if inside is not None:
                levels.append(inside_levels(inside, *features.shape[1:3]))
        return PositionScores(tuple(maps), None if inside is None else tuple(levels))

    @nn.nowrap
    def image_scores(self, positions: PositionScores) -> tuple[Array, Array]:
        """Combines the scores of all positions of an image, or of all its tiles.

        Returns:
          Scores [B], and `positions.maps` of the finest scale.
        """
        head = get_head(self.head, self.topk)
        inside: list[Array | None] = [None] * self.n_scales
        if positions.levels is not None:
            inside = [are_inside(levels) for levels in positions.levels]
        scores = [head.image_scores(*scale) for scale in zip(positions.maps, inside, strict=True)]
        return jnp.stack(scores).mean(axis=0), positions.maps[0]

    def features(
        self, images: Array, stages: Sequence[str], train: bool = False
    ) -> dict[str, Array]:
        """Returns feature maps of one scale, to be called as `apply(…, method="features")`.

        Args:
          images: [B, H, W, 3], floating, normalised as the backbone expects.
          stages: keys of the backbone's `stages`. Layers after the last of them are not computed.
          train: True to normalise by batch statistics.

        Returns:
          {stage: [B, h, w, C]} in the compute dtype.

        Raises:
          UserError: if the backbone has no such stage.
        """
        known = get_backbone(self.backbone).stages
        if unknown := [stage for stage in stages if stage not in known]:
            raise UserError(
                f"{self.backbone} has no stage {unknown[0]!r}; it has {', '.join(known)}"
            )
        return self.feature_extractor(images, train, tuple(stages))

    @nn.nowrap
    def contributions(self, maps: Array) -> Array:
        """Returns what each position adds to the image's score; see `Head.contributions`."""
        return get_head(self.head, self.topk).contributions(maps)


def downscale(images: Array, factor: int) -> Array:
    """Returns images [B, H, W, C] at ⌊H/factor⌋ × ⌊W/factor⌋ by nearest neighbour.

    Output index i takes input index ⌊i·in/out⌋, as PyTorch's `interpolate` does.
    """
    if factor == 1:
        return images
    rows, columns = (np.arange(n // factor) * n // (n // factor) for n in images.shape[1:3])
    return images[:, rows][:, :, columns]


def max_n_scales(backbone: str, image_size: int) -> int:
    """Returns the number of pyramid levels whose feature maps have at least one position."""
    n = 0
    while get_backbone(backbone).feature_size(image_size // 2**n) > 0:
        n += 1
    return n


def check_n_scales(backbone: str, n_scales: int, image_size: int) -> None:
    """Raises `UserError` if images of that size are too small for `n_scales` levels."""
    largest = max_n_scales(backbone, image_size)
    if largest == 0:
        raise UserError(f"images of {image_size} pixels are too small for {backbone}")
    if n_scales > largest:
        raise UserError(
            f"n_scales={n_scales} is too large for {backbone} and images of {image_size} pixels: "
            f"use at most {largest}"
        )
