"""What the programs that write a results page share: arguments, the page's first lines, tables."""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from devnet_jax.runtime.host_devices import cpu_model, describe_devices
from devnet_jax.runtime.versions import software_versions


def page_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that knows where the page goes; the other arguments are still to be added."""
    parser = argparse.ArgumentParser(
        prog=f"benchmarks/{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser


def circumstances(command: str) -> str:
    """The date, the machine, the versions and the command, as a results page begins."""
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{describe_devices('cpu', 1, 'cpu')}, {cpu_model()}"
    return f"{today}, {machine}; {versions}.\n\n    {command}\n"


def command_line(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command that measures the same, wherever its results go."""
    words = ["python", parser.prog]
    for name, value in vars(arguments).items():
        if name != "output" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most of numbers; one number where all are the same. Integers are whole."""
    if all(isinstance(value, int) for value in values):
        digits = 0
    middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} – {high})"


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Rows of Markdown under their heads."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
