"""How arrays lie on the local devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"  # the one device axis: data parallelism


def n_devices() -> int:
    """How many devices share a batch."""
    return jax.local_device_count()


def replicated() -> NamedSharding:
    """The sharding of an array that every local device holds whole."""
    return _sharding(PartitionSpec())


def batch_sharded() -> NamedSharding:
    """The sharding of a batch whose images are divided among the local devices."""
    return _sharding(PartitionSpec(AXIS))


def abstract_replicated(tree: Any) -> Any:
    """The shapes and dtypes of a tree's leaves, each to be held whole by every local device."""
    sharding = replicated()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), spec)
