"""The Gaussian prior of normal scores: thresholds and p-values (arXiv 2108.00462, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes long to import


class Prior(NamedTuple):
    """The distribution N(mean, std²) that a loss pulls the scores of normal images towards."""

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, probability: float) -> float:
        """Returns the score that a draw from the prior stays below with this probability."""
        return float(self.mean + self.std * special.ndtri(probability))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Returns upper-tail p-values: the probability of a draw at least as high as each score.

        Args:
          scores: float [N].

        Returns:
          float64 [N] in [0, 1].
        """
        return np.asarray(special.ndtr((self.mean - np.asarray(scores, np.float64)) / self.std))
