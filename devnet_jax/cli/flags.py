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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from devnet_jax.config import Config, require_setting
from devnet_jax.distributed.exit_status import ERROR, INTERRUPTED, RESUME
from devnet_jax.distributed.stopping import Stopped, stop_on_sigterm
from devnet_jax.errors import UserError, printable
from devnet_jax.runtime.accounts import expand_home

_SYSTEM_FAULTS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
)
_TOO_MANY_FILES = "raise the limit of open files (ulimit -n)"
_HINTS = {
    errno.ENAMETOOLONG: "use shorter names",
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
}


def flag_names(argv: Sequence[str]) -> list[str]:
    """Returns the flag name of each argument of a command line."""
    return [argument.lstrip("-").split("=", 1)[0] for argument in argv]


def with_mode(argv: Sequence[str], modes: Iterable[str]) -> list[str]:
    """Returns the command line with `--mode=predict` for a first word `predict`, and others."""
    program, *arguments = argv
    if arguments and arguments[0] in modes:
        arguments[0] = f"--mode={arguments[0]}"
    return [program, *arguments]


def run_program(main: Callable[[], Any]) -> None:
    """Parses the flags and runs the program.

    A `UserError` ends it with a line on stderr and status 1; SIGTERM with status 75
    (`devnet_jax.distributed.exit_status`).

    Args:
      main: function of the program, which must define the flag `config`: a config file, or `None`.
    """
    _prepare_standard_streams()
    _show_warnings()
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


def _prepare_standard_streams() -> None:
    """Makes the standard streams take all that is written to them.

    Opens the null device in place of a stream that the caller has closed. Otherwise Python has no
    `sys.stdout`, and the next file opened takes the number of the stream, so that a library's
    messages on standard error end up in it. Characters that the encoding of standard output lacks,
    as in the locale C, are written as \\u escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_warnings() -> None:
    """Lets PYTHONWARNINGS=error raise no error: the libraries warn when they are imported."""
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")
        for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            warnings.simplefilter("ignore", ignored)


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _exit_with_error(str(error))
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
        os._exit(ERROR)
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename is None:  # raised by os.getcwd
            _exit_with_error("the current folder does not exist any more; change to another one")
        if error.errno not in _SYSTEM_FAULTS:
            raise
        path = error.filename or "standard output, or a file of the results"
        hint = _HINTS.get(error.errno, "free disk space, or change the permissions")
        _exit_with_error(f"{path}: {error.strerror}; {hint}")
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
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            _exit_with_error(
                f"--{error.flagname}: there are no settings to change; give --config, or the "
                "--workdir of a run (an exported file keeps its settings)"
            )
        _exit_with_error(str(error).strip().splitlines()[-1])
    except (UserError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _exit_with_error(str(error).strip().splitlines()[-1])
    _start_logging(verbose=flags.FLAGS.verbosity >= 1)
    return remaining


def with_absolute_paths(config: Config) -> Config:
    """Returns the settings with absolute paths, so that they are valid in any folder."""

    def absolute(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        return str(expand_home(path).absolute())

    dataset = dataclasses.replace(
        config.dataset,
        manual_dir=absolute(config.dataset.manual_dir),
        labels=absolute(config.dataset.labels),
        data_dir=absolute(config.dataset.data_dir),
    )
    pretrained = config.model.pretrained
    if pretrained not in ("imagenet", "none"):
        pretrained = absolute(pretrained) or pretrained
    model = dataclasses.replace(config.model, pretrained=pretrained)
    return dataclasses.replace(config, dataset=dataset, model=model)


def _start_logging(verbose: bool) -> None:
    """Logs the package's messages without prefixes, and only the errors of the libraries."""
    handler = _HandlerBesideBars()
    handler.setFormatter(_OneLineFormatter("%(message)s"))
    handler.addFilter(_SaidOnce())
    absl_logging.set_verbosity(absl_logging.ERROR)
    package = logging.getLogger("devnet_jax")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG if verbose else logging.INFO)
    package.propagate = False


class _HandlerBesideBars(logging.StreamHandler[Any]):
    """Writes to standard error; on a terminal above the bars of phases, not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.stream.isatty():
            super().emit(record)
            return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


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
