"""The one jitted function from images to scores; training's evaluation, prediction and services
all call it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from devnet_jax.models import DeviationNetwork
from devnet_jax.preprocessing import normalise


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


@functools.partial(jax.jit, static_argnames="model")
def score_images(
    model: DeviationNetwork, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """uint8 images [B, S, S, 3] → scores [B] and maps [B, h, w]."""
    result = model.apply(variables, normalise(images), train=False)
    return cast(tuple[jax.Array, jax.Array], result)
