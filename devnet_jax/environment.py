"""What a run was made with: versions and devices, for reports and tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def software() -> dict[str, str]:
    """The versions of Python and of the libraries that decide the numbers, by name."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow")
    return {"Python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def describe_devices(backend: str, count: int, kind: str) -> str:
    """JAX's devices in words: "8 × TPU v4"; of a CPU, which JAX calls just that, its cores."""
    if backend == "cpu":
        return f"{n_cores()} CPU cores ({platform.machine()})"
    return f"{count} × {kind}"


def n_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The name of the CPU, as the system has it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), platform.processor() or platform.machine())
