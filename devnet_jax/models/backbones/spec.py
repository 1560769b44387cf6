"""`Backbone`, the entry of a feature extractor in the registry."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from flax import linen as nn

Window = tuple[int, int, int]  # kernel, stride, padding


def dotted_indices(modules: Sequence[str]) -> str:
    """Joins Flax module names to a torchvision name: layer1_0, conv1 → layer1.0.conv1."""
    return ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)


def no_batch_norm(norm: str) -> str:
    """The `convolution_before` of a backbone without BatchNorm; raises `LookupError`."""
    raise LookupError(f"the backbone's entry does not say into which convolution {norm} folds")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A feature extractor and everything that the package knows about it.

    Attributes:
      build: builds the Flax module from `dtype`, `axis_name` and `folded`. The module maps
        (images [B, H, W, 3], train, stages) to {stage: features [B, h, w, C]}; layers
        after the last of these stages need not be computed. Images are normalised by ImageNet's
        statistics; BatchNorm is that of `models.layers.batch_norm`.
      stages: for each feature map that the module can return, from fine to coarse, the windows
        (kernel, stride, padding) that change the image size on the way to it.
      imagenet: repository of torchvision's ImageNet weights on the Hugging Face Hub; `None` if
        there is none.
      torch_module: maps the names of nested Flax modules to torchvision's name.
      convolution_before: maps the name of a BatchNorm to that of the convolution it folds into;
        needed by backbones with BatchNorm.
    """

    build: Callable[..., nn.Module]
    stages: Mapping[str, tuple[Window, ...]]
    imagenet: str | None = None
    torch_module: Callable[[Sequence[str]], str] = dotted_indices
    convolution_before: Callable[[str], str] = no_batch_norm

    @property
    def last_stage(self) -> str:
        """Name of the coarsest feature map."""
        return list(self.stages)[-1]

    @property
    def patch_stages(self) -> tuple[str, ...]:
        """Names of the two feature maps before the coarsest, from fine to coarse."""
        return tuple(self.stages)[-3:-1]

    def feature_size(self, image_size: int, stage: str | None = None) -> int:
        """Returns the height (or width) of a stage's features, 0 if the image is too small.

        Args:
          image_size: height (or width) of the image in pixels.
          stage: key of `stages`; the default is the last one.
        """
        size = image_size
        for kernel, stride, padding in self.stages[stage or self.last_stage]:
            if size < 1:
                return 0
            size = (size + 2 * padding - kernel) // stride + 1
        return max(size, 0)
