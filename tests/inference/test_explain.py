"""Tests of explanation maps; test_golden.py compares the paper's maps with the official code."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from devnet_jax import Detector
from devnet_jax.config import Config, DatasetConfig, EvaluationConfig, ModelConfig
from devnet_jax.data.preprocessing import normalise
from devnet_jax.errors import UserError
from devnet_jax.inference.explain import input_gradients, saliency, smoothgrad_maps
from devnet_jax.inference.overlay import lay_over
from devnet_jax.models.build import make_model, make_variables

CONFIG = Config(
    dataset=DatasetConfig(image_size=32),
    model=ModelConfig(n_scales=1, pretrained="none"),
    evaluation=EvaluationConfig(batch_size=4, smoothgrad_samples=3),
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(CONFIG, make_variables(CONFIG), step=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Six images: two batches of four, the second half empty."""
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(8, 8), (30, 41)]), st.integers(0, 2**32 - 1), st.booleans())
def test_gradients_become_maps_as_in_scipy(shape: tuple[int, int], seed: int, ties: bool) -> None:
    gradients = np.random.default_rng(seed).standard_normal((2, *shape, 3)).astype(np.float32)
    if ties:
        gradients = np.round(gradients)
    expected = []
    for gradient in gradients:
        summed = np.abs(gradient).sum(axis=-1)
        low, high = summed.min(), np.percentile(summed, 99)
        scaled = np.clip((summed - low) / (high - low), 0, 1)
        expected.append(ndimage.gaussian_filter(scaled, sigma=4))
    np.testing.assert_allclose(saliency(gradients), expected, atol=2e-6)


def test_gradients_in_the_padding_do_not_count() -> None:
    gradients = np.random.default_rng(0).standard_normal((2, 30, 41, 3)).astype(np.float32)
    inside = np.zeros((2, 30, 41), np.float32)
    inside[0, 9:20], inside[1, :, 5:33] = 1, 1
    expected = []
    for gradient, part in zip(gradients, inside, strict=True):
        summed = np.abs(gradient).sum(axis=-1)
        low, high = summed[part > 0].min(), np.percentile(summed[part > 0], 99)
        scaled = part * np.clip((summed - low) / (high - low), 0, 1)
        smooth, weight = (ndimage.gaussian_filter(values, sigma=4) for values in (scaled, part))
        expected.append(part * smooth / np.maximum(weight, 1e-6))
    found = saliency(gradients + 1000 * (1 - inside[..., None]), inside)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_where_nothing_moves_the_score_the_map_is_zero() -> None:
    np.testing.assert_array_equal(saliency(np.zeros((1, 16, 16, 3))), np.zeros((1, 16, 16)))


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "score_map"])
def test_a_map_depends_on_its_image_alone(
    detector: Detector, images: np.ndarray, method: str
) -> None:
    together = detector.explain(images, method).maps
    assert together.shape == (6, 32, 32)
    assert together.dtype == np.float32
    alone = np.concatenate([detector.explain(images[i : i + 1], method).maps for i in range(6)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_the_gradient_is_that_of_the_score(detector: Detector, images: np.ndarray) -> None:
    # Changing the hottest pixels of the map changes the score more than changing the coldest.
    (heat,) = detector.explain(images[:1]).maps
    order = np.argsort(heat, axis=None)

    def moved(pixels: np.ndarray) -> float:
        rng = np.random.default_rng(1)
        changed = np.repeat(images[:1], 8, axis=0)
        for copy in changed:
            copy.reshape(-1, 3)[pixels] ^= rng.integers(0, 64, (len(pixels), 3), dtype=np.uint8)
        scores = detector.score(changed).scores - detector.score(images[:1]).scores
        return float(np.sqrt(np.mean(scores**2)))

    assert moved(order[-100:]) > 1.5 * moved(order[:100])


def test_smoothgrad_averages_the_gradients_of_noisy_copies(
    detector: Detector, images: np.ndarray
) -> None:
    model, key = make_model(CONFIG), jax.random.key(3)
    inputs = normalise(jnp.asarray(images[:2]))
    inputs_range = inputs.max(axis=(1, 2, 3)) - inputs.min(axis=(1, 2, 3))
    gradients = []
    for i in range(2):
        noise = 0.2 * jax.random.normal(jax.random.fold_in(key, i), (32, 32, 3))
        noisy = inputs + inputs_range[:, None, None, None] * noise
        gradients.append(input_gradients(model, detector.variables, noisy))
    found = smoothgrad_maps(model, detector.variables, jnp.asarray(images[:2]), key, 2, 0.2)
    np.testing.assert_allclose(found, saliency((gradients[0] + gradients[1]) / 2), atol=1e-4)
    without = smoothgrad_maps(model, detector.variables, jnp.asarray(images[:2]), key, 2, 0.0)
    np.testing.assert_allclose(without, detector.explain(images[:2], "gradient").maps, atol=1e-4)


def test_the_score_map_is_the_heads_at_the_positions(detector: Detector) -> None:
    config = dataclasses.replace(CONFIG, dataset=DatasetConfig(image_size=96))
    detector = Detector(config, detector.variables, step=0)
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    (heat,) = detector.explain(image, "score_map").maps
    (scores,) = detector.score(image).maps
    assert scores.shape == (3, 3)
    # The centre of a position of 32 pixels lies between two pixels.
    middles = np.array([15.5, 47.5, 79.5])
    at_middles = ndimage.map_coordinates(
        heat, np.meshgrid(middles, middles, indexing="ij"), order=1
    )
    np.testing.assert_allclose(at_middles, np.abs(scores), atol=0.03)  # half a pixel away


def test_scores_that_are_averaged_with_their_sign_are_mapped_with_it(
    detector: Detector, images: np.ndarray
) -> None:
    config = dataclasses.replace(CONFIG, model=ModelConfig(n_scales=1, topk=0.0))
    signed = Detector(config, detector.variables, step=0)
    maps, heat = signed.score(images).maps, signed.explain(images, "score_map").maps
    assert maps.min() < 0
    np.testing.assert_allclose(heat.mean(axis=(1, 2)), maps.mean(axis=(1, 2)), rtol=1e-4)


def test_an_unknown_method_is_refused(detector: Detector, images: np.ndarray) -> None:
    with pytest.raises(UserError, match="did you mean gradient"):
        detector.explain(images, "gradent")


def test_an_overlay_leaves_what_is_cold_and_colours_what_is_hot() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = np.array([[1.0, 0.0], [0.0, 0.0]])
    strong, faint = lay_over(image, heat, 1.0), lay_over(image, heat, 0.1)
    assert (strong[1] == 100).all()
    assert (faint[1] == 100).all()
    assert strong[0, 0, 0] > strong[0, 0, 2] + 50  # red
    changes = [np.abs(overlay[0, 0].astype(int) - 100).max() for overlay in (strong, faint)]
    assert changes[0] > 5 * changes[1] > 0


def test_below_the_threshold_an_overlay_is_faint(detector: Detector, images: np.ndarray) -> None:
    threshold = detector.threshold
    assert threshold is not None
    changes = []
    for score in (threshold.value - 0.01, threshold.value):
        overlay = detector.overlay(images[0], score, np.ones((32, 32), np.float32))
        changes.append(np.abs(overlay.astype(int) - images[0]).mean())
    assert changes[1] > 2 * changes[0]
