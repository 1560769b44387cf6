"""The charts of a report. Those that a threshold moves in say where their axes lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from scipy import stats
from sklearn import metrics

from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.axis import ScoreAxis, tick_label
from devnet_jax.report.html.figure import N_COLOURS, PAPER, SERIES, TEXT, style, to_svg
from devnet_jax.report.outcomes import Group

_SIZE = (5.0, 3.7)  # inches
_MAX_POINTS = 1000  # of a curve: more cannot be told apart
_CURVES = {  # of training: their key in metrics.jsonl, what they are called, their scale
    "loss": ("loss", "linear"),
    "gradient_norm": ("gradient norm", "linear"),
    "learning_rate": ("learning rate", "log"),
}


@dataclass(frozen=True)
class Frame:
    """Where data lies in an SVG: of its width and height, the box of the axes and their limits.

    The box is (left, top, right, bottom) in the SVG's units.
    """

    width: float
    height: float
    box: tuple[float, float, float, float]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]

    def x(self, value: float) -> float:
        """A value's place on the horizontal axis, in the SVG's units."""
        low, high = self.x_limits
        return self.box[0] + (value - low) / (high - low) * (self.box[2] - self.box[0])

    def y(self, value: float) -> float:
        """A value's place on the vertical axis, in the SVG's units."""
        low, high = self.y_limits
        return self.box[3] - (value - low) / (high - low) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Chart:
    """An <svg>, what it shows in words, and where its axes lie."""

    svg: str
    title: str
    description: str
    frame: Frame


@dataclass(frozen=True)
class Series:
    """A name in a chart's key, the index of its colour, and how many images it is of."""

    name: str
    colour: int
    n: int


def series(groups: Sequence[Group]) -> list[tuple[Series, list[Group]]]:
    """A colour for each class: the normal images' first; where there are too many, some share one.

    Returns:
      Each series with the classes in it. The last is of the rarest where they share.
    """
    normal = [one for one in groups if not one.is_anomaly]
    defects = sorted((one for one in groups if one.is_anomaly), key=lambda one: -len(one.scores))
    n_own = len(defects) if len(defects) < N_COLOURS else N_COLOURS - 2
    parts = [[one] for one in defects[:n_own]]
    names = [one.name for one in defects[:n_own]]
    if defects[n_own:]:
        parts.append(defects[n_own:])
        names.append(f"{len(defects[n_own:])} other classes")
    result = []
    if normal:
        name = "all images" if normal[0].is_anomaly is None else " + ".join(g.name for g in normal)
        result.append((Series(name, 0, sum(len(g.scores) for g in normal)), normal))
    for i, (name, part) in enumerate(zip(names, parts, strict=True), 1):
        result.append((Series(name, i, sum(len(g.scores) for g in part)), part))
    return result


def draw_histogram(
    groups: Sequence[Group],
    prior: tuple[float, float] | None,
    thresholds: Sequence[Threshold],
    axis: ScoreAxis,
) -> Chart:
    """The scores of the normal images above, of the defect classes below, stacked.

    The horizontal limits of its frame are positions on the axis.
    """
    coloured = series(groups)
    n = sum(len(one.scores) for one in groups)
    ends = axis.position(axis.low), axis.position(axis.high)
    edges = np.linspace(*ends, int(np.clip(3 * math.sqrt(n), 20, 60)) + 1)
    panels = [
        [(one, part) for one, part in coloured if (one.colour > 0) == is_anomaly]
        for is_anomaly in (False, True)
    ]
    panels = [panel for panel in panels if panel]
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            axes.hist(
                [np.concatenate([one.scores for one in part]) for _, part in panel],
                bins=axis.score(edges),
                stacked=True,
                color=[SERIES[one.colour] for one, _ in panel],
                linewidth=0,
            )
            axes.grid(visible=False, axis="x")
            axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
            axes.set_ylabel("images")
        if prior and panels[0][0][0].colour == 0:
            places = np.linspace(*ends, 300)
            scores = axis.score(places)
            # Of a bin around each place: the density, by the scores that the bin is wide.
            widths = (edges[1] - edges[0]) * axis.width * np.cosh(places)
            expected = panels[0][0][0].n * widths * stats.norm.pdf(scores, *prior)
            rows[0].plot(scores, expected, color=TEXT, linewidth=1.2, linestyle=":")
        figure.align_ylabels()
        rows[-1].set_xlabel("score")
        rows[-1].set_xscale("asinh", linear_width=axis.width)
        ticks = axis.ticks()
        rows[-1].xaxis.set_major_locator(FixedLocator(ticks))
        rows[-1].xaxis.set_major_formatter(
            FixedFormatter([tick_label(x).replace("-", "\N{MINUS SIGN}") for x in ticks])
        )
        rows[-1].xaxis.set_minor_locator(NullLocator())
        rows[-1].set_xlim(axis.low, axis.high)
        for axes in rows:
            for one in thresholds:
                axes.axvline(one.value, color=TEXT, linewidth=1, linestyle="--", alpha=0.7)
        for rank, one in enumerate(sorted(thresholds, key=lambda one: one.value)):
            rows[0].annotate(
                one.kind,
                (one.value, 0.97),
                (3 if rank else -3, 0),
                xycoords=rows[0].get_xaxis_transform(),
                textcoords="offset points",
                rotation=90,
                ha="left" if rank else "right",
                va="top",
                fontsize=9,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            )
        svg = to_svg(figure, "histogram")
        top, bottom = _frame(figure, rows[0]), _frame(figure, rows[-1])
    box = (top.box[0], top.box[1], top.box[2], bottom.box[3])
    frame = Frame(top.width, top.height, box, (float(ends[0]), float(ends[1])), (0, 1))
    described = "; ".join(
        f"{one.name}: {one.n:,} from {min(g.scores[0] for g in part):.3f} "
        f"to {max(g.scores[-1] for g in part):.3f}"
        for one, part in coloured
    )
    return Chart(svg, "Scores", f"Histogram of scores. {described}", frame)


