"""Statistics of whole images for DevCore: of normal ones, and directions to labelled anomalies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

# Inverse strength of the L2 penalty of the logistic regression; standardised vectors.
_REGULARISATION = 0.01


class WholeParameters(NamedTuple):
    """Parameters of `devnet_jax.models.devcore.Whole`.

    Attributes:
      mean: float32 [C].
      std: float32 [C].
      whitening: float32 [C, C].
      direction: float32 [C].
    """

    mean: np.ndarray
    std: np.ndarray
    whitening: np.ndarray
    direction: np.ndarray


def fit_whole(
    normal: np.ndarray, learned_from: np.ndarray, anomalous: np.ndarray
) -> WholeParameters:
    """Fits the statistics of normal images, and the direction to labelled anomalies.

    The covariance is shrunk as by Ledoit and Wolf (2004). The direction is that of a logistic
    regression with balanced classes; it is zero without anomalies.

    Args:
      normal: float [N, C], vectors of normal images, N ≥ 2.
      learned_from: float [n, C], vectors of the normal images that the direction is learned from.
      anomalous: float [a, C], vectors of labelled anomalies; may be empty.
    """
    mean = normal.mean(axis=0, dtype=np.float64)
    std = normal.std(axis=0, dtype=np.float64)
    std += 1e-3 * std.mean() + 1e-12  # some channels are constant on normal images
    covariance = LedoitWolf(assume_centered=True).fit((normal - mean) / std).covariance_
    # With L·Lᵀ the covariance, z·L⁻ᵀ has unit covariance. Copies of one image have none at all.
    ridge = 1e-6 * max(np.trace(covariance) / len(covariance), 1.0)
    factor = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
    whitening = linalg.solve_triangular(factor, np.eye(len(factor)), lower=True).T
    direction = np.zeros(len(mean))
    if len(anomalous):
        vectors = (np.concatenate([learned_from, anomalous]) - mean) / std
        labels = np.arange(len(vectors)) >= len(learned_from)
        regression = LogisticRegression(
            C=_REGULARISATION, class_weight="balanced", max_iter=1000
        ).fit(vectors, labels)
        direction = regression.coef_[0]
    values = (mean, std, whitening, direction)
    return WholeParameters(*(value.astype(np.float32) for value in values))
