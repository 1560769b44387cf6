r"""Writes and submits a Slurm batch script: one process per node, or per GPU.

    python launch/slurm.py --nodes=2 --gpus_per_node=4 --time=12:00:00 \
        --setup='module load cuda' -- \
        --config=configs/mvtec.py:carpet --workdir=/shared/runs/carpet

The arguments after `--` go to `python -m devnet_jax.main`. The workdir must be on a disk that all
nodes share, or in a bucket. Before its time limit, or when it is preempted, the job saves, is
queued again and resumes; after an error it is not queued again. --dry_run prints the script.
Not yet tried on a cluster.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from absl import flags
from etils import epath

from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import find_workdir, is_bucket, run_launcher
from devnet_jax.launchers.slurm import SlurmJob, batch_script
from devnet_jax.runtime.io import write_text

logger = logging.getLogger("devnet_jax.slurm")

_NODES = flags.DEFINE_integer("nodes", 1, "Number of nodes.", lower_bound=1)
_GPUS_PER_NODE = flags.DEFINE_integer(
    "gpus_per_node", None, "Number of GPUs per node; 0 for a job on CPUs.", lower_bound=0
)
_TASK_PER = flags.DEFINE_enum(
    "task_per",
    "node",
    ["node", "gpu"],
    "One process per node, which uses all GPUs of the node, or one process per GPU.",
)
_CPUS_PER_TASK = flags.DEFINE_integer(
    "cpus_per_task", None, "Number of cores per process.", lower_bound=1
)
_TIME = flags.DEFINE_string("time", None, "Time limit, such as 12:00:00 or 2-00:00:00.")
_PARTITION = flags.DEFINE_string("partition", None, "Partition to run in.")
_ACCOUNT = flags.DEFINE_string("account", None, "Account to charge.")
_JOB_NAME = flags.DEFINE_string("job_name", "devnet_jax", "Name of the job.")
_SBATCH = flags.DEFINE_multi_string(
    "sbatch", [], "Additional option of sbatch, such as --constraint=a100. May be repeated."
)
_SETUP = flags.DEFINE_multi_string(
    "setup", [], "Shell command to run first, such as 'module load cuda'. May be repeated."
)
_SCRIPT = flags.DEFINE_string(
    "script", None, "File to write the script to; by default slurm.sbatch in the workdir."
)
_MAX_REQUEUES = flags.DEFINE_integer(
    "max_requeues", 20, "Maximum number of times that the job is queued again.", lower_bound=0
)
_PYTHON = flags.DEFINE_string("python", sys.executable, "Python interpreter of the processes.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only print the script.")


def main(arguments: list[str]) -> int | None:
    """Writes and submits the script, or prints it."""
    if _GPUS_PER_NODE.value is None:
        raise UserError("--gpus_per_node is missing: number of GPUs per node; 0 for CPUs")
    path = script_path(arguments)
    job = SlurmJob(
        nodes=_NODES.value,
        gpus_per_node=_GPUS_PER_NODE.value,
        task_per=_TASK_PER.value,
        cpus_per_task=_CPUS_PER_TASK.value,
        time=_TIME.value,
        partition=_PARTITION.value,
        account=_ACCOUNT.value,
        name=_JOB_NAME.value,
        log=str(path.parent / "slurm-").replace("%", "%%") + "%j.out",
        directives=_SBATCH.value,
        setup=_SETUP.value,
        folder=str(Path.cwd()),
        python=_PYTHON.value,
        max_requeues=_MAX_REQUEUES.value,
    )
    script = batch_script(job, arguments)
    command = ["sbatch", str(path)]
    if _DRY_RUN.value:
        print(f"{script}\n# {shlex.join(command)}")
        return None
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: no such program; is this a node of a Slurm cluster?")
    write_text(epath.Path(path), script)
    logger.info("%s: written; log of the job: %s", path, job.log)
    status = subprocess.run(command).returncode
    if status:
        raise UserError(f"{shlex.join(command)}: ended with status {status}")
    return None


def script_path(arguments: list[str]) -> Path:
    """Returns the path of the script."""
    if _SCRIPT.value:
        return Path(_SCRIPT.value).expanduser().absolute()
    workdir = find_workdir(arguments)
    if not workdir:
        raise UserError("--workdir is missing after --: folder of the run")
    if is_bucket(workdir):
        raise UserError(f"--workdir={workdir}: give a --script=… on a shared disk")
    return Path(workdir).expanduser().absolute() / "slurm.sbatch"


if __name__ == "__main__":
    run_launcher(main)
