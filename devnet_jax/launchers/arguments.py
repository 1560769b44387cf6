"""The command line of a launcher: its own flags, then `--`, then those of `devnet_jax.main`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

from devnet_jax.cli.flags import run_program
from devnet_jax.errors import UserError

T = TypeVar("T")

MAIN = "devnet_jax.main"
SEPARATOR = "--"

# What a launcher tells each process by itself.
_OF_THE_LAUNCHER = ("cluster", "coordinator", "num_processes", "process_id")
# What is easily given to the launcher by mistake.
_OF_MAIN = ("config", "workdir", "mode", "input", "output")

flags.DEFINE_string("config", None, f"An argument of {MAIN}: it is given after {SEPARATOR}.")


def required(flag: str, value: T | None) -> T:
    """The value of a flag; raises `UserError` with its help where it is missing or empty."""
    if not value:
        raise UserError(f"--{flag} is missing: {flags.FLAGS[flag].help}")
    return value


def run_launcher(main: Callable[[list[str]], Any]) -> None:
    """Runs a launcher's `main` with the arguments that come after `--`.

    A user's mistake ends it with one line and status 1; else its status is what `main` returns.
    """
    own, arguments = split(sys.argv)
    for argument in own[1:]:
        if _name(argument).partition(".")[0] in _OF_MAIN:
            sys.exit(f"error: {argument}: an argument of {MAIN}; give it after {SEPARATOR}")
    sys.argv = own

    def checked() -> Any:
        require_arguments(arguments)
        return main(arguments)

    run_program(checked)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A launcher's command line without, and only with, what comes after the first `--`."""
    argv = list(argv)
    place = argv.index(SEPARATOR) if SEPARATOR in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def require_arguments(arguments: Sequence[str]) -> None:
    """Raises `UserError` if there are none, or if they say what the launcher says."""
    if not arguments:
        raise UserError(
            f"the arguments of {MAIN} are missing; they come after {SEPARATOR}, such as "
            f"{SEPARATOR} --config=configs/quickstart.py --workdir=runs/quickstart"
        )
    for argument in arguments:
        if _name(argument) in _OF_THE_LAUNCHER:
            raise UserError(
                f"{argument}: after {SEPARATOR}, leave out --{_name(argument)}; the launcher tells "
                "each process by itself"
            )


def workdir_of(arguments: Sequence[str]) -> str | None:
    """The `--workdir` among the arguments of `devnet_jax.main`, the last if there are several."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if _name(argument) == "workdir":
            found = argument.partition("=")[2] if "=" in argument else following
    return found


def is_bucket(path: str) -> bool:
    """Whether a path is in a bucket, which every host sees."""
    return "://" in path


def main_command(python: str, own: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command of one process.

    Args:
      python: the interpreter.
      own: what the launcher tells the process. It comes first: whatever the arguments end with
        cannot take it for something else.
      arguments: the user's, unchanged.
    """
    return [python, "-m", MAIN, *own, *arguments]


def _name(argument: str) -> str:
    """The name of a flag; nothing if an argument is none."""
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""
