"""Versions of Python and of the libraries that affect the results."""

from __future__ import annotations

import importlib.metadata
import platform


def software_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that affect the results, by name."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    return {"Python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
