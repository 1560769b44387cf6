"""The devices of this host, and what a process is given so that it sees some of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from devnet_jax.errors import UserError

EnvVars = Mapping[str, str]  # what a process is given so that it sees one device


class HostDevices(NamedTuple):
    """What there is to run on: its name, for people, and a slot for each job at a time."""

    name: str
    slots: list[EnvVars]


def find_devices(jobs_per_device: int = 1) -> HostDevices:
    """The devices of this host; a CPU counts as one.

    JAX is asked in a process of its own: this one must not take a device's memory.

    Raises:
      UserError: JAX cannot use the devices that it is told to.
    """
    probe = (
        "import jax\n"
        "print(jax.default_backend(), jax.local_device_count(), jax.devices()[0].device_kind)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:]
        raise UserError(f"JAX finds no device to run jobs on: {' '.join(reason)}")
    backend, count, kind = result.stdout.splitlines()[-1].split(maxsplit=2)
    name = describe_devices(backend, int(count), kind)
    return HostDevices(name, device_slots(backend, int(count), jobs_per_device, os.environ))


def device_slots(
    backend: str, count: int, jobs_per_device: int, environment: EnvVars
) -> list[EnvVars]:
    """What each process is given so that it sees one device of a host: a device at a time.

    Args:
      backend: JAX's.
      count: the devices that it sees.
      jobs_per_device: processes on each.
      environment: of this process, which may see some of the host's GPUs alone.
    """
    shared = {}
    if jobs_per_device > 1:  # JAX would give most of the memory to the first
        shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / jobs_per_device:.2f}"
    if backend in ("gpu", "cuda", "rocm"):
        visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        slots = [{"CUDA_VISIBLE_DEVICES": name, **shared} for name in visible.split(",")[:count]]
    elif backend == "tpu":
        slots = [
            {
                "TPU_VISIBLE_CHIPS": str(chip),
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }
            for chip in range(count)
        ]
    else:
        slots = [{}]
    return [slot for slot in slots for _ in range(jobs_per_device)]


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
