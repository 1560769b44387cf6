"""What every program of this package does on the command line: flags, log, errors for people."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from devnet_jax.config import Config, require_setting
from devnet_jax.distributed.exit_status import ERROR, INTERRUPTED, RESUME
from devnet_jax.distributed.stopping import Stopped, stop_on_sigterm
from devnet_jax.errors import UserError

FULL_OR_FORBIDDEN = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)


def flag_names(argv: Sequence[str]) -> list[str]:
    """The names of the flags on a command line, in the places of its arguments."""
    return [argument.lstrip("-").split("=", 1)[0] for argument in argv]


def run_program(main: Callable[[], Any]) -> None:
    """Parses the flags and runs the program; a user's mistake ends it with one line and status 1,
    SIGTERM with status 75 (`devnet_jax.distributed.exit_status`).

    The program has a flag `config`: a file of settings, or None.
    """
    stop_on_sigterm()

    def reported(argv: Sequence[str]) -> Any:
        if len(argv) > 1:
            raise UserError(
                f"{argv[1]}: not a flag; settings are given as --config.name=value, patterns in "
                "quotes"
            )
        result = main()
        sys.stdout.flush()
        return result

    with _errors_for_people():
        app.run(reported, flags_parser=_parse_flags)


@contextlib.contextmanager
def _errors_for_people() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _end(str(error))
    except BrokenPipeError:  # whoever read our words has heard enough
        os._exit(ERROR)
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN:
            raise
        place = error.filename or "writing the results"
        _end(f"{place}: {error.strerror}; make room there, or allow it")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what was saved", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # JAX would wait for the other processes of the run
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(RESUME)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with one readable line for what it and ml_collections refuse."""
    try:
        for argument in argv[1:]:
            override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
            if override:
                require_setting(override[1])
        remaining = flags.FLAGS(argv)
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # ml_collections reports a missing file at the first use only
    except FileNotFoundError as error:
        _end(f"{error.filename}: no such file")
    except OSError:
        given = [argument for argument in argv if re.match(r"--?config=", argument)]
        _end(f"{given[-1] if given else '--config'}: no such file of settings")
    except (UserError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _end(str(error).strip().splitlines()[-1])
    _start_logging(verbose=flags.FLAGS.verbosity >= 1)
    return remaining


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
    """Ends the program with one line and the status `ERROR`."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: all files are closed by now, and reader threads that a failed restore has left
    # behind would print tracebacks of their own while Python shuts down.
    os._exit(ERROR)