def draw_roc(labels: np.ndarray, scores: np.ndarray) -> Chart:
    """The ROC curve, of int [N] labels of both kinds and float [N] scores."""
    false_alarms, found, _ = metrics.roc_curve(labels, scores)
    area = metrics.roc_auc_score(labels, scores)
    with style():
        figure, axes = _unit_square("false-alarm rate", "anomalies found")
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
        axes.plot(*_thinned(false_alarms, found), color=SERIES[0], linewidth=2)
        svg = to_svg(figure, "roc")
    description = f"ROC curve, area {area:.4f}"
    return Chart(svg, f"ROC curve: area {area:.4f}", description, _frame(figure, axes))


def draw_precision_recall(labels: np.ndarray, scores: np.ndarray) -> Chart:
    """The precision–recall curve, of int [N] labels of both kinds and float [N] scores."""
    precision, recall, _ = metrics.precision_recall_curve(labels, scores, drop_intermediate=True)
    area = metrics.average_precision_score(labels, scores)
    with style():
        figure, axes = _unit_square("recall (anomalies found)", "precision")
        share = float(np.mean(labels == 1))
        axes.axhline(share, color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
        points = _thinned(recall, precision)
        axes.plot(*points, color=SERIES[0], linewidth=2, drawstyle="steps-post")
        svg = to_svg(figure, "precision-recall")
    title = f"Precision and recall: average precision {area:.4f}"
    return Chart(svg, title, f"Precision–recall curve, {title}", _frame(figure, axes))


def draw_training(history: Sequence[Mapping[str, float]]) -> Chart | None:
    """Loss, gradient norm and learning rate over the steps; `None` where nothing was recorded."""
    curves = {}
    for key, (name, scale) in _CURVES.items():
        points = [
            (record["step"], record[key])
            for record in history
            if key in record and math.isfinite(record[key])
        ]
        if points:
            curves[name] = (scale, np.array(points).T)
    if not curves:
        return None
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        rows = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
        for i, (axes, (name, (scale, (steps, values)))) in enumerate(
            zip(rows, curves.items(), strict=True)
        ):
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, values, color=SERIES[i], marker=marker, linewidth=1.5)
            if scale == "log" and values.min() > 0:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:.0e}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(name.replace(" ", "\n"))
        figure.align_ylabels()
        rows[-1].set_xlabel("step")
        svg = to_svg(figure, "training")
    last = "; ".join(
        f"{name} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, (_, (_, values)) in curves.items()
    )
    return Chart(svg, "Training", f"Training curves: {last}", _frame(figure, rows[0]))


def _unit_square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return figure, axes


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most _MAX_POINTS of a curve, its ends among them."""
    if len(x) <= _MAX_POINTS:
        return x, y
    kept = np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int)
    return x[kept], y[kept]


def _frame(figure: Figure, axes: Axes) -> Frame:
    """Of a figure that has been written: its layout is known only then."""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    place = axes.get_position()
    box = (
        place.x0 * width,
        (1 - place.y1) * height,
        place.x1 * width,
        (1 - place.y0) * height,
    )
    return Frame(width, height, box, axes.get_xlim(), axes.get_ylim())
