"""Tests of the whole-image statistics: distances and directions beside scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from devnet_jax.models.devcore import whole_scores
from devnet_jax.training.whole_image import fit_whole

N_CHANNELS = 12


@pytest.fixture
def normal() -> np.ndarray:
    """Vectors of normal images that vary together, by far the most along one direction."""
    rng = np.random.default_rng(0)
    mixing = np.diag([1.0] * N_CHANNELS)
    mixing[0] = 8.0
    vectors = 5 + rng.normal(size=(60, N_CHANNELS)) @ mixing * rng.uniform(0.1, 2, N_CHANNELS)
    return vectors.astype(np.float32)


def standardise(vectors: np.ndarray, normal: np.ndarray) -> np.ndarray:
    deviations = normal.std(axis=0, dtype=np.float64)
    deviations += 1e-3 * deviations.mean()
    return (vectors - normal.mean(axis=0, dtype=np.float64)) / deviations


def test_the_distance_is_that_of_mahalanobis(normal: np.ndarray) -> None:
    new = normal[:5] + 3
    distances, _ = whole_scores(new, *fit_whole(normal, new[:0]))
    estimator = LedoitWolf().fit(standardise(normal, normal))
    expected = [
        mahalanobis(z, estimator.location_, estimator.precision_) / np.sqrt(N_CHANNELS)
        for z in standardise(new, normal)
    ]
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


class Shrunk(LedoitWolf):
    """The covariance of Ledoit and Wolf, three tenths of it replaced by its mean variance."""

    def fit(self, X: np.ndarray, y: None = None) -> Shrunk:
        super().fit(X)
        variance = np.trace(self.covariance_) / len(self.covariance_)
        self.covariance_ = 0.7 * self.covariance_ + 0.3 * variance * np.eye(len(self.covariance_))
        return self


def test_the_direction_is_that_of_discriminant_analysis(normal: np.ndarray) -> None:
    anomalous = normal[:4] + np.linspace(0, 4, N_CHANNELS, dtype=np.float32)
    direction = fit_whole(normal, anomalous).direction
    # With this prior, the covariance within the classes is that of normal images.
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", priors=[1 - 1e-12, 1e-12], covariance_estimator=Shrunk()
    ).fit(
        standardise(np.concatenate([normal, anomalous]), normal),
        np.arange(len(normal) + len(anomalous)) >= len(normal),
    )
    np.testing.assert_allclose(direction, reference.coef_[0], rtol=1e-3, atol=1e-4)


def test_three_labels_find_a_defect_among_larger_differences_of_good_parts() -> None:
    rng = np.random.default_rng(1)

    def images(n: int, defect: float) -> np.ndarray:
        # All channels vary together, as with the light, and the last one shows the defect.
        light = rng.normal(size=(n, 1))
        vectors = light + 0.3 * rng.normal(size=(n, N_CHANNELS))
        vectors[:, -1] += defect
        return vectors.astype(np.float32)

    normal, anomalous = images(80, 0), images(3, 2)
    tested, labels = np.concatenate([images(200, 0), images(200, 2)]), np.arange(400) >= 200
    _, directions = whole_scores(tested, *fit_whole(normal, anomalous))
    difference = tested @ (anomalous.mean(axis=0) - normal.mean(axis=0))
    assert roc_auc_score(labels, difference) < 0.7
    assert roc_auc_score(labels, directions) > 0.99


def test_copies_of_one_image_are_accepted() -> None:
    normal = np.ones((5, N_CHANNELS), np.float32)
    parameters = fit_whole(normal, normal[:1] + 1)
    assert all(np.isfinite(values).all() for values in parameters)
