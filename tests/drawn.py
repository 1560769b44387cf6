"""Pictures of a part, drawn: a disc on a ground, each with a texture, in a light that varies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIZE = 96


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a texture float64 [height, width] with detail at several scales."""
    result = np.zeros((height, width))
    for scale in (1, 2, 4, 8):
        shape = (width // scale + 1, height // scale + 1)
        grain = Image.fromarray(rng.normal(0, 2 + scale, shape[::-1]).astype(np.float32))
        result += np.asarray(grain.resize((width, height), Image.Resampling.BILINEAR))
    return result


def good(seed: int, *, height: int = SIZE, width: int = SIZE, colour: bool = True) -> np.ndarray:
    """Draws a good picture."""
    rng = np.random.default_rng([1, seed])
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    centre, radius = rng.normal(0.5, 0.01, 2), rng.normal(0.3, 0.005)
    disc = np.hypot(y - centre[0], x - centre[1]) < radius
    light = rng.normal(1, 0.03)
    grey = np.where(disc, 150, 90) * light + texture(rng, height, width)
    tint = np.array([1.1, 1.0, 0.8]) if colour else np.ones(3)
    return np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)


def defective(seed: int) -> np.ndarray:
    """Draws a good picture with a bright or dark blot or a scratch over it."""
    pixels, rng = good(seed).copy(), np.random.default_rng([2, seed])
    value = rng.choice([0, 255])
    if seed % 2:
        top, left = rng.integers(0, SIZE - 24, 2)
        pixels[top : top + 24, left : left + 24] = value
    else:
        row = rng.integers(10, SIZE - 10)
        pixels[row : row + 3] = value
    return pixels


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([3, seed]).integers(0, 256, shape, np.uint8)


def stripes() -> np.ndarray:
    """Draws another part."""
    return np.full((SIZE, SIZE, 3), 90) + 60 * (np.arange(SIZE) // 12 % 2)[:, None, None]


def save_good(folder: Path, seeds: range) -> Path:
    """Writes good pictures to a folder, one a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        Image.fromarray(good(seed)).save(folder / f"{seed:05}.png")
    return folder


def make_drawn(folder: Path) -> None:
    """Makes a folder of drawn parts in the layout of configs/folder.py."""
    save_good(folder / "train" / "good", range(60))
    save_good(folder / "test" / "good", range(100, 105))
    (folder / "test" / "blot").mkdir()
    for seed in range(6):
        Image.fromarray(defective(seed)).save(folder / "test" / "blot" / f"{seed}.png")
