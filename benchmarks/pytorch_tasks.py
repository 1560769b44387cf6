"""The tasks of a comparison in PyTorch; `comparison.py` runs each task as a program."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytorch_peer
import torch
from in_turn import serve
from materials import Materials
from torch import Tensor, nn
from torch.utils.data import DataLoader


@dataclasses.dataclass(frozen=True)
class Peer:
    """A PyTorch side of a comparison.

    Attributes:
      side: "plain" or "tuned".
      device: "cpu" or "cuda".
    """

    side: str
    device: str

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        return torch.channels_last if self.side == "tuned" else torch.contiguous_format

    def network(self, materials: Materials) -> nn.Module:
        """Returns the network with the weights that all sides share, in evaluation mode."""
        with np.load(materials.weights) as weights:
            return self.tune(pytorch_peer.build(dict(weights), n_scales=2))

    def tune(self, network: nn.Module) -> nn.Module:
        """Moves the network to the device, and tunes it if the side is "tuned"."""
        network = network.to(self.device, memory_format=self.memory_format)
        if self.side == "tuned" and self.device == "cuda":
            in_bfloat16 = torch.autocast(self.device, torch.bfloat16)
            network.forward = in_bfloat16(network.forward)  # type: ignore[method-assign]
            network.compile()
        return network

    def images(self, loaded: Tensor) -> Tensor:
        """Moves images (in `memory_format`) or labels of a DataLoader to the device."""
        memory_format = self.memory_format if loaded.ndim == 4 else torch.preserve_format
        return loaded.to(self.device, non_blocking=True, memory_format=memory_format)


def train(materials: Materials, peer: Peer) -> None:
    """Trains a model on image files; prints a line and saves a checkpoint after each epoch."""
    settings = materials.settings
    normal, anomalous = materials.normal_paths, materials.anomaly_paths
    labels = torch.tensor([0.0] * len(normal) + [1.0] * len(anomalous))
    files = pytorch_peer.ImageFiles(
        [*normal, *anomalous], labels, settings.image_size, rotation=180
    )
    batches = pytorch_peer.BalancedBatches(
        len(normal), len(anomalous), settings.batch_size, settings.steps_per_epoch
    )
    loader = DataLoader(
        files,
        batch_sampler=batches,
        num_workers=settings.n_workers,
        persistent_workers=True,
        pin_memory=peer.side == "tuned" and peer.device == "cuda",
    )
    network = peer.tune(pytorch_peer.DeviationNetwork(n_scales=2))
    optimizer = pytorch_peer.make_optimizer(network)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    for epoch in range(1, settings.epochs + 1):
        losses = [
            pytorch_peer.train_step(network, optimizer, peer.images(images), peer.images(labels))
            for images, labels in loader
        ]
        schedule.step()
        print(f"epoch {epoch}/{settings.epochs}: loss {np.mean(losses):.4f}", flush=True)
        torch.save(
            {"network": network.state_dict(), "optimizer": optimizer.state_dict()},
            materials.folder / f"{peer.side}.pt",
        )


def step(materials: Materials, peer: Peer) -> None:
    """Runs training steps on decoded images, half of them labelled as anomalies.

    The result is the first loss.
    """
    settings = materials.settings
    network = peer.network(materials).train()
    optimizer = pytorch_peer.make_optimizer(network)
    decoded = torch.from_numpy(np.load(materials.decoded)[: settings.batch_size]).to(peer.device)
    labels = (torch.arange(len(decoded)) >= len(decoded) // 2).float().to(peer.device)

    def run_step() -> float:
        images = pytorch_peer.normalise(decoded, peer.memory_format)
        return pytorch_peer.train_step(network, optimizer, images, labels)

    def work() -> np.ndarray:
        return np.array([run_step() for _ in range(settings.steps_per_round)][:1])

    serve(work, materials.result("step", peer.side))


def score(materials: Materials, peer: Peer) -> None:
    """Scores image files."""
    settings = materials.settings
    network = peer.network(materials)
    paths = materials.paths
    files = pytorch_peer.ImageFiles(paths, torch.zeros(len(paths)), settings.image_size)
    loader = DataLoader(files, batch_size=settings.score_batch, num_workers=settings.n_workers)

    @torch.no_grad()
    def work() -> np.ndarray:
        scores = [network(peer.images(images)) for images, _ in loader]
        return torch.cat(scores).float().cpu().numpy()

    serve(work, materials.result("score", peer.side))


def score_decoded(materials: Materials, peer: Peer) -> None:
    """Scores decoded images."""
    network = peer.network(materials)
    batches = torch.from_numpy(np.load(materials.decoded)).split(materials.settings.score_batch)

    @torch.no_grad()
    def work() -> np.ndarray:
        scores = [
            network(pytorch_peer.normalise(images.to(peer.device), peer.memory_format))
            for images in batches
        ]
        return torch.cat(scores).float().cpu().numpy()

    serve(work, materials.result("score_decoded", peer.side))


def explain(materials: Materials, peer: Peer) -> None:
    """Explains decoded images as the official code does."""
    network = peer.network(materials)
    images = np.load(materials.decoded)[: materials.settings.n_explained]
    explain_images = pytorch_peer.official_explainer(
        network, memory_format=peer.memory_format, device=peer.device
    )
    serve(lambda: explain_images(images), materials.result("explain", peer.side))


TASKS = {task.__name__: task for task in (train, step, score, score_decoded, explain)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path, help="folder of the materials")
    parser.add_argument("side", choices=("plain", "tuned"))
    arguments = parser.parse_args()
    materials = Materials(arguments.folder)
    device = {"cpu": "cpu", "gpu": "cuda"}[materials.settings.platform]
    TASKS[arguments.task](materials, Peer(arguments.side, device))


if __name__ == "__main__":
    main()
