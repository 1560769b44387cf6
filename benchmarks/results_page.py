"""Shared parts of the programs that write results pages: arguments, provenance and tables."""

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
    """Returns an argument parser with --output, the folder of the page."""
    parser = argparse.ArgumentParser(
        prog=f"benchmarks/{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), help="folder of the page"
    )
    return parser


def provenance(command: str) -> str:
    """Returns date, machine, software versions and command: the first lines of a results page."""
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{describe_devices('cpu', 1, 'cpu')}, {cpu_model()}"
    return f"{today}, {machine}; {versions}.\n\n    {command}\n"


def command_line(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """Returns the command that repeats the measurement, without --output."""
    words = ["python", parser.prog]
    for name, value in vars(arguments).items():
        if name != "output" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Formats the median, minimum and maximum of numbers; one number if all are the same."""
    if all(isinstance(value, int) for value in values):
        digits = 0
    middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} – {high})"


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
