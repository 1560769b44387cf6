r"""Runs on all hosts of a Cloud TPU slice, which is created if it does not exist.

    python launch/tpu_pod.py --name=carpet --zone=europe-west4-b --accelerator_type=v5litepod-16 \
        --version=v2-alpha-tpuv5-lite --spot --max_restarts=20 --delete=success -- \
        --config=configs/mvtec.py:carpet --workdir=gs://my-bucket/carpet

The arguments after `--` go to `python -m devnet_jax.main`. The workdir must be in a bucket,
because hosts share no disk; with one host it may be a folder, which is fetched at the end. A slice
costs money until it is deleted. Ctrl-C and SIGTERM make the processes save and end; this
program must run as long as they do. --dry_run prints the commands. Not yet tried on TPUs, only with
a fake gcloud.
"""

from __future__ import annotations

import logging
import shlex
import signal
import tempfile
from pathlib import Path

from absl import flags

import devnet_jax
from devnet_jax.distributed.exit_status import DONE, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import find_workdir, is_bucket, require_flag, run_launcher
from devnet_jax.launchers.tpu_run import Code, may_exist, run_command, run_on_slice
from devnet_jax.launchers.tpu_slice import ARCHIVE, INSTALL, TpuSlice, require_workdir, to_shell

logger = logging.getLogger("devnet_jax.tpu_pod")

_NAME = flags.DEFINE_string("name", None, "Name of the slice; an existing slice is used.")
_ZONE = flags.DEFINE_string("zone", None, "Zone, such as europe-west4-b.")
_PROJECT = flags.DEFINE_string("project", None, "Project; by default gcloud's.")
_ACCELERATOR_TYPE = flags.DEFINE_string(
    "accelerator_type", None, "Type and size of the slice, such as v5litepod-16."
)
_VERSION = flags.DEFINE_string(
    "version", None, "Software version of the hosts, such as v2-alpha-tpuv5-lite."
)
_SPOT = flags.DEFINE_boolean(
    "spot", False, "Use a spot slice, which is cheaper and may be preempted."
)
_QUEUED = flags.DEFINE_boolean(
    "queued", False, "Create the slice by a queued request, which waits for capacity."
)
_CREATE = flags.DEFINE_multi_string(
    "create",
    [],
    "Additional gcloud flag for the creation, such as --network=mine. May be repeated.",
)
_CONNECT = flags.DEFINE_multi_string(
    "connect", [], "Additional gcloud flag for ssh and scp, such as --internal-ip. May be repeated."
)
_INSTALL = flags.DEFINE_string(
    "install",
    INSTALL,
    "Shell command that installs the code, run in the project's folder on each host.",
)
_SETUP = flags.DEFINE_multi_string(
    "setup",
    [],
    "Shell command to run there after that, such as 'gcloud storage cp --recursive gs://b/data .'. "
    "May be repeated.",
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    0,
    "Maximum number of restarts of all processes after one was killed, lost or stopped, on a new "
    "slice if this one was preempted; there is none after an error.",
    lower_bound=0,
)
_DELETE = flags.DEFINE_enum(
    "delete",
    "never",
    ["never", "success", "always"],
    "When to delete the slice. success: after a successful run whose workdir is in a bucket or was "
    "fetched; always: after every run, even if the workdir could not be fetched.",
)
_POLL_SECONDS = flags.DEFINE_float(
    "poll_seconds", 30.0, "Seconds between two queries of the state of a slice.", lower_bound=0.1
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only print the commands.")


def main(arguments: list[str]) -> int:
    """Runs on the slice; returns the status that explains the end of the run."""
    tpu = TpuSlice(
        name=require_flag("name", _NAME.value),
        zone=require_flag("zone", _ZONE.value),
        project=_PROJECT.value,
        accelerator_type=require_flag("accelerator_type", _ACCELERATOR_TYPE.value),
        version=require_flag("version", _VERSION.value),
        spot=_SPOT.value,
        queued=_QUEUED.value,
        create_flags=_CREATE.value,
        connect_flags=_CONNECT.value,
    )
    workdir = require_workdir(find_workdir(arguments), tpu)
    repository = Path(devnet_jax.__file__).parents[1]
    if not (repository / "pyproject.toml").exists():
        raise UserError(f"{repository}: no pyproject.toml; run this program in the source tree")
    code = Code(str(repository), _INSTALL.value, _SETUP.value)
    if _DRY_RUN.value:
        file = str(Path(tempfile.gettempdir()) / ARCHIVE)
        print(to_shell(tpu, arguments, workdir, file, *code), end="")
        return DONE
    if tpu.spot and not is_bucket(workdir):
        logger.warning(
            "--workdir=%s: lost if the slice is preempted; a folder in a bucket, gs://…, is not",
            workdir,
        )
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # same cleanup
    may_delete = False
    try:
        status, is_fetched = run_on_slice(
            tpu, arguments, workdir, code, _MAX_RESTARTS.value, _POLL_SECONDS.value
        )
        may_delete = status == DONE and is_fetched
    finally:
        delete_or_warn(
            tpu, _DELETE.value == "always" or (_DELETE.value == "success" and may_delete)
        )
    if status == RESUME:
        logger.info("stopped; run the same command again to resume")
    return status


def delete_or_warn(tpu: TpuSlice, delete: bool) -> None:
    """Deletes the slice, or logs the command that does."""
    if not may_exist(tpu):
        return
    command = shlex.join(tpu.delete())
    if delete:
        logger.info("deleting the slice %s", tpu.name)
        try:
            run_command(tpu.delete())
        except UserError as error:
            logger.error("%s; the slice costs money until you run: %s", error, command)
    else:
        logger.warning("the slice %s costs money until you run: %s", tpu.name, command)


if __name__ == "__main__":
    run_launcher(main)
