"""Devices of this host, and the environment variables that give a process some of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from devnet_jax.errors import UserError

EnvVars = Mapping[str, str]  # environment variables, by name


class HostDevices(NamedTuple):
    """The devices of a host.

    Attributes:
      name: description, such as "8 × TPU v4".
      slots: for each job that can run at a time, the environment variables that give it its device.
    """

    name: str
    slots: list[EnvVars]


def find_devices(jobs_per_device: int = 1) -> HostDevices:
    """Returns the devices of this host; a CPU counts as one.

    JAX runs in a subprocess, because it would reserve the memory of the devices in this one.

    Args:
      jobs_per_device: number of jobs that run at a time on each device.

    Raises:
      UserError: if JAX fails to initialise its devices.
    """
    probe = (
        "import jax\n"
        "print(jax.default_backend(), jax.local_device_count(), jax.devices()[0].device_kind)"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:]
        raise UserError(f"JAX cannot initialise its devices: {' '.join(reason)}")
    backend, count, kind = result.stdout.splitlines()[-1].split(maxsplit=2)
    name = describe_devices(backend, int(count), kind)
    return HostDevices(name, device_slots(backend, int(count), jobs_per_device, os.environ))


def device_slots(
    backend: str, count: int, jobs_per_device: int, environment: EnvVars
) -> list[EnvVars]:
    """Returns the slots of a host: for each job, the environment variables that give it a device.

    Args:
      backend: name of JAX's backend.
      count: number of JAX's devices.
      jobs_per_device: number of jobs that run at a time on each device.
      environment: environment variables of this process; CUDA_VISIBLE_DEVICES may restrict the
        GPUs.
    """
    memory = {}
    if jobs_per_device > 1:  # by default the first job would reserve most of the memory
        memory["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / jobs_per_device:.2f}"
    if backend in ("gpu", "cuda", "rocm"):
        visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        slots = [{"CUDA_VISIBLE_DEVICES": name, **memory} for name in visible.split(",")[:count]]
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
    """Returns a description of JAX's devices: "8 × TPU v4", or the number of CPU cores."""
    if backend == "cpu":
        return f"{n_cores()} CPU cores ({platform.machine()})"
    return f"{count} × {kind}"


def n_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Returns the model name of the CPU, as the system reports it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), platform.processor() or platform.machine())
