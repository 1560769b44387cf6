"""Simulated scores of normal images."""

from __future__ import annotations

import numpy as np

DISTRIBUTIONS = ("normal", "heavy-tailed", "with ties")


def draw_scores(rng: np.random.Generator, n: int, distribution: str) -> np.ndarray:
    """Returns scores float32 [n] of one of the `DISTRIBUTIONS`."""
    if distribution == "heavy-tailed":
        return rng.standard_cauchy(n).astype(np.float32)
    scores = rng.normal(size=n).astype(np.float32)
    return np.round(scores, 1) if distribution == "with ties" else scores
