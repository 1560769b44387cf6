"""Tests of the losses against NumPy; test_golden.py compares with the official values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax.losses import (
    binary_cross_entropy,
    deviation_loss,
    deviations,
    focal_loss,
    sample_prior,
)

SCORES = np.array([-3.0, -0.5, 0.0, 0.2, 4.0, 7.0, 30.0], np.float32)
LABELS = np.array([0, 1, 1, 0, 1, 1, 0])
PRIOR = np.random.default_rng(0).normal(0.3, 1.2, 500).astype(np.float32)


def test_prior_sample_has_the_given_moments() -> None:
    sample = sample_prior(jax.random.key(0), 20_000, mean=2.0, std=3.0)
    assert sample.shape == (20_000,)
    assert sample.dtype == jnp.float32
    np.testing.assert_allclose(sample.mean(), 2, atol=0.1)
    np.testing.assert_allclose(sample.std(), 3, atol=0.1)
    np.testing.assert_array_equal(
        sample, sample_prior(jax.random.key(0), 20_000, mean=2.0, std=3.0)
    )


def test_deviations() -> None:
    expected = (SCORES - PRIOR.mean()) / PRIOR.std(ddof=1)
    np.testing.assert_allclose(deviations(SCORES, PRIOR), expected, rtol=1e-5)
    grid = SCORES[:6].reshape(2, 3)
    np.testing.assert_allclose(deviations(grid, PRIOR), expected[:6].reshape(2, 3), rtol=1e-5)


@pytest.mark.parametrize("margin", [5.0, 2.0])
def test_deviation_loss(margin: float) -> None:
    dev = (SCORES - PRIOR.mean()) / PRIOR.std(ddof=1)
    each = [max(0, margin - d) if y else abs(d) for d, y in zip(dev, LABELS, strict=True)]
    loss = deviation_loss(SCORES, LABELS, PRIOR, margin)
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss(gamma: float) -> None:
    p = probability_of_label()
    expected = np.mean(-((1 - p) ** gamma) * np.log(p))
    np.testing.assert_allclose(focal_loss(SCORES, LABELS, gamma), expected, rtol=1e-5)


def test_binary_cross_entropy() -> None:
    expected = np.mean(-np.log(probability_of_label()))
    np.testing.assert_allclose(binary_cross_entropy(SCORES, LABELS), expected, rtol=1e-5)


def probability_of_label() -> np.ndarray:
    signed = np.where(LABELS == 1, SCORES, -SCORES).astype(np.float64)
    return 1 / (1 + np.exp(-signed))


LOSSES: list[Callable[..., jax.Array]] = [
    lambda scores, labels: deviation_loss(scores, labels, PRIOR),
    focal_loss,
    binary_cross_entropy,
]


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scores_give_finite_losses_and_gradients(loss: Callable[..., jax.Array]) -> None:
    scores = jnp.array([-1e4, 1e4, -1e4, 1e4, 0.0])
    value, gradient = jax.value_and_grad(loss)(scores, jnp.array([0, 0, 1, 1, 1]))
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.float32, np.bool_])
def test_labels_of_any_dtype(loss: Callable[..., jax.Array], dtype: type) -> None:
    value = loss(SCORES, LABELS.astype(dtype))
    assert value.shape == ()
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(SCORES, LABELS))


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_and_dtypes_are_checked(loss: Callable[..., jax.Array]) -> None:
    with pytest.raises(ValueError, match=r"\(7,\) and \(7, 1\)"):
        loss(SCORES, LABELS[:, None])
    with pytest.raises(ValueError, match=r"\(3,\)"):
        loss(SCORES[:3], LABELS)
    with pytest.raises(TypeError, match="floating"):
        loss(LABELS, LABELS)


def test_prior_sample_is_checked() -> None:
    for prior in (PRIOR[:1], PRIOR.reshape(2, -1)):
        with pytest.raises(ValueError, match="prior_sample"):
            deviation_loss(SCORES, LABELS, prior)
