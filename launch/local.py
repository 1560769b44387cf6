r"""Runs several processes on this host that work together, each on devices of its own.

    python launch/local.py --num_processes=2 --devices_per_process=2 -- \
        --config=configs/mvtec.py:carpet --workdir=runs/carpet

What comes after `--` is for `python -m devnet_jax.main`. The first process speaks for all; what the
others say is shown when they fail. When one fails, all end; Ctrl-C ends them, SIGTERM lets them
save. On Linux none of them outlives this program, however that ends. --dry_run prints the commands.
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

_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.", lower_bound=1)
_DEVICES_PER_PROCESS = flags.DEFINE_integer(
    "devices_per_process", 1, "Devices of each of them.", lower_bound=1
)
_PLATFORM = flags.DEFINE_enum(
    "platform",
    None,
    ["cpu", "gpu"],
    "What the devices are. By default GPUs if JAX finds some, else parts of the CPU; JAX is asked "
    "in a process of its own, which takes seconds.",
)
_LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "Folder of what the processes but the first say, in worker-00001.log and so on. By default a "
    "temporary one, which is kept if something fails.",
    allow_override=True,  # absl has one of this name, for logs of its own that are not written here
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    0,
    "How many times all start again after one was killed, lost or stopped; never after an error.",
    lower_bound=0,
)
_GRACE = flags.DEFINE_float(
    "grace",
    120.0,
    "Seconds that the others have to end by themselves when one has failed, and all when they are "
    "told to stop; then they are killed.",
    lower_bound=0.0,
)
_PYTHON = flags.DEFINE_string("python", sys.executable, "The interpreter of the processes.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the commands; run nothing.")


def main(arguments: list[str]) -> int:
    """Runs the processes and returns the status that decides."""
    if _NUM_PROCESSES.value is None:
        raise UserError("--num_processes is missing: how many processes to run")
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
        logger.error("the logs of the workers: %s", logs)
    elif status == RESUME:
        logger.info("stopped; the same command goes on from what was saved")
    return status


def find_slots(processes: int, devices: int) -> list[EnvVars]:
    """What each of the processes is given so that it sees `devices` devices of its own."""
    gpus: list[str] = []
    if _PLATFORM.value != "cpu":
        found = find_devices()
        if any("TPU_VISIBLE_CHIPS" in slot for slot in found.slots):
            raise UserError(
                f"{found.name}: one process uses all chips of a host; run devnet_jax.main itself"
            )
        names = [slot.get("CUDA_VISIBLE_DEVICES") for slot in found.slots]
        gpus = [name for name in names if name]
    if gpus or _PLATFORM.value == "gpu":
        return gpu_slots(gpus, processes, devices)
    return cpu_slots(processes, devices)


if __name__ == "__main__":
    run_launcher(main)
