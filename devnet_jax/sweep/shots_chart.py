"""Draws image AUROC over the number of labelled anomalies as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from devnet_jax.report.html import figure as html_figure
from devnet_jax.report.html.figure import N_COLOURS, SERIES, TEXT

Points = Mapping[int, tuple[float, float | None]]  # mean and standard deviation, by shots


def draw_shots(ours: Mapping[str, Points], published: Mapping[str, Points], name: str) -> str:
    """Returns a chart as an <svg> element.

    Args:
      ours: points of our curves, by label, at least one curve; drawn as lines with a band of one
        standard deviation.
      published: points of published methods, by label; drawn as markers with error bars.
      name: name of the chart, unique on the page; prefix of the identifiers in the SVG.
    """
    with html_figure.style():
        legend_rows = math.ceil((len(ours) + len(published)) / 2)
        figure = Figure(figsize=(5, 2.9 + 0.22 * legend_rows), layout="constrained")
        axes = figure.add_subplot()
        for i, (label, points) in enumerate(ours.items()):
            shots, means, stds = _arrays(points)
            colour = SERIES[i % N_COLOURS]
            line = ("-", "--", ":")[i // N_COLOURS % 3]
            marker = "os^Dv<>P"[i % N_COLOURS]
            axes.plot(shots, means, color=colour, linestyle=line, marker=marker, label=label)
            low = [mean - std for mean, std in zip(means, stds, strict=True)]
            high = [mean + std for mean, std in zip(means, stds, strict=True)]
            axes.fill_between(shots, low, high, color=colour, alpha=0.15, linewidth=0)
        all_shots = sorted({n for points in ours.values() for n in points})
        for i, (label, points) in enumerate(published.items()):
            shots, means, stds = _arrays(points)
            smallest = next(n for n in all_shots if n)
            shift = (all_shots[-1] / smallest) ** (0.02 * (i + 1))  # to keep ours visible
            axes.errorbar(
                [n * shift for n in shots],
                means,
                stds,
                color=TEXT,
                linestyle="none",
                marker="Ds"[i % 2],
                markersize=6,
                markerfacecolor="none",
                capsize=3,
                label=label,
                zorder=3,
            )
        _format_axes(axes, all_shots)
        figure.legend(loc="outside lower center", ncols=2)
        return html_figure.to_svg(figure, name)


def _arrays(points: Points) -> tuple[list[int], list[float], list[float]]:
    shots = sorted(points)
    return shots, [points[n][0] for n in shots], [points[n][1] or 0.0 for n in shots]


def _format_axes(axes: Axes, shots: Sequence[int]) -> None:
    axes.set_xlabel("labelled anomalies")
    axes.set_ylabel("image AUROC")
    if shots[0]:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=1)  # linear from 0 to 1
    axes.xaxis.set_major_locator(FixedLocator(shots))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, min(top, 1 + 0.03 * (1 - bottom)))  # AUROC is at most 1
