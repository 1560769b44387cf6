"""What a run was made with: versions and devices, for reports and tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def software() -> dict[str, str]:
    """The versions of Python and of the libraries that decide the numbers, by name."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    return {"Python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def describe_devices(backend: str, count: int, kind: str) -> str:
    """JAX's devices in words: "8 × TPU v4"; of a CPU, which JAX calls just that, its cores."""
    if backend == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{count} × {kind}"
