"""The same network in plain PyTorch, as most would write it: what our speed is compared with.

Parameters have torchvision's names, so that `to_torch_state_dict` fills them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class DeviationNetwork(nn.Module):
    """ResNet-18, image pyramid and top-K head: images [B, 3, S, S] → scores [B]."""

    def __init__(self, n_scales: int = 2, topk: float = 0.1) -> None:
        super().__init__()
        self.n_scales, self.topk = n_scales, topk
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._layer(64, 64, 1)
        self.layer2 = self._layer(64, 128, 2)
        self.layer3 = self._layer(128, 256, 2)
        self.layer4 = self._layer(256, 512, 2)
        self.conv = nn.Conv2d(512, 1, 1)

    @staticmethod
    def _layer(n_in: int, n_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(n_in, n_out, stride), BasicBlock(n_out, n_out, 1))

    def forward(self, images: Tensor) -> Tensor:
        scores = []
        for level in range(self.n_scales):
            x = images
            if level:
                x = F.interpolate(images, size=images.shape[-1] // 2**level, mode="nearest")
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(x)
            instances = self.conv(x).flatten(1).abs()
            k = max(int(self.topk * instances.shape[1]), 1)
            scores.append(instances.topk(k, dim=1).values.mean(dim=1))
        return torch.stack(scores).mean(dim=0)


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S]."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def build(state: dict[str, object], n_scales: int) -> DeviationNetwork:
    """The network with the arrays of a state dict, in evaluation mode."""
    network = DeviationNetwork(n_scales)
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    counters: Sequence[str] = [name for name in missing if name.endswith("num_batches_tracked")]
    if unexpected or len(counters) != len(missing):
        raise ValueError(f"another network: {missing} are missing, {unexpected} are unknown")
    return network.eval()
