"""What all sides of a comparison are given: settings, image files, decoded images."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from devnet_jax.runtime.host_devices import n_cores

OURS, OURS_BFLOAT16 = "ours", "ours_bfloat16"  # our sides, by the type they compute in
N_ANOMALY = 10  # labelled anomalies; the first of the defect's files are the peer's
N_TEST_GOOD, N_DEFECT = 10, 18


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is done, by all sides alike.

    Attributes:
      platform: "cpu" or "gpu".
      pixels: height and width of the image files.
      n_normal: normal images to train with.
      image_size: height and width that images are resized to.
      batch_size: of a training step.
      epochs: of training.
      steps_per_epoch: of training.
      steps_per_round: optimiser steps of one round.
      score_batch: images scored at once.
      n_explained: images explained in one round; also the batch of ours.
      n_workers: processes of the peer that load images.
    """

    platform: str = "cpu"
    pixels: int = 1024
    n_normal: int = 100
    image_size: int = 224
    batch_size: int = 16
    epochs: int = 5
    steps_per_epoch: int = 20
    steps_per_round: int = 3
    score_batch: int = 32
    n_explained: int = 32
    n_workers: int = 2


@dataclasses.dataclass(frozen=True)
class Materials:
    """The folder that one comparison works in, which goes when it is done."""

    folder: Path

    @property
    def settings(self) -> Settings:
        return Settings(**json.loads((self.folder / "settings.json").read_text()))

    @property
    def images(self) -> Path:
        """The image files, laid out as `configs/folder.py` reads them."""
        return self.folder / "images"

    @property
    def normal_paths(self) -> list[Path]:
        return sorted((self.images / "train" / "good").iterdir())

    @property
    def anomaly_paths(self) -> list[Path]:
        """The labelled anomalies."""
        return sorted((self.images / "test" / "scratch").iterdir())[:N_ANOMALY]

    @property
    def paths(self) -> list[Path]:
        """All image files."""
        return sorted(self.images.rglob("*.png"))

    def run(self, side: str) -> Path:
        """A run of that side of ours with a checkpoint, which is scored and explained with."""
        return self.folder / f"run-{side}"

    def trained(self, side: str) -> Path:
        """The run that a side of ours trains."""
        return self.folder / f"trained-{side}"

    @property
    def weights(self) -> Path:
        """The same weights under torchvision's names, `.npz`."""
        return self.folder / "weights.npz"

    @property
    def decoded(self) -> Path:
        """All image files decoded, uint8 [N, S, S, 3], `.npy`."""
        return self.folder / "decoded.npy"

    def result(self, task: str, side: str) -> Path:
        """What a side has found in its first round of a task, `.npy`."""
        return self.folder / f"{task}-{side}.npy"


def write_materials(folder: Path, settings: Settings) -> Materials:
    """Writes the settings and the image files, the same pixels for the same settings."""
    materials = Materials(folder)
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    counts = {
        "train/good": settings.n_normal,
        "test/good": N_TEST_GOOD,
        "test/scratch": N_DEFECT,
    }
    files = []
    for name, count in counts.items():
        (materials.images / name).mkdir(parents=True)
        files += [materials.images / name / f"{i:04}.png" for i in range(count)]

    def write(seed: int) -> None:
        image = photograph(settings.pixels, seed, scratched=files[seed].parent.name == "scratch")
        image.save(files[seed], compress_level=1)

    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(write, range(len(files))))
    return materials


def photograph(pixels: int, seed: int, scratched: bool) -> Image.Image:
    """An RGB image that compresses about as a photograph does: smooth structure, and noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 216, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC)
    if scratched:
        ends = [tuple(end) for end in generator.uniform(0.2, 0.8, (2, 2)) * pixels]
        ImageDraw.Draw(smooth).line(ends, fill=(250, 250, 250), width=max(1, pixels // 100))
    noise = generator.standard_normal((pixels, pixels, 3), dtype=np.float32) * 4
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
