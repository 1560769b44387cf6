"""Any number of images through a function of one batch shape, shared among the local devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from devnet_jax.distributed.sharding import batch_sharded


def apply_in_batches(
    function: Callable[[jax.Array], Any], images: np.ndarray, batch_size: int
) -> Any:
    """Applies a function to images batch by batch, and joins what it returns.

    Args:
      function: of uint8 [B, S, S, 3], divided among the devices, always with the same B; returns a
        tree of arrays [B, …].
      images: uint8 [N, S, S, 3], N at least 1.
      batch_size: images at once, rounded up to a multiple of the devices. The last batch is
        filled up with black images whose results are dropped: no image is left out, none counts
        twice, and nothing compiles again.

    Returns:
      The same tree of NumPy arrays [N, …].
    """
    n_devices = jax.local_device_count()
    batch_size = -(-batch_size // n_devices) * n_devices
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = batch_size - len(batch)
        filled = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
        result = function(jax.device_put(filled, batch_sharded()))
        parts.append(jax.tree.map(np.asarray, result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)
