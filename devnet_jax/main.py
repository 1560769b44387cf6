"""Few-shot anomaly detection: trains a detector, evaluates it, and scores pictures with it.

python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m devnet_jax.main --mode=eval --workdir=runs/quickstart
python -m devnet_jax.main --mode=predict --workdir=runs/quickstart --input=FOLDER --output=FOLDER
python -m devnet_jax.main --mode=export --workdir=runs/quickstart --output=model.devnet
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from devnet_jax.cli import saved_config
from devnet_jax.cli.flags import flag_names, run_program, with_absolute_paths
from devnet_jax.config import Config
from devnet_jax.distributed.job import n_announced_processes
from devnet_jax.distributed.watchdog import PEER_TIMEOUT, STUCK_AFTER
from devnet_jax.errors import UserError
from devnet_jax.runtime.startup import prepare
from devnet_jax.runtime.workdir import Workdir

MODES = {
    "train": "train, or go on training, then evaluate",
    "eval": "restore the newest checkpoint and evaluate",
    "explain": "restore it, and write the maps of the test images to explain/ in the workdir",
    "predict": "restore it, and score and explain the images of --input into --output",
    "export": "restore it, and write it as one file, --output=model.devnet, that scores without it",
}

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of settings, such as configs/mvtec.py:carpet; single ones are set by "
    "--config.train.batch_size=16 and the like. A workdir that holds a run needs none.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: what it writes, and reads again."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", list(MODES), "; ".join(f"{name}: {what}" for name, what in MODES.items()) + "."
)
_INPUT = flags.DEFINE_multi_string(
    "input", [], "Images for --mode=predict: a file, folder or pattern"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder that --mode=predict writes to, or file of --mode=export."
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "Whether --mode=predict stops at the first image that cannot be read."
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    None,
    ["slurm", "open_mpi", "tpu"],
    "Work together with the other processes of this job, as the environment of this cluster says. "
    "Without it, and without the next three flags, a process works by itself.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, on which it listens; with the next two."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes that work together, each on its own devices.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout",
    PEER_TIMEOUT,
    "Seconds after which a process of the run that is not heard of is taken for dead, and the "
    "others end.",
    lower_bound=2.0,
)
_STUCK_AFTER = flags.DEFINE_float(
    "stuck_after",
    STUCK_AFTER,
    "Seconds without progress in any process of the run, once it trains or scores, after which all "
    "end, and those furthest behind are named.",
    lower_bound=2.0,
)


def main() -> None:
    """Runs the mode that the flags ask for."""
    if _WORKDIR.value is None:
        raise UserError("--workdir is missing: the folder that the run writes to, or lies in")
    workdir = Workdir(_WORKDIR.value)
    if _MODE.value != "train":
        workdir.require_run()
    if _CONFIG.value is None:
        raise UserError(f"--workdir={workdir.path}: no run is there; give a --config to train")
    config = with_absolute_paths(Config.from_dict(_CONFIG.value))
    _require_flags_that_fit()
    n_processes = _NUM_PROCESSES.value or n_announced_processes(_CLUSTER.value)
    prepare(config.train.batch_size // n_processes)

    # JAX and all that needs it is imported only now, so that flags are checked at once.
    from devnet_jax.distributed.cluster import ClusterSettings, join_cluster

    settings = ClusterSettings(
        _CLUSTER.value,
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _PEER_TIMEOUT.value,
        _STUCK_AFTER.value,
    )
    modes = {"predict": _predict, "explain": _explain, "export": _export}
    work = modes.get(_MODE.value, _train_and_evaluate)
    with join_cluster(settings):
        complaint = work(config, workdir)
    if complaint:  # only now: all processes have done their work
        raise UserError(complaint)


def _require_flags_that_fit() -> None:
    """Raises `UserError` for flags that the mode needs and has not, or has and does not know."""
    if _MODE.value == "export":
        if _OUTPUT.value is None:
            raise UserError("--output is missing: the file to write, such as model.devnet")
    elif _MODE.value != "predict" and _OUTPUT.value:
        raise UserError("--output goes with --mode=predict and --mode=export")
    if _MODE.value != "predict":
        if _INPUT.value or _STRICT.value:
            raise UserError("--input and --strict go with --mode=predict")
    elif not _INPUT.value:
        raise UserError("--input is missing: the images to score, as a file, folder or pattern")
    elif _OUTPUT.value is None:
        raise UserError("--output is missing: the folder to write predictions.csv to")


def _train_and_evaluate(config: Config, workdir: Workdir) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.evaluate import evaluate
    from devnet_jax.report.summary import summarise
    from devnet_jax.training.run import train

    if _MODE.value == "train":
        train(config, workdir)
    results = evaluate(config, workdir)
    if is_rank_zero():
        print(summarise(config, workdir, results))


def _predict(config: Config, workdir: Workdir) -> str | None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.inference.detector import Detector
    from devnet_jax.prediction import predict

    assert _OUTPUT.value is not None  # the flags have been checked
    detector = Detector.restore(workdir.path, config)
    prediction = predict(detector, _INPUT.value, _OUTPUT.value, strict=_STRICT.value)
    if is_rank_zero():
        print(prediction)
    if not prediction.n_unreadable:
        return None
    return (
        f"{prediction.n_unreadable} of {prediction.n_images} images could not be read; see the "
        f"column error of {prediction.table}"
    )


def _explain(config: Config, workdir: Workdir) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.evaluate import explain

    explain(config, workdir)
    if is_rank_zero():
        print(f"maps and overlays of the test images: {workdir.explanations}")


def _export(config: Config, workdir: Workdir) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.export.write import export_detector
    from devnet_jax.inference.detector import Detector

    assert _OUTPUT.value is not None  # the flags have been checked
    detector = Detector.restore(workdir.path, config)
    if is_rank_zero():
        export_detector(detector, workdir, _OUTPUT.value)
        print(f"detector in one file: {_OUTPUT.value}")


def with_saved_settings(argv: Sequence[str]) -> list[str]:
    """The command line, with the settings of the workdir's run where `--config` is left out."""
    argv = list(argv)
    names = flag_names(argv)
    if "config" in names or "workdir" not in names:
        return argv
    place = names.index("workdir")
    workdir = argv[place].split("=", 1)[1] if "=" in argv[place] else argv[place + 1 : place + 2]
    if not isinstance(workdir, str):
        workdir = workdir[0] if workdir else ""
    if workdir and Workdir(workdir).config.exists():
        argv.insert(1, f"--config={saved_config.__file__}:{workdir}")
    return argv


def console() -> None:
    """Entry point of `python -m devnet_jax.main`."""
    sys.argv = with_saved_settings(sys.argv)
    run_program(main)


if __name__ == "__main__":
    console()
