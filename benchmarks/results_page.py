"""Shared parts of the programs that write results pages: arguments, provenance and tables."""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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


class Line(NamedTuple):
    """A line of `draw_aurocs`.

    Attributes:
      name: name in the legend.
      values: AUROCs of all seeds at each place.
      colour: number of its colour; `None` for one of its own.
      is_dashed: True for a dashed line.
    """

    name: str
    values: Sequence[Sequence[float]]
    colour: int | None = None
    is_dashed: bool = False


def draw_aurocs(lines: Sequence[Line], places: Sequence[int], label: str, file: Path) -> None:
    """Draws means and deviations of AUROCs over seeds, on a white or a dark page.

    Args:
      lines: the lines.
      places: numbers at which they are known, drawn at equal distances.
      label: meaning of these numbers.
      file: path of the SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "devnet", "font.size": 10})
    grey = "#808080"  # readable on white and on black
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for i, line in enumerate(lines):
        means = [statistics.mean(v) for v in line.values]
        deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in line.values]
        axes.errorbar(
            range(len(means)),
            means,
            deviations,
            label=line.name,
            marker="o",
            capsize=3,
            color=f"C{i if line.colour is None else line.colour}",
            linestyle="dashed" if line.is_dashed else "solid",
        )
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set_xlabel(label)
    axes.set_ylabel("AUROC")
    legend = figure.legend(loc="outside right center", frameon=False)
    for text in [*legend.get_texts(), axes.xaxis.label, axes.yaxis.label]:
        text.set_color(grey)
    axes.tick_params(colors=grey)
    for spine in axes.spines.values():
        spine.set_color(grey)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
