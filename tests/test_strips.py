"""A line-scan camera's strips, with defects that vanish when a strip is squeezed to a square."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.conftest import Main

HEIGHT, WIDTH, DEFECT = 1024, 4096, 12


def strip(seed: int, has_defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns a rough grey strip and its mask; the defect is dark on the left, bright on the right.

    So its mean is that of the strip: of 16 pixels in a row that become one, nothing is left.
    """
    rng = np.random.default_rng(seed)
    rough = ndimage.gaussian_filter(rng.standard_normal((HEIGHT, WIDTH), np.float32), 3)
    pixels = 128 + 12 * rng.standard_normal((HEIGHT, WIDTH), np.float32) + 9 / rough.std() * rough
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if has_defect:
        top, left = rng.integers(40, (HEIGHT - 40, WIDTH - 40))
        rows, half = slice(top, top + DEFECT), DEFECT // 2
        pixels[rows, left : left + half] -= 110
        pixels[rows, left + half : left + DEFECT] += 110
        mask[rows, left : left + DEFECT] = 255
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strips")
    seed = 0
    for kind, count in (("train/good", 16), ("test/good", 10), ("test/spot", 14)):
        (folder / kind).mkdir(parents=True)
        (folder / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels, mask = strip(seed, kind == "test/spot")
            seed += 1
            Image.fromarray(pixels).save(folder / kind / f"{i:02}.png", compress_level=1)
            if mask.any():
                Image.fromarray(mask).save(folder / "ground_truth/spot" / f"{i:02}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "lowest", "highest"),
    [
        (("image_size=256",), 0.2, 0.8),
        (("image_size=256x1024",), 0.95, 1),
        (("image_size=256", "tiles=1x4"), 0.95, 1),
    ],
    ids=["square", "rectangle", "tiles"],
)
def test_small_defects_in_long_strips(
    settings: tuple[str, ...],
    lowest: float,
    highest: float,
    strips: Path,
    shared: Path,
    main: Main,
    tmp_path: Path,
) -> None:
    done = main(
        "--config=configs/folder.py",
        f"--config.dataset.manual_dir={strips}",
        f"--config.dataset.data_dir={strips.with_name('prepared')}",
        f"--config.model.pretrained={shared}/weights/resnet18_imagenet.safetensors",
        "--config.dataset.n_anomaly=4",
        *(f"--config.dataset.{setting}" for setting in settings),
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert lowest <= measured["image_auroc"] <= highest
    assert (measured["pixel_auroc_mean"] >= 0.9) == (lowest >= 0.9)
