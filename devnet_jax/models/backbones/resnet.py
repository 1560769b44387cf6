"""ResNet feature extractors with torchvision's numerics (He et al., arXiv 1512.03385).

The networks end before the average pooling. Module names are torchvision's, with indices joined by
an underscore: `layer1.0.conv1` is `layer1_0/conv1`. As in torchvision, a bottleneck strides in its
3×3 convolution, and padding is symmetric; SAME padding would shift strided windows by a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from devnet_jax.models.backbones.spec import Backbone
from devnet_jax.models.layers.batch_norm import BatchNorm
from devnet_jax.models.layers.convolution import convolve
from devnet_jax.models.layers.pooling import max_pool

# The stem and its pooling; then the first block of layers 2, 3 and 4 halves the size.
_STEM = ((7, 2, 3), (3, 2, 1))
_STAGES = {f"layer{n}": (*_STEM, *[(3, 2, 1)] * (n - 1)) for n in (1, 2, 3, 4)}


class _Layers(nn.Module):
    """Base of blocks and network: convolution and BatchNorm with torchvision's defaults."""

    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False

    def conv(self, name: str, features: int, kernel: int, stride: int = 1) -> nn.Conv:
        return nn.Conv(
            features,
            kernel_size=(kernel, kernel),
            strides=(stride, stride),
            padding=kernel // 2,
            use_bias=self.folded,
            dtype=self.dtype,
            conv_general_dilated=partial(convolve, trained=not self.folded),
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name=name,
        )

    def norm(self, name: str) -> Callable[[Array, bool], Array]:
        if self.folded:
            return lambda x, train: x
        return BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name=name)


class BasicBlock(_Layers):
    """Two 3×3 convolutions around a shortcut: the block of ResNet-18 and ResNet-34."""

    features: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.conv("conv1", self.features, 3, self.stride)(x)
        y = nn.relu(self.norm("bn1")(y, train))
        y = self.conv("conv2", self.features, 3)(y)
        y = self.norm("bn2")(y, train)
        if x.shape != y.shape:
            x = self.conv("downsample_0", self.features, 1, self.stride)(x)
            x = self.norm("downsample_1")(x, train)
        return nn.relu(x + y)


class Bottleneck(_Layers):
    """1×1, 3×3 and 1×1 convolutions around a shortcut: the block of ResNet-50."""

    features: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.conv("conv1", self.features, 1)(x)
        y = nn.relu(self.norm("bn1")(y, train))
        y = self.conv("conv2", self.features, 3, self.stride)(y)
        y = nn.relu(self.norm("bn2")(y, train))
        y = self.conv("conv3", 4 * self.features, 1)(y)
        y = self.norm("bn3")(y, train)
        if x.shape != y.shape:
            x = self.conv("downsample_0", 4 * self.features, 1, self.stride)(x)
            x = self.norm("downsample_1")(x, train)
        return nn.relu(x + y)


class ResNet(_Layers):
    """A ResNet without its pooling and classifier.

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      stage_sizes: number of blocks in each of the four layers.
      dtype: compute dtype; None promotes from the input and the parameters.
      axis_name: device axis over which BatchNorm is synchronised.
      folded: True if BatchNorm is folded into the convolutions (`fold_batch_norm`); evaluation
        only.
    """

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    stage_sizes: Sequence[int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(
        self, x: Array, train: bool, stages: Sequence[str] = ("layer4",)
    ) -> dict[str, Array]:
        """Returns features [B, h, w, C] of images [B, H, W, 3] by stage.

        Args:
          x: images, normalised.
          train: True to normalise by batch statistics and to update the running ones.
          stages: "layer1" to "layer4", of 1/4, 1/8, 1/16 and 1/32 of the image size. Layers after
            the last of them are not computed.
        """
        features: dict[str, Array] = {}
        x = self.conv("conv1", 64, 7, 2)(x)
        x = nn.relu(self.norm("bn1")(x, train))
        x = max_pool(x, 3, 2, 1)
        for stage, n_blocks in enumerate(self.stage_sizes):
            for i in range(n_blocks):
                x = self.block(
                    features=64 * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    folded=self.folded,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            name = f"layer{stage + 1}"
            if name in stages:
                features[name] = x
            if len(features) == len(stages):
                break
        return features


def _convolution_before(norm: str) -> str:
    """Returns the convolution before a BatchNorm: conv1 for bn1."""
    return "downsample_0" if norm == "downsample_1" else norm.replace("bn", "conv")


def _backbone(
    name: str, block: type[BasicBlock] | type[Bottleneck], stage_sizes: Sequence[int]
) -> Backbone:
    return Backbone(
        build=partial(ResNet, block=block, stage_sizes=stage_sizes),
        stages=_STAGES,
        imagenet=f"timm/{name}.tv_in1k",
        convolution_before=_convolution_before,
    )


BACKBONES = {
    "resnet18": _backbone("resnet18", BasicBlock, (2, 2, 2, 2)),
    "resnet34": _backbone("resnet34", BasicBlock, (3, 4, 6, 3)),
    "resnet50": _backbone("resnet50", Bottleneck, (3, 4, 6, 3)),
}
