"""The deviation network: image pyramid, features, a score per position, an image score."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from devnet_jax.errors import UserError, nearest
from devnet_jax.models.backbones import alexnet, resnet


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A feature extractor and what is known of it before it is built.

    Attributes:
      build: makes the module, given `dtype`, `axis_name`, `folded` and `name`.
      windows: (kernel, stride, padding) of its layers that change an image's size, in order.
    """

    build: Callable[..., nn.Module]
    windows: tuple[tuple[int, int, int], ...]


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(resnet.ResNet18, resnet.WINDOWS),
    "resnet34": Backbone(resnet.ResNet34, resnet.WINDOWS),
    "resnet50": Backbone(resnet.ResNet50, resnet.WINDOWS),
    "alexnet": Backbone(alexnet.AlexNet, alexnet.WINDOWS),
}


class DeviationNetwork(nn.Module):
    """End-to-end anomaly scores by multiple-instance learning (arXiv 2108.00462, section 3).

    Every position of the feature map is an instance, scored by a 1×1 convolution. An image's
    score is the mean of its K largest absolute instance scores, K = max(⌊topk·h·w⌋, 1), or,
    with topk = 0, the mean of all of them, signed. With more than one scale the same weights
    see the image at 1/1, 1/2, 1/4, … of its size, and the scores are averaged.

    Attributes:
      backbone: a key of `BACKBONES`.
      n_scales: number of pyramid levels.
      topk: fraction of the positions that make the image score, in [0, 1].
      dtype: compute dtype of the features; None promotes from images and parameters. The
        head is always computed in float32 at least.
      axis_name: device axis over which BatchNorm is synchronised.
      folded: whether BatchNorm is in the convolutions (`fold_batch_norm`), for evaluation only.

    Raises:
      UserError: for an unknown backbone, or n_scales or topk out of range, on construction;
        when called, for images too small for n_scales.
    """

    backbone: str = "resnet18"
    n_scales: int = 2
    topk: float = 0.1
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False

    def __post_init__(self) -> None:
        get_backbone(self.backbone)
        if self.n_scales < 1:
            raise UserError(f"n_scales must be at least 1, got {self.n_scales}")
        if not 0 <= self.topk <= 1:
            raise UserError(f"topk is a fraction of the positions, in [0, 1]; got {self.topk}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, Array]:
        """Scores images; in training mode BatchNorm updates `batch_stats`, finest level first.

        Args:
          images: [B, H, W, 3], normalised as the backbone expects, floating.
          train: whether BatchNorm uses the batch's statistics.

        Returns:
          Scores [B], and the signed instance scores [B, h, w] of the finest level: with
          n_scales = 1 the score is the mean of the K largest of their absolute values. Both
          in float32 at least.
        """
        check_n_scales(self.backbone, self.n_scales, min(images.shape[1:3]))
        feature_extractor = get_backbone(self.backbone).build(
            dtype=self.dtype,
            axis_name=self.axis_name,
            folded=self.folded,
            name="feature_extractor",
        )
        # PyTorch's default range for the kernel, ±1/√C; the bias starts at zero.
        score = nn.Conv(
            features=1,
            kernel_size=(1, 1),
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            name="score",
        )

        maps = []
        for level in range(self.n_scales):
            features = feature_extractor(shrink(images, 2**level), train)
            features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
            maps.append(score(features)[..., 0])
        scores = jnp.stack([bag_scores(m, self.topk) for m in maps])
        return scores.mean(axis=0), maps[0]


def shrink(images: Array, factor: int) -> Array:
    """Images [B, H, W, C] at ⌊H/factor⌋ × ⌊W/factor⌋: nearest neighbour, index ⌊i·in/out⌋."""
    if factor == 1:
        return images
    rows, columns = (np.arange(n // factor) * n // (n // factor) for n in images.shape[1:3])
    return images[:, rows][:, :, columns]


def bag_scores(maps: Array, topk: float) -> Array:
    """Scores [B] of bags of instance scores [B, h, w]; see `DeviationNetwork`."""
    instances = maps.reshape(maps.shape[0], -1)
    if topk == 0:
        return instances.mean(axis=1)
    k = max(int(topk * instances.shape[1]), 1)
    largest, _ = lax.top_k(jnp.abs(instances), k)
    return largest.mean(axis=1)


def get_backbone(name: str) -> Backbone:
    """The registered backbone of that name; UserError names the nearest otherwise."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}: {nearest(name, BACKBONES)}")
    return BACKBONES[name]


def feature_size(backbone: str, image_size: int) -> int:
    """Height (or width) of the feature map of an image that high (wide); 0 if nothing is left."""
    size = image_size
    for kernel, stride, padding in get_backbone(backbone).windows:
        if size < 1:
            return 0
        size = (size + 2 * padding - kernel) // stride + 1
    return max(size, 0)


def max_n_scales(backbone: str, image_size: int) -> int:
    """The number of pyramid levels whose feature maps have at least one position."""
    n = 0
    while feature_size(backbone, image_size // 2**n) > 0:
        n += 1
    return n


def check_n_scales(backbone: str, n_scales: int, image_size: int) -> None:
    """Raises UserError where images of that size are too small for n_scales levels."""
    largest = max_n_scales(backbone, image_size)
    if largest == 0:
        raise UserError(f"images of {image_size} pixels are too small for {backbone}")
    if n_scales > largest:
        raise UserError(
            f"n_scales={n_scales} is too large for {backbone} and images of {image_size} pixels: "
            f"at most {largest} scales leave something to score"
        )
