"""AlexNet's feature extractor with torchvision's numerics (Krizhevsky, arXiv 1404.5997)."""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from devnet_jax.models.backbones.spec import Backbone
from devnet_jax.models.layers.pooling import max_pool

# torchvision's `features`: index, number of filters (None for max-pooling), and the window's
# kernel, stride and padding. A ReLU follows every convolution.
LAYERS: tuple[tuple[int, int | None, tuple[int, int, int]], ...] = (
    (0, 64, (11, 4, 2)),
    (2, None, (3, 2, 0)),
    (3, 192, (5, 1, 2)),
    (5, None, (3, 2, 0)),
    (6, 384, (3, 1, 1)),
    (8, 256, (3, 1, 1)),
    (10, 256, (3, 1, 1)),
    (12, None, (3, 2, 0)),
)
# A stage ends with each max-pooling.
_STAGES = {
    f"features_{index}": tuple(window for _, _, window in LAYERS[: i + 1])
    for i, (index, features, _) in enumerate(LAYERS)
    if features is None
}


class AlexNet(nn.Module):
    """AlexNet without average pooling and classifier; it has no BatchNorm.

    Attributes:
      dtype: compute dtype; None promotes from the input and the parameters.
      axis_name: unused, as there is nothing to synchronise; every backbone takes it.
      folded: unused, as there is nothing to fold.
    """

    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False

    @nn.compact
    def __call__(
        self, x: Array, train: bool, stages: Sequence[str] = ("features_12",)
    ) -> dict[str, Array]:
        """Returns features [B, h, w, C] of images [B, H, W, 3] by stage.

        Args:
          x: images, normalised.
          train: unused, as no layer behaves differently in training.
          stages: "features_2", "features_5" and "features_12", of about 1/8, 1/16 and 1/32 of the
            image size. Layers after the last of them are not computed.
        """
        del train
        pooled: dict[str, Array] = {}
        for index, features, (kernel, stride, padding) in LAYERS:
            if features is None:
                x = max_pool(x, kernel, stride)
                if f"features_{index}" in stages:
                    pooled[f"features_{index}"] = x
                if len(pooled) == len(stages):
                    break
                continue
            x = nn.Conv(
                features,
                kernel_size=(kernel, kernel),
                strides=(stride, stride),
                padding=padding,
                dtype=self.dtype,
                # PyTorch's default range, ±1/√fan_in; biases start at zero.
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
                name=f"features_{index}",
            )(x)
            x = nn.relu(x)
        return pooled


BACKBONES = {"alexnet": Backbone(build=AlexNet, stages=_STAGES)}
