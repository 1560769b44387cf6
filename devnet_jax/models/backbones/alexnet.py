"""AlexNet's feature extractor, numerically torchvision's (Krizhevsky, arXiv 1404.5997)."""

from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from devnet_jax.models.layers.pooling import max_pool

# torchvision's `features`: its index there, number of filters (None: max-pooling), and the
# window's kernel, stride and padding. A ReLU follows every convolution.
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
WINDOWS = tuple(window for _, _, window in LAYERS)


class AlexNet(nn.Module):
    """AlexNet without its average pooling and classifier; it has no BatchNorm.

    Attributes:
      dtype: compute dtype; None promotes from the input and the parameters.
      axis_name: unused, there is nothing to synchronise; every backbone takes it.
      folded: unused, there is nothing to fold.
    """

    dtype: DTypeLike | None = None
    axis_name: str | None = None
    folded: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Features [B, h, w, 256] of images [B, H, W, 3]; h and w are about H/32 and W/32."""
        del train  # no layer behaves differently
        for index, features, (kernel, stride, padding) in LAYERS:
            if features is None:
                x = max_pool(x, kernel, stride)
                continue
            x = nn.Conv(
                features,
                kernel_size=(kernel, kernel),
                strides=(stride, stride),
                padding=padding,
                dtype=self.dtype,
                # The range of PyTorch's default, ±1/√fan_in; biases start at zero.
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
                name=f"features_{index}",
            )(x)
            x = nn.relu(x)
        return x
