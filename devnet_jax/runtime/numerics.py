"""The rules that all computations of the package follow, whatever the caller has set in JAX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def standard_numerics() -> Iterator[None]:
    """Decorator or context of functions that compute with JAX: its defaults hold inside.

    Environment variables such as JAX_ENABLE_X64=1, and `jax.config` in the caller's program, would
    otherwise give other scores than those that the detector was trained and calibrated with, or
    stop the network with errors. They still hold for the rest of the caller's program.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        # Random numbers are part of a run: it may be resumed elsewhere.
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),  # images and scores are transferred where it is simplest
    ):
        yield
