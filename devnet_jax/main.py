"""The command line: one page of flags over `devnet_jax.run` and `devnet_jax.evaluation`.

python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m devnet_jax.main --mode=eval --workdir=runs/quickstart
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from devnet_jax import saved_config
from devnet_jax.config import Config, require_setting
from devnet_jax.errors import UserError
from devnet_jax.workdir import Workdir

FULL_OR_FORBIDDEN = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)
MODES = {
    "train": "train, or go on training, then evaluate",
    "eval": "restore the newest checkpoint and evaluate",
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


def main(argv: Sequence[str]) -> None:
    """Runs the mode; `UserError` ends it with one line and status 1."""
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]}: not a flag; settings are given as --config.name=value")
        if _WORKDIR.value is None:
            raise UserError("--workdir is missing: the folder that the run writes to, or lies in")
        workdir = Workdir(_WORKDIR.value)
        if _CONFIG.value is None:
            raise UserError(f"--workdir={workdir.path}: no run is there; give a --config to train")
        _run(with_absolute_paths(Config.from_dict(_CONFIG.value)), workdir, _MODE.value)
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _end(f"{place}{error.strerror}; make room there, or allow it")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _run(config: Config, workdir: Workdir, mode: str) -> None:
    # What was compiled once is found again by the next run; JAX reads this when it is imported.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "devnet_jax" / "compiled"))
    # JAX and all that needs it is imported only now, so that flags are checked at once.
    from devnet_jax.evaluation import evaluate
    from devnet_jax.run import train
    from devnet_jax.summary import summarise

    if mode == "train":
        train(config, workdir)
    print(summarise(config, workdir, evaluate(config, workdir)))


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with one readable line for what it and ml_collections refuse."""
    try:
        for argument in argv[1:]:
            override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
            if override:
                require_setting(override[1])
        remaining = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # ml_collections reports a missing file at the first use only
    except FileNotFoundError as error:
        _end(f"{error.filename}: no such file")
    except OSError:
        given = [argument for argument in argv if re.match(r"--?config=", argument)]
        _end(f"{given[-1] if given else '--config'}: no such file of settings")
    except (UserError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _end(str(error).strip().splitlines()[-1])
    _start_logging(verbose=flags.FLAGS.verbosity >= 1)
    return remaining


def with_saved_settings(argv: Sequence[str]) -> list[str]:
    """The command line, with the settings of the workdir's run where `--config` is left out."""
    argv = list(argv)
    names = [argument.lstrip("-").split("=", 1)[0] for argument in argv]
    if "config" in names or "workdir" not in names:
        return argv
    place = names.index("workdir")
    workdir = argv[place].split("=", 1)[1] if "=" in argv[place] else argv[place + 1 : place + 2]
    if not isinstance(workdir, str):
        workdir = workdir[0] if workdir else ""
    if workdir and Workdir(workdir).config.exists():
        argv.insert(1, f"--config={saved_config.__file__}:{workdir}")
    return argv


def with_absolute_paths(config: Config) -> Config:
    """The settings with paths that do not depend on where the command was run."""

    def absolute(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        return str(Path(path).expanduser().absolute())

    dataset = dataclasses.replace(
        config.dataset,
        manual_dir=absolute(config.dataset.manual_dir),
        data_dir=absolute(config.dataset.data_dir),
    )
    pretrained = config.model.pretrained
    if pretrained not in ("imagenet", "none"):
        pretrained = absolute(pretrained) or pretrained
    model = dataclasses.replace(config.model, pretrained=pretrained)
    return dataclasses.replace(config, dataset=dataset, model=model)


def _start_logging(verbose: bool) -> None:
    """Shows what the package says, plainly; of the libraries only errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    absl_logging.set_verbosity(absl_logging.ERROR)
    package = logging.getLogger("devnet_jax")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if verbose else logging.INFO)
    package.propagate = False


def _end(message: str) -> NoReturn:
    """Ends the program with one line and status 1."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: all files are closed by now, and reader threads that a failed restore has left
    # behind would print tracebacks of their own while Python shuts down.
    os._exit(1)


def console() -> None:
    """Entry point of `python -m devnet_jax.main`."""
    sys.argv = with_saved_settings(sys.argv)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    console()
