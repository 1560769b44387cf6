"""The command line: one page of flags over `devnet_jax.run` and `devnet_jax.evaluation`.

python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m devnet_jax.main --mode=eval --workdir=runs/quickstart
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from devnet_jax import saved_config
from devnet_jax.command_line import flag_names, run_program, with_absolute_paths
from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.startup import prepare
from devnet_jax.workdir import Workdir

MODES = {
    "train": "train, or go on training, then evaluate",
    "eval": "restore the newest checkpoint and evaluate",
    "explain": "restore it, and write the maps of the test images to explain/ in the workdir",
    "predict": "restore it, and score and explain the images of --input into --output",
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
    "input", [], "Images for --mode=predict: a file, folder or pattern; may be given repeatedly."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder that --mode=predict writes to.")
_STRICT = flags.DEFINE_bool(
    "strict", False, "Whether --mode=predict stops at the first image that cannot be read."
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
    prepare(config.train.batch_size)
    if _MODE.value == "predict":
        _predict(config, workdir)
    elif _INPUT.value or _OUTPUT.value or _STRICT.value:
        raise UserError("--input, --output and --strict go with --mode=predict")
    elif _MODE.value == "explain":
        _explain(config, workdir)
    else:
        _train_and_evaluate(config, workdir)


# JAX and all that needs it is imported only in these, so that flags are checked at once.


def _train_and_evaluate(config: Config, workdir: Workdir) -> None:
    from devnet_jax.evaluation import evaluate
    from devnet_jax.run import train
    from devnet_jax.summary import summarise

    if _MODE.value == "train":
        train(config, workdir)
    print(summarise(config, workdir, evaluate(config, workdir)))


def _predict(config: Config, workdir: Workdir) -> None:
    if not _INPUT.value:
        raise UserError("--input is missing: the images to score, as a file, folder or pattern")
    if _OUTPUT.value is None:
        raise UserError("--output is missing: the folder to write predictions.csv to")
    from devnet_jax.detector import Detector
    from devnet_jax.prediction import predict

    detector = Detector.load(workdir.path, config)
    prediction = predict(detector, _INPUT.value, _OUTPUT.value, strict=_STRICT.value)
    print(prediction)
    if prediction.n_unreadable:
        raise UserError(
            f"{prediction.n_unreadable} of {prediction.n_images} images could not be read; see the "
            f"column error of {prediction.table}"
        )


def _explain(config: Config, workdir: Workdir) -> None:
    from devnet_jax.evaluation import explain

    explain(config, workdir)
    print(f"maps and overlays of the test images: {workdir.explanations}")


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
