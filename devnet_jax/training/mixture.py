"""The mixture of DevCore's components: how much each of them counts in an image's score."""

from __future__ import annotations

import numpy as np
from scipy import optimize

# Weights without labels, in the order of `COMPONENTS`: chosen by the mean AUROC over the data sets
# and protocols of benchmarks/results/detection.md. The last two need labels.
PRIOR_WEIGHTS = np.array([0.8, 0.4, 0.2, 0.3, 0.3])
_NEEDS_LABELS = np.array([False, False, False, True, True])
_TRUSTED_LABELS = 10  # number of labels from which the learned directions have their full weight
_PULL = 10.0  # penalty of the squared distance from the prior weights, divided by the labels


def fit_mixture(normal: np.ndarray, anomalous: np.ndarray, margin: float) -> np.ndarray:
    """Fits the weights of the components by the deviation loss, near the prior weights.

    The components' scores must be cross-validated: a component that was learned from the images
    that it scores would look better than it is.

    Args:
      normal: float [n, K], standardised scores of normal images by each component.
      anomalous: float [a, K], those of labelled anomalies; may be empty.
      margin: score that anomalies should reach, in standard deviations.

    Returns:
      Weights, float64 [K], none negative.
    """
    count = len(anomalous)
    prior = prior_weights(count)
    if count < 2:  # a single label cannot be left out
        return prior

    def loss(parameters: np.ndarray) -> float:
        weights, shift = parameters[:-1], parameters[-1]
        hinge = np.maximum(0.0, margin - (anomalous @ weights + shift)).mean()
        deviation = np.abs(normal @ weights + shift).mean()
        pull = np.sum((weights - prior) ** 2)
        return float(hinge + deviation + _PULL / count * pull)

    bounds = [(0.0, None)] * len(prior) + [(None, None)]
    result = optimize.minimize(loss, np.append(prior, 0.0), bounds=bounds, method="L-BFGS-B")
    weights: np.ndarray = result.x[:-1]
    return weights if weights.any() else prior


def prior_weights(n_labels: int) -> np.ndarray:
    """Returns the weights before any label is scored, float64 [K]: those of learned components grow
    with the number of labels."""
    trust = min(1.0, n_labels / _TRUSTED_LABELS)
    return PRIOR_WEIGHTS * np.where(_NEEDS_LABELS, trust, 1.0)
