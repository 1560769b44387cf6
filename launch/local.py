r"""Runs several processes of one run on this host, each with its own devices.

    python launch/local.py --num_processes=2 --devices_per_process=2 -- \
        --config=configs/mvtec.py:carpet --workdir=runs/carpet

The arguments after `--` go to `python -m devnet_jax.main`. Only the output of process 0 is shown;
the others write log files, and the end of a log is shown if its process fails. If one fails, all
end. Ctrl-C ends all; SIGTERM makes them save and end. On Linux no process outlives this program,
even if it is killed. --dry_run prints the commands.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from devnet_jax.distributed.exit_status import DONE, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import run_launcher
from devnet_jax.launchers.local import (
    Command,
    cpu_slots,
    free_port,
    gpu_slots,
    to_shell,
    worker_commands,
)
from devnet_jax.launchers.workers import run_with_restarts
from devnet_jax.runtime.host_devices import EnvVars, find_devices

logger = logging.getLogger("devnet_jax.local")

_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
_DEVICES_PER_PROCESS = flags.DEFINE_integer(
    "devices_per_process", 1, "Number of devices per process.", lower_bound=1
)
_PLATFORM = flags.DEFINE_enum(
    "platform",
    None,
    ["cpu", "gpu"],
    "Platform of the devices. By default GPUs if JAX finds any, else the CPU; to find out, JAX is "
    "started in a subprocess, which takes seconds.",
)
_LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "Folder of the logs of all processes but the first: worker-00001.log and so on. By default a "
    "temporary folder, which is kept if a process fails.",
    allow_override=True,  # absl defines this flag, for its own logs
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    0,
    "Maximum number of restarts of all processes after one was killed, lost or stopped; there is "
    "none after an error.",
    lower_bound=0,
)
_GRACE = flags.DEFINE_float(
    "grace",
    120.0,
    "Seconds that the other processes have to end after one has failed, and all after they are "
    "told to stop; then they are killed.",
    lower_bound=0.0,
)
_PYTHON = flags.DEFINE_string("python", sys.executable, "Python interpreter of the processes.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only print the commands.")


def main(arguments: list[str]) -> int:
    """Runs the processes; returns the status that explains the end of the run."""
    if _NUM_PROCESSES.value is None:
        raise UserError("--num_processes is missing: number of processes")
    slots = find_slots(_NUM_PROCESSES.value, _DEVICES_PER_PROCESS.value)

    def commands() -> Sequence[Command]:
        return worker_commands(_PYTHON.value, arguments, slots, free_port())

    if _DRY_RUN.value:
        print(to_shell(commands()), end="")
        return DONE
    if _LOG_DIR.value is not None:
        logs = Path(_LOG_DIR.value).expanduser()
        logs.mkdir(parents=True, exist_ok=True)
    else:
        logs = Path(tempfile.mkdtemp(prefix="devnet_jax-"))
    failed = False
    try:
        status = run_with_restarts(commands, logs, _GRACE.value, _MAX_RESTARTS.value)
        failed = status not in (DONE, RESUME)
    finally:
        if _LOG_DIR.value is None and not failed:
            shutil.rmtree(logs)
    if failed:
        logger.error("logs of the workers: %s", logs)
    elif status == RESUME:
        logger.info("stopped; run the same command again to resume")
    return status


def find_slots(processes: int, devices: int) -> list[EnvVars]:
    """Returns for each process the environment variables that give it `devices` devices."""
    gpus: list[str] = []
    if _PLATFORM.value != "cpu":
        found = find_devices()
        if any("TPU_VISIBLE_CHIPS" in slot for slot in found.slots):
            raise UserError(
                f"{found.name}: one process uses all chips of a host; run devnet_jax.main directly"
            )
        names = [slot.get("CUDA_VISIBLE_DEVICES") for slot in found.slots]
        gpus = [name for name in names if name]
    if gpus or _PLATFORM.value == "gpu":
        return gpu_slots(gpus, processes, devices)
    return cpu_slots(processes, devices)


if __name__ == "__main__":
    run_launcher(main)
