"""The command line of all programs: parses the flags, starts logging, reports errors."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
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
from devnet_jax.errors import UserError, printable

_FULL_OR_DENIED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)


def flag_names(argv: Sequence[str]) -> list[str]:
    """Returns the flag name of each argument of a command line."""
    return [argument.lstrip("-").split("=", 1)[0] for argument in argv]


def run_program(main: Callable[[], Any]) -> None:
    """Parses the flags and runs the program.

    A `UserError` ends it with a line on stderr and status 1; SIGTERM with status 75
    (`devnet_jax.distributed.exit_status`).

    Args:
      main: function of the program, which must define the flag `config`: a config file, or `None`.
    """
    stop_on_sigterm()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not valid UTF-8

    def check_and_run(argv: Sequence[str]) -> Any:
        if len(argv) > 1:
            raise UserError(
                f"{argv[1]}: not a flag; settings are given as --config.name=value, patterns in "
                "quotes"
            )
        result = main()
        sys.stdout.flush()
        return result

    with _report_errors():
        app.run(check_and_run, flags_parser=_parse_flags)


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _exit_with_error(str(error))
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
        os._exit(ERROR)
    except OSError as error:
        if error.errno not in _FULL_OR_DENIED:
            raise
        path = error.filename or "writing the results"
        _exit_with_error(f"{path}: {error.strerror}; free disk space, or change the permissions")
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # a normal exit would wait in JAX for the other processes of the run
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(RESUME)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; exits with a line on stderr if absl or ml_collections refuses one."""
    try:
        for argument in argv[1:]:
            override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
            if override:
                require_setting(override[1])
        remaining = flags.FLAGS(argv)
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # ml_collections opens the file at its first use
    except FileNotFoundError as error:
        _exit_with_error(f"{error.filename}: no such file")
    except OSError:
        given = [argument for argument in argv if re.match(r"--?config=", argument)]
        _exit_with_error(f"{given[-1] if given else '--config'}: no such config file")
    except (UserError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _exit_with_error(str(error).strip().splitlines()[-1])
    _start_logging(verbose=flags.FLAGS.verbosity >= 1)
    return remaining


def with_absolute_paths(config: Config) -> Config:
    """Returns the settings with absolute paths, so that they are valid in any folder."""

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
    """Logs the package's messages without prefixes, and only the errors of the libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLineFormatter("%(message)s"))
    handler.addFilter(_SaidOnce())
    absl_logging.set_verbosity(absl_logging.ERROR)
    package = logging.getLogger("devnet_jax")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if verbose else logging.INFO)
    package.propagate = False


class _SaidOnce(logging.Filter):
    """Drops repeated messages about the data, which a command may open several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("devnet_jax.data."):
            return True
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


class _OneLineFormatter(logging.Formatter):
    """Formats a record as one line, whatever the file names in it contain."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _exit_with_error(message: str) -> NoReturn:
    """Ends the process with a line on stderr and the status `ERROR`."""
    print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: threads left by a failed restore would print tracebacks as Python shuts down.
    # All files are closed by now.
    os._exit(ERROR)
