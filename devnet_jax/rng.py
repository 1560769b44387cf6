"""Everything random is a function of the seed, a purpose and a step.

Nothing in the package keeps a generator's state, so a resumed run draws what the
uninterrupted one would have drawn, on any number of devices.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def key(seed: int, purpose: str) -> jax.Array:
    """The JAX key for one purpose ("initialise", "augment", …); fold the step into it."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def generator(seed: int, purpose: str, *steps: int) -> np.random.Generator:
    """The NumPy generator for one purpose at one step (or epoch, or image)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *steps])
