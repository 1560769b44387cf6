"""Shardings of arrays over the devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"  # the only device axis: data parallelism


def n_devices() -> int:
    """Returns the number of devices of all processes, which share a training batch."""
    return jax.device_count()


def local_batch_slice(batch_size: int) -> slice:
    """Returns the slice of a batch over all devices that this process has to load."""
    n = batch_size // jax.process_count()
    return slice(jax.process_index() * n, (jax.process_index() + 1) * n)


def replicated() -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device of this process."""
    return _sharding(PartitionSpec())


def batch_sharded() -> NamedSharding:
    """Returns the sharding of a batch whose images are divided among this process's devices."""
    return _sharding(PartitionSpec(AXIS))


def abstract_replicated(tree: Any) -> Any:
    """Returns the shapes and dtypes of a tree's leaves, with the sharding `replicated`."""
    sharding = replicated()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), spec)
