"""The pixels of thumbnails, read by Pillow, and the size of their files."""

import io

import numpy as np
import pytest
from PIL import Image

from devnet_jax.report.thumbnails import mask_thumbnail, side_for, thumbnail

NOISE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "WEBP"
        return np.asarray(image.convert("RGB"))


def test_a_thumbnail_keeps_aspect_ratio_and_colours():
    image = np.zeros((120, 240, 3), np.uint8)
    image[:, 120:] = (200, 100, 50)
    small = read(thumbnail(image, 80))
    assert small.shape == (40, 80, 3)
    np.testing.assert_allclose(small[20, 20], 0, atol=8)
    np.testing.assert_allclose(small[20, 60], (200, 100, 50), atol=8)


def test_a_small_picture_is_not_enlarged():
    assert read(thumbnail(np.zeros((5, 3, 3), np.uint8), 80)).shape == (5, 3, 3)


def test_a_defect_of_one_pixel_stays_visible():
    mask = np.zeros((448, 448), bool)
    mask[100, 200] = True
    small = read(mask_thumbnail(mask, 128))
    assert small.shape == (128, 128, 3)
    assert (small == 255).any(axis=-1).sum() <= 4
    assert small[28, 57].tolist() == [255, 255, 255]  # 100 · 128 / 448 = 28.6, 200 · … = 57.1
    assert not read(mask_thumbnail(np.zeros((448, 448), bool), 128)).any()


@pytest.mark.parametrize("n", [1, 300, 2000, 10_000])
def test_thumbnails_of_2000_noise_images_fit_a_page_of_20_mb(n):
    side = side_for(n)
    assert side >= 128
    image = NOISE[:side, :side]
    total = 2 * len(thumbnail(image, side)) + len(mask_thumbnail(image[..., 0] > 127, side))
    assert min(n, 2000) * total * 4 / 3 < 16e6


def test_fewer_pictures_have_larger_thumbnails():
    assert side_for(100) > side_for(1000) > side_for(2000) == side_for(5000)
