"""Random keys and generators as functions of the seed, a purpose and a step.

No module keeps the state of a generator. A resumed run therefore draws what an uninterrupted run
would have drawn, on any number of devices.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


def _number(purpose: str) -> int:
    """Returns a number for a purpose, which may contain a folder's name of any bytes."""
    return zlib.crc32(purpose.encode("utf-8", "surrogateescape"))


def key(seed: int, purpose: str) -> jax.Array:
    """Returns the JAX key for a purpose ("initialise", "augment", …); fold the step into it."""
    return jax.random.fold_in(jax.random.key(seed), _number(purpose))


def generator(seed: int, purpose: str, *steps: int) -> np.random.Generator:
    """Returns the NumPy generator for a purpose at a step (or epoch, or image)."""
    return np.random.default_rng([seed, _number(purpose), *steps])
