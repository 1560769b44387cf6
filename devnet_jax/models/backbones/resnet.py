"""ResNet feature extractors, numerically torchvision's.

The residual networks of He et al. (arXiv 1512.03385), cut before their pooling. Module names
are torchvision's with the indices joined by an underscore: `layer1.0.conv1` is
`layer1_0/conv1`. As in torchvision, a bottleneck strides in its 3×3 convolution, and padding
is symmetric: SAME would shift strided windows by a pixel against pretrained weights.
"""

from collections.abc import Callable, Sequence
from functools import partial

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from devnet_jax.models.layers.batch_norm import BatchNorm
from devnet_jax.models.layers.convolution import convolve
from devnet_jax.models.layers.pooling import max_pool

# (kernel, stride, padding) of the windows that shrink an image: the stem, its pooling, and
# the first block of layers 2, 3 and 4.
WINDOWS = ((7, 2, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1))


class _Layers(nn.Module):
    """What blocks and network share: a convolution and a BatchNorm with torchvision's defaults."""

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
      folded: whether BatchNorm is in the convolutions (`fold_batch_norm`), for evaluation only.
    """

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    stage_sizes: Sequence[int] = (2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Features [B, h, w, C] of images [B, H, W, 3]; h and w are about H/32 and W/32."""
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
        return x


ResNet18 = partial(ResNet, block=BasicBlock, stage_sizes=(2, 2, 2, 2))
ResNet34 = partial(ResNet, block=BasicBlock, stage_sizes=(3, 4, 6, 3))
ResNet50 = partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3))
