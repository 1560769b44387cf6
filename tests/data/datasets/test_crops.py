"""Tests of cutting unusual images and masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.crops import cut_image


def halves(height: int, width: int) -> list[tuple[slice, slice]]:
    return [(slice(height), slice(width // 2)), (slice(height), slice(width // 2, width))]


@pytest.fixture
def strip(tmp_path: Path) -> Path:
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8)
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    return tmp_path / "strip.png"


@pytest.mark.parametrize("kind", ["transparent background", "16 bits"])
def test_all_mask_pixels_that_are_not_black_are_defect(
    strip: Path, tmp_path: Path, kind: str
) -> None:
    mask = tmp_path / "mask.png"
    if kind == "16 bits":
        pixels = np.zeros((4, 8), np.uint16)
        pixels[1, 6] = 1
    else:
        pixels = np.zeros((4, 8, 4), np.uint8)
        pixels[1, 6] = 255
    Image.fromarray(pixels).save(mask)
    left, right = cut_image(strip, (mask,), halves)
    assert left.mask is None
    assert right.mask is not None
    (tmp_path / "part.png").write_bytes(right.mask.make())
    expected = np.zeros((4, 4), np.uint8)
    expected[1, 2] = 255
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "part.png")), expected)


def test_exif_orientation_is_applied_before_cutting(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90°: stored as 8×4, shown as 4×8
    image = Image.fromarray(np.full((4, 8), 100, np.uint8))
    image.save(tmp_path / "rotated.jpg", exif=exif)
    sizes = []
    for n, part in enumerate(cut_image(tmp_path / "rotated.jpg", (), halves)):
        (tmp_path / f"{n}.png").write_bytes(part.image.make())
        sizes.append(Image.open(tmp_path / f"{n}.png").size)
    assert sizes == [(2, 8), (2, 8)]
