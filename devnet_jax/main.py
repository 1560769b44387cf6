"""Few-shot anomaly detection: trains a detector, evaluates it and scores images with it.

python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/five --seeds=5
python -m devnet_jax.main --mode=eval --workdir=runs/quickstart
python -m devnet_jax.main --mode=predict --workdir=runs/quickstart --input=FOLDER --output=FOLDER
python -m devnet_jax.main --mode=eval --workdir=runs/quickstart --input=LABELLED --output=FOLDER
python -m devnet_jax.main --mode=compare --workdir=runs/new --against=runs/old --output=FOLDER
python -m devnet_jax.main --mode=recalibrate --workdir=runs/quickstart --input=FOLDER
python -m devnet_jax.main --mode=export --workdir=runs/quickstart --output=model.devnet
python -m devnet_jax.main --mode=review --workdir=runs/quickstart --input=FOLDER

A first word that is the name of a mode stands for --mode: devnet review --workdir=… --input=…
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from devnet_jax.cli.flags import run_program, with_absolute_paths, with_mode
from devnet_jax.cli.modes import MODES, Flags, Mode
from devnet_jax.cli.saved_config import with_saved_config
from devnet_jax.config import Config
from devnet_jax.distributed.job import n_announced_processes
from devnet_jax.distributed.watchdog import PEER_TIMEOUT, STUCK_AFTER
from devnet_jax.errors import UserError
from devnet_jax.runtime.startup import import_jax, prepare
from devnet_jax.runtime.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, such as configs/mvtec.py:carpet. --config.train.batch_size=16 overrides a single "
    "setting. The default is the config of the run in --workdir.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or, where a mode allows it, an exported file."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    "; ".join(f"{name}: {mode.help}" for name, mode in MODES.items()) + ".",
)
_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "Images for --mode=predict, recalibrate and review: a file, folder or glob pattern. May be "
    "repeated. Labelled images for --mode=eval and compare: a folder or a CSV list.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Output folder of --mode=predict, compare, eval with --input, and review (default: review/ in "
    "the workdir); output file of --mode=export, and of --mode=recalibrate of an exported file.",
)
_AGAINST = flags.DEFINE_string(
    "against", None, "For --mode=compare: the run or exported file to compare --workdir with."
)
_SEEDS = flags.DEFINE_integer(
    "seeds",
    None,
    "Train and evaluate with so many seeds, from config.seed on, each in a folder of its own in "
    "--workdir, and give the mean and the spread of the measures.",
    lower_bound=2,
)
_STRICT = flags.DEFINE_bool("strict", False, "Stop --mode=predict at the first unreadable image.")
_PORT = flags.DEFINE_integer(
    "port",
    None,
    "Port of the page of --mode=review, or the next free one; 0 for any. The default is that of "
    "the last review with the same output, or 8642.",
    lower_bound=0,
    upper_bound=65535,
)
_EXPORT_FOLDERS = flags.DEFINE_string(
    "export_folders",
    None,
    "Folder in which --mode=review lays the labelled images out as folders, at its end, or without "
    "--input at once.",
)
_COPIES = flags.DEFINE_bool("copies", False, "Copies in --export_folders, not links.")
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    None,
    ["slurm", "open_mpi", "tpu"],
    "Join the other processes of this job, as the environment variables of this cluster say. "
    "Without this flag and the next three, the process works alone.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; with --num_processes and --process_id."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes of the run.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Rank of this process, from 0.", lower_bound=0
)
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout",
    PEER_TIMEOUT,
    "Seconds without a heartbeat after which a process is taken for dead and the others end.",
    lower_bound=2.0,
)
_STUCK_AFTER = flags.DEFINE_float(
    "stuck_after",
    STUCK_AFTER,
    "Seconds without progress in any process, once training or scoring has begun, after which all "
    "processes end and the slowest are named.",
    lower_bound=2.0,
)


def main() -> None:
    """Runs the mode of the flags."""
    if _WORKDIR.value is None:
        raise UserError("--workdir is missing: the folder of the run")
    workdir, mode = Workdir(_WORKDIR.value), MODES[_MODE.value]
    flags_of_mode = Flags(
        _INPUT.value,
        _OUTPUT.value,
        _STRICT.value,
        _PORT.value,
        _EXPORT_FOLDERS.value,
        _COPIES.value,
        _AGAINST.value,
        _SEEDS.value,
    )
    config = _settings(workdir, mode, flags_of_mode)
    mode.check(_MODE.value, flags_of_mode)
    n_processes = _NUM_PROCESSES.value or n_announced_processes(_CLUSTER.value)
    prepare(config.train.batch_size // n_processes)

    # JAX is imported only now, so that mistakes in the flags are reported at once.
    import_jax()
    from devnet_jax.distributed.cluster import ClusterSettings, join_cluster

    cluster = ClusterSettings(
        _CLUSTER.value,
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _PEER_TIMEOUT.value,
        _STUCK_AFTER.value,
    )
    with join_cluster(cluster):
        error = mode.run(config, workdir, flags_of_mode)
    if error is not None:  # raised only when all processes have finished
        raise error


def _settings(workdir: Workdir, mode: Mode, flags_of_mode: Flags) -> Config:
    """Returns the settings of the flags, of the workdir's run, or of the mode.

    Raises:
      UserError: if there are none, or the workdir lacks what the mode starts from.
    """
    if mode.starts_from == "detector" and workdir.is_file:
        if _CONFIG.value is not None:
            raise UserError(
                f"--workdir={workdir.path}: an exported file has its settings; leave --config out"
            )
        return Config()
    if mode.starts_from != "nothing":
        workdir.require_run()
    if _CONFIG.value is None and mode.settings is not None:
        return mode.settings(workdir, flags_of_mode)
    if _CONFIG.value is None:
        raise UserError(f"--workdir={workdir.path}: no run is there; give a --config to train")
    return with_absolute_paths(Config.from_dict(_CONFIG.value))


def console() -> None:
    """Entry point of `python -m devnet_jax.main`."""
    sys.argv = with_saved_config(with_mode(sys.argv, MODES))
    run_program(main)


if __name__ == "__main__":
    console()
