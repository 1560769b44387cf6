"""Several processes on this host: what each of them is told, and which devices it gets."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from typing import NamedTuple

from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import main_command
from devnet_jax.runtime.host_devices import EnvVars

HOST = "127.0.0.1"  # nothing outside of this host can reach the processes


class Command(NamedTuple):
    """A program with its arguments, and what is added to the environment for it."""

    arguments: list[str]
    environment: EnvVars


def cpu_slots(processes: int, devices: int) -> list[EnvVars]:
    """What makes each process use `devices` devices on the CPU, and no GPU."""
    return [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}] * processes


def gpu_slots(gpus: Sequence[str], processes: int, devices: int) -> list[EnvVars]:
    """What makes each process see `devices` GPUs of its own.

    Args:
      gpus: the names of all, as CUDA_VISIBLE_DEVICES has them.
      processes: how many there are.
      devices: how many GPUs each gets.

    Raises:
      UserError: there are too few.
    """
    if processes * devices > len(gpus):
        raise UserError(
            f"--num_processes={processes} --devices_per_process={devices}: "
            f"it takes {processes * devices} GPUs, of which {len(gpus)} are visible; ask for "
            "fewer, or for --platform=cpu"
        )
    shares = [gpus[i * devices : (i + 1) * devices] for i in range(processes)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def free_port() -> int:
    """A port of this host that nothing listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def worker_commands(
    python: str, arguments: Sequence[str], slots: Sequence[EnvVars], port: int
) -> list[Command]:
    """The command of each process.

    Args:
      python: the interpreter.
      arguments: of `devnet_jax.main`.
      slots: what each process is given so that it sees its devices.
      port: that the first process listens on, and the others find it at.
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
    """The file in the folder of logs that a worker writes to."""
    return f"worker-{index:05}.log"


def to_shell(commands: Sequence[Command]) -> str:
    """The commands as lines of shell that start them side by side and wait for them."""
    lines = []
    for index, command in enumerate(commands):
        variables = [f"{name}={value}" for name, value in command.environment.items()]
        line = shlex.join(["env", *variables, *command.arguments])
        log = f" >{log_name(index)} 2>&1" if index else ""
        lines.append(f"{line}{log} &\n")
    return "".join([*lines, "wait\n"])
