"""A job of Slurm: the batch script that runs one process on each GPU, or on each node."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from devnet_jax.distributed.exit_status import INTERRUPTED, PEER_LOST, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import main_command

SAVE_SECONDS = 120  # before its time is up the job is told to save; Slurm may do so a minute early
WAIT_SECONDS = 300  # that tasks have when one has ended; they notice within --peer_timeout
# What a task ends with after an error: more than any status that lets the job go on.
TASK_ERROR = 200

_TASK = f"""\
trap : TERM # for the command, which saves
"$@"
status=$?
case $status in
0 | {RESUME} | {PEER_LOST}) ;;
*)
    echo "task $SLURM_PROCID on $(hostname): status $status" >&2
    if ((status <= 128 || status == {INTERRUPTED})); then status={TASK_ERROR}; fi
    ;;
esac
exit "$status"
"""

_END = f"""\
restarts=${{SLURM_RESTART_COUNT:-0}}
if ((status == {RESUME} || status == {PEER_LOST} || (status > 128 && status < {TASK_ERROR}))); then
    # No job that Slurm has ended by itself is revived: it was cancelled, or is queued already.
    if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]]; then
        echo "status $status: the job was ended; submitted again, it goes on"
    elif ((restarts >= max_requeues)); then
        echo "status $status: not queued again after $restarts times; submitted again, it goes on"
    else
        echo "status $status: queued again ($((restarts + 1)) of $max_requeues times)"
        scontrol requeue "$SLURM_JOB_ID"
    fi
elif ((status == {TASK_ERROR})); then
    status=1
fi
exit "$status"
"""


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """What a job asks of Slurm, and what it runs.

    Attributes:
      nodes: how many.
      gpus_per_node: how many of each node; 0 for a job on CPUs.
      task_per: "gpu" for a process on each GPU, "node" for one that uses all of its node.
      cpus_per_task: cores of each process; as the cluster has it if None.
      time: limit, as Slurm writes it; the cluster's if None. So are the next two.
      partition: where to run.
      account: who pays.
      name: of the job.
      log: file that the processes write to; %j is the job's number.
      directives: further options of sbatch.
      setup: lines of shell, run before.
      folder: where the processes run.
      python: their interpreter.
      max_requeues: how many times the job is queued again at most.
    """

    nodes: int
    gpus_per_node: int
    task_per: str
    cpus_per_task: int | None
    time: str | None
    partition: str | None
    account: str | None
    name: str
    log: str
    directives: Sequence[str]
    setup: Sequence[str]
    folder: str
    python: str
    max_requeues: int

    def __post_init__(self) -> None:
        """Raises `UserError` for what no line of a batch script can say."""
        for flag, value in (
            ("time", self.time),
            ("partition", self.partition),
            ("account", self.account),
            ("job_name", self.name),
            ("script", self.log),
        ):
            if value is not None and any(character in value for character in "\\\"'\n"):
                raise UserError(
                    f"--{flag}={value}: sbatch reads no quotes, backslashes and ends of lines here"
                )
        for line in self.directives:
            if not line.startswith("-") or "\n" in line:
                raise UserError(f"--sbatch={line}: must be an option such as --constraint=a100")
        if self.task_per == "gpu" and not self.gpus_per_node:
            raise UserError("--task_per=gpu --gpus_per_node=0: give --task_per=node without GPUs")


def batch_script(job: SlurmJob, arguments: Sequence[str]) -> str:
    """The script that is given to sbatch.

    Told to save by Slurm, or after the loss of a process, the job is queued again, and goes on.

    Args:
      job: what to ask for.
      arguments: of `devnet_jax.main`.
    """
    command = main_command(job.python, ["--cluster=slurm"], arguments)
    lines = [
        "#!/bin/bash",
        *_directives(job),
        "# Written by launch/slurm.py. Submitted again, the job goes on where it was stopped.",
        "",
        f"max_requeues={job.max_requeues}",
        f"cd {shlex.quote(job.folder)} || exit 1",
        *job.setup,
        *_devices(job),
        "# shellcheck disable=SC1003,SC2016 # every word is meant as it is",
        "command=(",
        *(f"    {shlex.quote(word)}" for word in command),
        ")",
        "",
        "# srun returns the highest status of its tasks. So that it is the one that decides, a",
        f"# task that has met an error ends with {TASK_ERROR}.",
        "# shellcheck disable=SC2016",
        f"task={shlex.quote(_TASK)}",
        "trap : TERM # for the tasks, which save",
        f"{shlex.join(_srun(job))} \\",
        '    bash -c "$task" task "${command[@]}"',
        "status=$?",
        "",
    ]
    return "\n".join(lines) + _END


def _directives(job: SlurmJob) -> list[str]:
    options = {
        "job-name": job.name,
        "account": job.account,
        "partition": job.partition,
        "time": job.time,
        "nodes": job.nodes,
        "ntasks-per-node": job.gpus_per_node if job.task_per == "gpu" else 1,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "output": job.log,
        "open-mode": "append",  # what was said before the job was queued again stays
        "signal": f"TERM@{SAVE_SECONDS}",
    }
    lines = [f"--{name}={_quoted(str(value))}" for name, value in options.items() if value]
    return [f"#SBATCH {line}" for line in (*lines, "--requeue", *job.directives)]


def _quoted(value: str) -> str:
    """A value as sbatch reads it, whose quoting is not a shell's."""
    return f'"{value}"' if any(character in value for character in " \t#") else value


def _devices(job: SlurmJob) -> list[str]:
    if job.task_per == "gpu" or not job.gpus_per_node:
        return []
    devices = ",".join(map(str, range(job.gpus_per_node)))
    return [
        "# JAX would take one GPU for each process of Slurm.",
        f"export JAX_LOCAL_DEVICE_IDS={devices}",
    ]


def _srun(job: SlurmJob) -> list[str]:
    # What ends one task must not end the others, which are saving, or about to notice.
    words = ["srun", "--label", "--kill-on-bad-exit=0", f"--wait={WAIT_SECONDS}"]
    if job.cpus_per_task is not None:
        words += [f"--cpus-per-task={job.cpus_per_task}"]  # srun does not take it from sbatch
    if job.gpus_per_node:
        words += ["--gpu-bind=none"]  # each process sees all GPUs of its node, and takes its own
    return words
