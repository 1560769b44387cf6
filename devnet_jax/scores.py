"""What scoring gives: numbers and maps, whoever computes them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """Scores float32 [N] of images, and the score maps float32 [N, h, w] of the finest level."""

    scores: np.ndarray
    maps: np.ndarray


def as_written(scores: np.ndarray) -> np.ndarray:
    """float32 scores [N] as float64: the numbers that their shortest texts are.

    Tables hold those texts. Compared with a threshold, they decide as these numbers do; the float32
    itself, a billionth aside, might not.
    """
    return np.array([float(str(score)) for score in scores])
