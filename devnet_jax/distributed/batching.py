"""Applying a function of a fixed batch size to any number of images, on all local devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from devnet_jax.distributed.sharding import batch_sharded


def apply_in_batches(
    function: Callable[..., Any],
    arrays: np.ndarray | tuple[np.ndarray, ...],
    batch_size: int,
    *,
    fixed: bool = True,
) -> Any:
    """Applies a function batch by batch and concatenates the results.

    Args:
      function: maps arrays [B, …], sharded over the local devices, to a tree of arrays [B, …].
      arrays: array [N, …] with N ≥ 1, such as images uint8 [N, H, W, 3], or several of them, one
        for each argument of the function.
      batch_size: batch size, rounded up to a multiple of the devices. The last batch is padded with
        zeros, whose results are dropped.
      fixed: True if B is always the batch size, so that the function compiles once. False if fewer
        images than a batch are padded to a power of two only: it compiles once for each, and one
        image takes the time of one. The remainder of several batches is padded to a whole one.

    Returns:
      The same tree of NumPy arrays [N, …].
    """
    arrays = arrays if isinstance(arrays, tuple) else (arrays,)
    n = len(arrays[0])
    if not fixed:
        batch_size = min(batch_size, 1 << (n - 1).bit_length())
    n_devices = jax.local_device_count()
    batch_size = -(-batch_size // n_devices) * n_devices

    def fill(part: np.ndarray) -> jax.Array:
        padding = batch_size - len(part)
        padded = np.pad(part, ((0, padding), *[(0, 0)] * (part.ndim - 1)))
        return jax.device_put(padded, batch_sharded())

    parts = []
    for start in range(0, n, batch_size):
        result = function(*(fill(array[start : start + batch_size]) for array in arrays))
        parts.append(jax.tree.map(np.asarray, result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)
