"""Tests of applying a function in batches: the sizes that it is called with, and the results."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from devnet_jax.distributed.batching import apply_in_batches


@pytest.mark.parametrize(
    ("n", "fixed", "sizes"),
    [
        (1, True, [8]),
        (9, True, [8, 8]),
        (1, False, [1]),
        (3, False, [4]),
        (5, False, [8]),
        (8, False, [8]),
        (17, False, [8, 8, 8]),  # the remainder compiles nothing
    ],
)
def test_sizes_of_batches(n: int, fixed: bool, sizes: list[int]) -> None:
    called = []

    def add(left: jax.Array, right: jax.Array) -> dict[str, jax.Array]:
        called.append(len(left))
        return {"sum": left + right.sum(axis=1)}

    left = np.arange(n, dtype=np.float32)
    right = np.ones((n, 3), np.float32)
    result = apply_in_batches(add, (left, right), 8, fixed=fixed)
    np.testing.assert_array_equal(result["sum"], left + 3)
    n_devices = jax.local_device_count()
    assert called == [max(size, n_devices) for size in sizes]
