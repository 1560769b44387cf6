"""Tests of random rotation, against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.augment import random_rotations, rotate


@pytest.mark.parametrize("size", [(64, 64), (47, 61)])
@pytest.mark.parametrize("degrees", [-180.0, -133.7, -90.0, -12.3, 0.0, 33.3, 90.0, 171.0])
def test_rotate_equals_pillow(size: tuple[int, int], degrees: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))
    actual = np.asarray(jax.jit(rotate)(image, degrees))
    assert actual.dtype == np.uint8
    # The pixels are random: after a shift by one pixel, nearly all of them would differ.
    assert np.mean((actual != expected).any(axis=-1)) < 0.005


def test_angles_depend_on_image_and_step_but_not_on_the_division_of_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    images[:] = images[0]
    key = jax.random.key(5)
    whole = random_rotations(images, key, jnp.arange(4), 180.0)
    halves = [random_rotations(images[i : i + 2], key, jnp.arange(i, i + 2), 180.0) for i in (0, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len({np.asarray(image).tobytes() for image in whole}) == 4
    again = random_rotations(images, jax.random.key(6), jnp.arange(4), 180.0)
    assert not np.array_equal(whole, again)


def test_angles_are_uniform_within_the_limit() -> None:
    # The position of the bright pixels right of the centre gives the angle.
    size = 101
    image = np.zeros((size, size, 1), np.uint8)
    image[50, 88:93] = 255
    n = 400
    images = np.broadcast_to(image, (n, size, size, 1))
    rotated = np.asarray(random_rotations(images, jax.random.key(0), jnp.arange(n), 90.0))
    angles = []
    for image in rotated[..., 0]:
        y, x = np.nonzero(image)
        angles.append(np.degrees(np.arctan2(50 - y.mean(), x.mean() - 50)))
    assert np.min(angles) > -92
    assert np.max(angles) < 92
    assert abs(np.mean(angles)) < 8  # 3 standard errors of the uniform distribution in ±90
    assert 48 < np.std(angles) < 56  # 52 = 180/√12


def test_no_rotation_returns_the_images_unchanged() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert random_rotations(images, jax.random.key(0), jnp.arange(2), 0.0) is images
