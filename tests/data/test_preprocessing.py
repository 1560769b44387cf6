"""Tests of normalisation, against torchvision's published constants."""

import numpy as np

from devnet_jax.data.preprocessing import normalise


def test_normalise_equals_torchvision() -> None:
    image = np.array([[[0, 128, 255]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(normalise(image)[0, 0], expected, rtol=1e-6)
