"""Commands and devices of several processes on this host."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from typing import NamedTuple

from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import main_command
from devnet_jax.runtime.host_devices import EnvVars

HOST = "127.0.0.1"  # other hosts cannot reach the processes


class Command(NamedTuple):
    """A program with its arguments, and environment variables to add for it."""

    arguments: list[str]
    environment: EnvVars


def cpu_slots(processes: int, devices: int) -> list[EnvVars]:
    """Returns the environment variables of each process: `devices` CPU devices, and no GPU."""
    return [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}] * processes


def gpu_slots(gpus: Sequence[str], processes: int, devices: int) -> list[EnvVars]:
    """Returns the environment variables that give each process `devices` GPUs.

    Args:
      gpus: names of all GPUs, as in CUDA_VISIBLE_DEVICES.
      processes: number of processes.
      devices: number of GPUs per process.

    Raises:
      UserError: if there are too few GPUs.
    """
    if processes * devices > len(gpus):
        raise UserError(
            f"--num_processes={processes} --devices_per_process={devices}: "
            f"needs {processes * devices} GPUs, but {len(gpus)} are visible; use fewer, or "
            "--platform=cpu"
        )
    groups = [gpus[i * devices : (i + 1) * devices] for i in range(processes)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def free_port() -> int:
    """Returns a free port of this host."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def worker_commands(
    python: str, arguments: Sequence[str], slots: Sequence[EnvVars], port: int
) -> list[Command]:
    """Returns the command of each process.

    Args:
      python: Python interpreter.
      arguments: arguments of `devnet_jax.main`.
      slots: for each process, the environment variables that give it its devices.
      port: port of process 0, the coordinator.
    """
    return [
        Command(
            main_command(
                python,
                [
                    f"--coordinator={HOST}:{port}",
                    f"--num_processes={len(slots)}",
                    f"--process_id={index}",
                ],
                arguments,
            ),
            slot,
        )
        for index, slot in enumerate(slots)
    ]


def log_name(index: int) -> str:
    """Returns the name of a worker's log file."""
    return f"worker-{index:05}.log"


def to_shell(commands: Sequence[Command]) -> str:
    """Returns a shell script that runs the commands in parallel."""
    lines = []
    for index, command in enumerate(commands):
        variables = [f"{name}={value}" for name, value in command.environment.items()]
        line = shlex.join(["env", *variables, *command.arguments])
        log = f" >{log_name(index)} 2>&1" if index else ""
        lines.append(f"{line}{log} &\n")
    return "".join([*lines, "wait\n"])
