r"""Runs on all hosts of a slice of Cloud TPUs: makes it if need be, installs, runs, fetches.

    python launch/tpu_pod.py --name=carpet --zone=europe-west4-b --accelerator_type=v5litepod-16 \
        --version=v2-alpha-tpuv5-lite --spot --max_restarts=20 --delete=success -- \
        --config=configs/mvtec.py:carpet --workdir=gs://my-bucket/carpet

What comes after `--` is for `python -m devnet_jax.main`. The hosts share no disk: the workdir must
be in a bucket, unless there is one host; then it is fetched at the end. A slice that is not deleted
goes on costing money. Ctrl-C and SIGTERM let the processes save; this program must live as long as
they do. --dry_run prints the commands. Not yet tried on TPUs: only on a stand-in for gcloud.
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
from devnet_jax.launchers.arguments import is_bucket, required, run_launcher, workdir_of
from devnet_jax.launchers.tpu_run import Code, do, exists, run_on_slice
from devnet_jax.launchers.tpu_slice import ARCHIVE, INSTALL, TpuSlice, require_workdir, to_shell

logger = logging.getLogger("devnet_jax.tpu_pod")

_NAME = flags.DEFINE_string("name", None, "Name of the slice; used as it is if it is there.")
_ZONE = flags.DEFINE_string("zone", None, "Zone, such as europe-west4-b.")
_PROJECT = flags.DEFINE_string("project", None, "Project; by default gcloud's own.")
_ACCELERATOR_TYPE = flags.DEFINE_string(
    "accelerator_type", None, "Kind and size of the slice, such as v5litepod-16."
)
_VERSION = flags.DEFINE_string(
    "version", None, "Version of the software on the hosts, such as v2-alpha-tpuv5-lite."
)
_SPOT = flags.DEFINE_boolean("spot", False, "A slice that is cheaper, and may be taken away.")
_QUEUED = flags.DEFINE_boolean("queued", False, "Wait in Google's queue until there is room.")
_CREATE = flags.DEFINE_multi_string(
    "create", [], "A further flag of the slice's creation, such as --network=mine."
)
_CONNECT = flags.DEFINE_multi_string(
    "connect", [], "A further flag of gcloud's ssh and scp, such as --internal-ip."
)
_INSTALL = flags.DEFINE_string(
    "install", INSTALL, "Shell that installs the code, run beside its pyproject.toml on each host."
)
_SETUP = flags.DEFINE_multi_string(
    "setup",
    [],
    "Shell that is run there afterwards, such as 'gcloud storage cp --recursive gs://b/data .'.",
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    0,
    "How many times all processes start again after one was killed, lost or stopped, on a new "
    "slice if this one was taken away; never after an error.",
    lower_bound=0,
)
_DELETE = flags.DEFINE_enum(
    "delete",
    "never",
    ["never", "success", "always"],
    "When the slice is deleted. success: when the run is done and what it has left is safe; "
    "always: however it ends, also where that could not be fetched.",
)
_POLL_SECONDS = flags.DEFINE_float(
    "poll_seconds", 30.0, "Between two looks at a slice that is not ready.", lower_bound=0.1
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the commands; run nothing.")


def main(arguments: list[str]) -> int:
    """Runs, and returns the status that decides."""
    tpu = TpuSlice(
        name=required("name", _NAME.value),
        zone=required("zone", _ZONE.value),
        project=_PROJECT.value,
        accelerator_type=required("accelerator_type", _ACCELERATOR_TYPE.value),
        version=required("version", _VERSION.value),
        spot=_SPOT.value,
        queued=_QUEUED.value,
        create_flags=_CREATE.value,
        connect_flags=_CONNECT.value,
    )
    workdir = require_workdir(workdir_of(arguments), tpu)
    repository = Path(devnet_jax.__file__).parents[1]
    if not (repository / "pyproject.toml").exists():
        raise UserError(f"{repository}: no pyproject.toml; run this from the project's sources")
    code = Code(str(repository), _INSTALL.value, _SETUP.value)
    if _DRY_RUN.value:
        file = str(Path(tempfile.gettempdir()) / ARCHIVE)
        print(to_shell(tpu, arguments, workdir, file, *code), end="")
        return DONE
    if tpu.spot and not is_bucket(workdir):
        logger.warning(
            "--workdir=%s: lost with the slice if that is taken away; a bucket, gs://…, is not",
            workdir,
        )
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))  # which clears away, too
    may_delete = False
    try:
        status, is_fetched = run_on_slice(
            tpu, arguments, workdir, code, _MAX_RESTARTS.value, _POLL_SECONDS.value
        )
        may_delete = status == DONE and is_fetched
    finally:
        clear_away(tpu, _DELETE.value == "always" or (_DELETE.value == "success" and may_delete))
    if status == RESUME:
        logger.info("stopped; the same command goes on from what was saved")
    return status


def clear_away(tpu: TpuSlice, delete: bool) -> None:
    """Deletes the slice, or says how to."""
    if not exists(tpu):
        return
    command = shlex.join(tpu.delete())
    if delete:
        logger.info("deleting the slice %s", tpu.name)
        try:
            do(tpu.delete())
        except UserError as error:
            logger.error("%s; it goes on costing money, until: %s", error, command)
    else:
        logger.warning("the slice %s goes on costing money, until: %s", tpu.name, command)


if __name__ == "__main__":
    run_launcher(main)
