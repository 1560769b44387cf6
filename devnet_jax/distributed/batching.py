"""Applying a function of a fixed batch size to any number of images, on all local devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from devnet_jax.distributed.sharding import batch_sharded


def apply_in_batches(
    function: Callable[[jax.Array], Any], images: np.ndarray, batch_size: int
) -> Any:
    """Applies a function batch by batch and concatenates the results.

    Args:
      function: maps an array [B, …], sharded over the local devices, to a tree of arrays [B, …]. B
        is always the same, so that it compiles once.
      images: array [N, …] with N ≥ 1, such as images uint8 [N, S, S, 3].
      batch_size: batch size, rounded up to a multiple of the devices. The last batch is padded with
        zeros, whose results are dropped.

    Returns:
      The same tree of NumPy arrays [N, …].
    """
    n_devices = jax.local_device_count()
    batch_size = -(-batch_size // n_devices) * n_devices
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        filled = np.pad(batch, ((0, padding), *[(0, 0)] * (batch.ndim - 1)))
        result = function(jax.device_put(filled, batch_sharded()))
        parts.append(jax.tree.map(np.asarray, result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)
