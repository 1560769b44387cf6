"""The command line of a launcher: its flags, `--`, then the arguments of `devnet_jax.main`."""

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

# Flags of `devnet_jax.main` that a launcher sets.
_LAUNCHER_FLAGS = ("cluster", "coordinator", "num_processes", "process_id")
# Flags of `devnet_jax.main` that users give to the launcher by mistake.
_MAIN_FLAGS = ("config", "workdir", "mode", "input", "output")

flags.DEFINE_string("config", None, f"An argument of {MAIN}; give it after {SEPARATOR}.")


def require_flag(flag: str, value: T | None) -> T:
    """Returns the value of a flag; raises `UserError` with its help if it is missing or empty."""
    if not value:
        raise UserError(f"--{flag} is missing: {flags.FLAGS[flag].help}")
    return value


def run_launcher(main: Callable[[list[str]], Any]) -> None:
    """Runs the `main` of a launcher with the arguments after `--`; exits with its return value.

    A `UserError` ends the launcher with a line on stderr and status 1.
    """
    launcher_argv, arguments = split_argv(sys.argv)
    for argument in launcher_argv[1:]:
        if _name(argument).partition(".")[0] in _MAIN_FLAGS:
            sys.exit(f"error: {argument}: an argument of {MAIN}; give it after {SEPARATOR}")
    sys.argv = launcher_argv

    def check_and_run() -> Any:
        require_arguments(arguments)
        return main(arguments)

    run_program(check_and_run)


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the parts of a command line before and after the first `--`."""
    argv = list(argv)
    index = argv.index(SEPARATOR) if SEPARATOR in argv else len(argv)
    return argv[:index], argv[index + 1 :]


def require_arguments(arguments: Sequence[str]) -> None:
    """Raises `UserError` if there are no arguments, or one is a flag that the launcher sets."""
    if not arguments:
        raise UserError(
            f"the arguments of {MAIN} are missing; they come after {SEPARATOR}, such as "
            f"{SEPARATOR} --config=configs/quickstart.py --workdir=runs/quickstart"
        )
    for argument in arguments:
        if _name(argument) in _LAUNCHER_FLAGS:
            raise UserError(
                f"{argument}: after {SEPARATOR}, leave out --{_name(argument)}; the launcher "
                "sets it"
            )


def find_workdir(arguments: Sequence[str]) -> str | None:
    """Returns the last `--workdir` among the arguments of `devnet_jax.main`, or `None`."""
    workdir = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if _name(argument) == "workdir":
            workdir = argument.partition("=")[2] if "=" in argument else following
    return workdir


def is_bucket(path: str) -> bool:
    """Returns True if a path is in a bucket, which all hosts can read and write."""
    return "://" in path


def main_command(python: str, process_flags: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Returns the command of one process.

    Args:
      python: Python interpreter.
      process_flags: flags that the launcher sets for this process. They come first, so that a last
        argument without its value, such as `--workdir`, cannot take one of them as its value.
      arguments: arguments of the user, unchanged.
    """
    return [python, "-m", MAIN, *process_flags, *arguments]


def _name(argument: str) -> str:
    """Returns the flag name of an argument, or an empty string if it is not a flag."""
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""
