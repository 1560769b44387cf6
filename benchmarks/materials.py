"""The input of all sides of a comparison: settings, image files, weights, decoded images."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from devnet_jax.runtime.host_devices import n_cores

OURS, OURS_BFLOAT16 = "ours", "ours_bfloat16"  # our sides, by compute dtype
N_ANOMALY = 10  # labelled anomalies; PyTorch uses the first files of the defect
N_TEST_GOOD, N_DEFECT = 10, 18


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a comparison, equal for all sides.

    Attributes:
      platform: "cpu" or "gpu".
      pixels: height and width of the image files.
      n_normal: number of normal training images.
      image_size: height and width that images are resized to.
      batch_size: training batch size.
      epochs: number of epochs.
      steps_per_epoch: number of steps in an epoch.
      steps_per_round: number of training steps in a round of the part "step".
      score_batch: batch size of scoring.
      n_explained: number of images explained in a round; also our batch size there.
      n_workers: number of PyTorch's processes that load images.
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
    """The temporary folder of a comparison."""

    folder: Path

    @property
    def settings(self) -> Settings:
        return Settings(**json.loads((self.folder / "settings.json").read_text()))

    @property
    def images(self) -> Path:
        """Folder of the image files, in the layout of `configs/folder.py`."""
        return self.folder / "images"

    @property
    def normal_paths(self) -> list[Path]:
        return sorted((self.images / "train" / "good").iterdir())

    @property
    def anomaly_paths(self) -> list[Path]:
        """Paths of the labelled anomalies."""
        return sorted((self.images / "test" / "scratch").iterdir())[:N_ANOMALY]

    @property
    def paths(self) -> list[Path]:
        """Paths of all image files."""
        return sorted(self.images.rglob("*.png"))

    def run(self, side: str) -> Path:
        """Returns the run of one of our sides that scores and explains."""
        return self.folder / f"run-{side}"

    def trained(self, side: str) -> Path:
        """Returns the run that one of our sides trains."""
        return self.folder / f"trained-{side}"

    @property
    def weights(self) -> Path:
        """The weights of all sides under torchvision's names, `.npz`."""
        return self.folder / "weights.npz"

    @property
    def decoded(self) -> Path:
        """All image files decoded, uint8 [N, S, S, 3], `.npy`."""
        return self.folder / "decoded.npy"

    def result(self, task: str, side: str) -> Path:
        """Returns the result of a side in its first round of a task, `.npy`."""
        return self.folder / f"{task}-{side}.npy"


def write_materials(folder: Path, settings: Settings) -> Materials:
    """Writes settings and image files; equal settings give equal pixels."""
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
    """Returns an RGB image of smooth structure and noise, which compresses like a photograph."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 216, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC)
    if scratched:
        ends = [tuple(end) for end in generator.uniform(0.2, 0.8, (2, 2)) * pixels]
        ImageDraw.Draw(smooth).line(ends, fill=(250, 250, 250), width=max(1, pixels // 100))
    noise = generator.standard_normal((pixels, pixels, 3), dtype=np.float32) * 4
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
