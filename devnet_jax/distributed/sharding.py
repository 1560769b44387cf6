"""How arrays lie on the devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"  # the one device axis: data parallelism


def n_devices() -> int:
    """How many devices, of all processes, share a training batch."""
    return jax.device_count()


def local_device_slice() -> slice:
    """Which of them, in the order of the device axis, are this process's.

    A process has a device's share of each batch at hand for each of its own.
    """
    n = jax.local_device_count()
    return slice(jax.process_index() * n, (jax.process_index() + 1) * n)


def replicated() -> NamedSharding:
    """The sharding of an array that every device of this process holds whole."""
    return _sharding(PartitionSpec())


def batch_sharded() -> NamedSharding:
    """The sharding of a batch whose images are divided among the devices of this process."""
    return _sharding(PartitionSpec(AXIS))


def abstract_replicated(tree: Any) -> Any:
    """The shapes and dtypes of a tree's leaves, each to be held whole by every device of this
    process."""
    sharding = replicated()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), spec)
