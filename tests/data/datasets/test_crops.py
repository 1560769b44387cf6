"""Odd files among those that are cut."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.crops import cut


def halves(height: int, width: int) -> list[tuple[slice, slice]]:
    return [(slice(height), slice(width // 2)), (slice(height), slice(width // 2, width))]


@pytest.fixture
def strip(tmp_path: Path) -> Path:
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8)
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    return tmp_path / "strip.png"


@pytest.mark.parametrize("kind", ["transparent ground", "16 bits"])
def test_a_mask_marks_what_is_not_black(strip: Path, tmp_path: Path, kind: str) -> None:
    mask = tmp_path / "mask.png"
    if kind == "16 bits":
        pixels = np.zeros((4, 8), np.uint16)
        pixels[1, 6] = 1
    else:
        pixels = np.zeros((4, 8, 4), np.uint8)
        pixels[1, 6] = 255
    Image.fromarray(pixels).save(mask)
    left, right = cut(strip, (mask,), halves)
    assert left.mask is None
    assert right.mask is not None
    (tmp_path / "part.png").write_bytes(right.mask.make())
    expected = np.zeros((4, 4), np.uint8)
    expected[1, 2] = 255
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "part.png")), expected)


def test_an_image_that_exif_turns_is_cut_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 8×4 in the file, 4×8 as it is seen
    image = Image.fromarray(np.full((4, 8), 100, np.uint8))
    image.save(tmp_path / "turned.jpg", exif=exif)
    sizes = []
    for n, part in enumerate(cut(tmp_path / "turned.jpg", (), halves)):
        (tmp_path / f"{n}.png").write_bytes(part.image.make())
        sizes.append(Image.open(tmp_path / f"{n}.png").size)
    assert sizes == [(2, 8), (2, 8)]
