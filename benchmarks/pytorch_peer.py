"""The same method in plain PyTorch, as the reference for speed comparisons.

Parameters have torchvision's names, so that `to_torch_state_dict` fills them.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut: the block of ResNet-18."""

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


def normalise(
    images: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Converts images uint8 [B, S, S, 3] to normalised float32 [B, 3, S, S]."""
    # The permuted tensor has the format channels_last, in which PyTorch would continue to compute.
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    return (images.float() / 255 - MEAN.to(images.device)) / STD.to(images.device)


def build(state: dict[str, object], n_scales: int) -> DeviationNetwork:
    """Builds the network from the arrays of a state dict, in evaluation mode."""
    network = DeviationNetwork(n_scales)
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    counters: Sequence[str] = [name for name in missing if name.endswith("num_batches_tracked")]
    if unexpected or len(counters) != len(missing):
        raise ValueError(f"another network: {missing} are missing, {unexpected} are unknown")
    return network.eval()


class ImageFiles(Dataset):
    """Image files, decoded and resized at each access, and rotated if `rotation` is set."""

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, size: int, rotation: float = 0
    ) -> None:
        self.paths, self.labels, self.size, self.rotation = paths, labels, size, rotation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.paths[i]).convert("RGB")
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.rotation:
            image = image.rotate(random.uniform(-self.rotation, self.rotation))
        return normalise(torch.from_numpy(np.array(image)[None]))[0], self.labels[i]


class BalancedBatches(Sampler[list[int]]):
    """Draws batches of indices, half normal and half anomalous; anomalies have the last indices."""

    def __init__(self, n_normal: int, n_anomaly: int, batch_size: int, n_batches: int) -> None:
        self.n_normal, self.n_anomaly = n_normal, n_anomaly
        self.batch_size, self.n_batches = batch_size, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[list[int]]:
        half = self.batch_size // 2
        for _ in range(self.n_batches):
            normal = torch.randint(self.n_normal, (half,))
            anomalous = self.n_normal + torch.randint(self.n_anomaly, (self.batch_size - half,))
            yield torch.cat([normal, anomalous]).tolist()


def deviation_loss(scores: Tensor, labels: Tensor, margin: float = 5.0) -> Tensor:
    """Returns the mean deviation loss of scores [B] and labels [B], with 5000 prior samples."""
    prior = torch.randn(5000, device=scores.device)
    deviations = (scores - prior.mean()) / prior.std()
    losses = (1 - labels) * deviations.abs() + labels * torch.clamp(margin - deviations, min=0)
    return losses.mean()


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=2e-4, weight_decay=1e-5)


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """Performs one training step on normalised images; returns the loss."""
    loss = deviation_loss(network(images).float(), labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def to_map(gradient: np.ndarray) -> np.ndarray:
    """Converts a gradient [S, S, 3] to the paper's map [S, S] with NumPy and SciPy."""
    summed = np.abs(gradient).sum(axis=-1)
    low, high = summed.min(), np.percentile(summed, 99)
    return ndimage.gaussian_filter(np.clip((summed - low) / (high - low), 0, 1), sigma=4)


def official_explainer(
    network: nn.Module,
    every_weight: bool = True,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: str = "cpu",
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that explains images one at a time, as the official code does.

    The function maps images uint8 [N, S, S, 3] to maps [N, S, S].

    Args:
      network: network in evaluation mode.
      every_weight: True to compute the gradients of the weights as well, as the official code does.
      memory_format: memory format of images and network.
      device: device of the network.
    """

    def explain(images: np.ndarray) -> np.ndarray:
        network.requires_grad_(every_weight)
        maps = []
        for image in images:
            decoded = torch.tensor(image[None], device=device)
            inputs = normalise(decoded, memory_format).requires_grad_()
            network.zero_grad()
            network(inputs).sum().backward()
            assert inputs.grad is not None
            maps.append(to_map(inputs.grad[0].permute(1, 2, 0).cpu().numpy()))
        return np.stack(maps)

    return explain
