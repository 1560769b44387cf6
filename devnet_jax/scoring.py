"""The one jitted function from images to scores; training's evaluation, prediction and services
all call it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from devnet_jax.devices import batch_sharded, n_devices
from devnet_jax.models import DeviationNetwork
from devnet_jax.preprocessing import normalise


class Scores(NamedTuple):
    """Scores float32 [N] of images, and the score maps float32 [N, h, w] of the finest level."""

    scores: np.ndarray
    maps: np.ndarray


@functools.partial(jax.jit, static_argnames="model")
def score_images(
    model: DeviationNetwork, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """uint8 images [B, S, S, 3] → scores [B] and maps [B, h, w]."""
    result = model.apply(variables, normalise(images), train=False)
    return cast(tuple[jax.Array, jax.Array], result)


def score_in_batches(
    model: DeviationNetwork, variables: dict[str, Any], images: np.ndarray, batch_size: int
) -> Scores:
    """Scores any number of images in batches of one shape, shared among the local devices.

    Args:
      model: the network.
      variables: its variables.
      images: uint8 [N, S, S, 3].
      batch_size: images at once, rounded up to a multiple of the devices. The last batch is
        filled up with black images whose scores are dropped: no image is left out, none counts
        twice, and nothing compiles again.
    """
    batch_size = -(-batch_size // n_devices()) * n_devices()
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        filled = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
        scores, maps = score_images(model, variables, jax.device_put(filled, batch_sharded()))
        parts.append((np.asarray(scores)[: len(batch)], np.asarray(maps)[: len(batch)]))
    all_scores, all_maps = zip(*parts, strict=True)
    return Scores(np.concatenate(all_scores), np.concatenate(all_maps))
