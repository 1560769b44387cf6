"""The charts of a report, with the position of their axes for the moving threshold marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator
from scipy import stats
from sklearn import metrics

from devnet_jax.evaluation.intervals import auroc_interval, average_precision_interval
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.axis import ScoreAxis, tick_label
from devnet_jax.report.colours import NORMAL, OTHERS, choose_colours
from devnet_jax.report.digits import format_measure, format_score
from devnet_jax.report.html.figure import PAPER, SERIES, TEXT, style, to_svg
from devnet_jax.report.outcomes import Group

_SIZE = (5.0, 3.7)  # inches
_MAX_POINTS = 1000  # per curve; more make no visible difference
_MAX_DOTS = 4000  # of a scatter chart
_TRAINING_CURVES = {  # key in metrics.jsonl: name, scale
    "loss": ("loss", "linear"),
    "gradient_norm": ("gradient norm", "linear"),
    "learning_rate": ("learning rate", "log"),
}


@dataclass(frozen=True)
class Frame:
    """The position of a chart's axes in its SVG.

    Attributes:
      width: width of the SVG.
      height: height of the SVG.
      box: (left, top, right, bottom) of the axes, in units of the SVG.
      x_limits: data values at the left and the right edge of the axes.
      y_limits: data values at the bottom and the top edge of the axes.
    """

    width: float
    height: float
    box: tuple[float, float, float, float]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]

    def x(self, value: float) -> float:
        """Returns the horizontal position of a value, in units of the SVG."""
        low, high = self.x_limits
        return self.box[0] + (value - low) / (high - low) * (self.box[2] - self.box[0])

    def y(self, value: float) -> float:
        """Returns the vertical position of a value, in units of the SVG."""
        low, high = self.y_limits
        return self.box[3] - (value - low) / (high - low) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
      svg: <svg> element.
      title: title above the chart.
      description: text for screen readers.
      frame: position of the axes.
    """

    svg: str
    title: str
    description: str
    frame: Frame


@dataclass(frozen=True)
class Series:
    """An entry in the key of the histogram.

    Attributes:
      name: name of the class or classes.
      colour: index of the colour; 0 is that of normal images.
      n: number of images.
    """

    name: str
    colour: int
    n: int


def make_series(groups: Sequence[Group]) -> list[tuple[Series, list[Group]]]:
    """Assigns a colour to each class (`choose_colours`), normal images first.

    Returns:
      Each series with its classes, those of most images first. If there are more classes than
      colours, the last series has all of the rarest classes.
    """
    normal = [group for group in groups if not group.is_anomaly]
    defects = sorted(
        (group for group in groups if group.is_anomaly), key=lambda group: -len(group.scores)
    )
    single, others = defects, []
    if len(defects) > OTHERS:
        single, others = defects[: OTHERS - 1], defects[OTHERS - 1 :]
    colours = choose_colours([group.name for group in single])
    parts = [(group.name, colours[group.name], [group]) for group in single]
    if others:
        parts.append((f"{len(others)} other classes", OTHERS, others))
    result = []
    if normal:
        name = "all images" if normal[0].is_anomaly is None else " + ".join(g.name for g in normal)
        result.append((Series(name, NORMAL, sum(len(g.scores) for g in normal)), normal))
    for name, colour, part in parts:
        result.append((Series(name, colour, sum(len(g.scores) for g in part)), part))
    return result


def draw_histogram(
    groups: Sequence[Group],
    prior: tuple[float, float] | None,
    thresholds: Sequence[Threshold],
    axis: ScoreAxis,
) -> Chart:
    """Draws histograms of scores: normal images above, defect classes below.

    Args:
      groups: scores of each class.
      prior: mean and standard deviation of the prior, drawn as the expected histogram of normal
        images; `None` to omit it.
      thresholds: thresholds, drawn as vertical lines.
      axis: horizontal axis; the horizontal limits of the chart's frame are positions on it.
    """
    all_series = make_series(groups)
    n = sum(len(group.scores) for group in groups)
    ends = axis.position(axis.low), axis.position(axis.high)
    edges = np.linspace(*ends, int(np.clip(3 * math.sqrt(n), 20, 60)) + 1)
    panels = [
        [(entry, part) for entry, part in all_series if (entry.colour > 0) == is_anomaly]
        for is_anomaly in (False, True)
    ]
    panels = [panel for panel in panels if panel]
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            axes.hist(
                [np.concatenate([group.scores for group in part]) for _, part in panel],
                bins=axis.score(edges),
                stacked=True,
                color=[SERIES[entry.colour] for entry, _ in panel],
                linewidth=0,
            )
            axes.grid(visible=False, axis="x")
            axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
            axes.set_ylabel("images")
        if prior and panels[0][0][0].colour == 0:
            positions = np.linspace(*ends, 300)
            scores = axis.score(positions)
            # Expected count of a bin around each position: density × width of the bin in scores.
            widths = (edges[1] - edges[0]) * axis.linear_width * np.cosh(positions)
            expected = panels[0][0][0].n * widths * stats.norm.pdf(scores, *prior)
            rows[0].plot(scores, expected, color=TEXT, linewidth=1.2, linestyle=":")
        figure.align_ylabels()
        rows[-1].set_xlabel("score")
        rows[-1].set_xscale("asinh", linear_width=axis.linear_width)
        _set_ticks(rows[-1].xaxis, axis)
        rows[-1].set_xlim(axis.low, axis.high)
        for axes in rows:
            for threshold in thresholds:
                axes.axvline(threshold.value, color=TEXT, linewidth=1, linestyle="--", alpha=0.7)
        for rank, threshold in enumerate(sorted(thresholds, key=lambda each: each.value)):
            # Of three, the one in the middle is at the bottom, where it covers no other.
            is_middle = 0 < rank < len(thresholds) - 1
            rows[0].annotate(
                threshold.kind,
                (threshold.value, 0.05 if is_middle else 0.97),
                (3 if rank else -3, 0),
                xycoords=rows[0].get_xaxis_transform(),
                textcoords="offset points",
                rotation=90,
                ha="left" if rank else "right",
                va="bottom" if is_middle else "top",
                fontsize=9,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            )
        svg = to_svg(figure, "histogram")
        top, bottom = _measure_frame(figure, rows[0]), _measure_frame(figure, rows[-1])
    box = (top.box[0], top.box[1], top.box[2], bottom.box[3])
    frame = Frame(top.width, top.height, box, (float(ends[0]), float(ends[1])), (0, 1))
    ranges = "; ".join(
        f"{entry.name}: {entry.n:,} from {format_score(min(g.scores[0] for g in part))} "
        f"to {format_score(max(g.scores[-1] for g in part))}"
        for entry, part in all_series
    )
    return Chart(svg, "Scores", f"Histogram of scores. {ranges}", frame)


def draw_roc(labels: np.ndarray, scores: np.ndarray) -> Chart:
    """Draws the ROC curve.

    Args:
      labels: int [N], 0 normal or 1 anomalous, with both present.
      scores: float [N].
    """
    false_alarms, found, _ = metrics.roc_curve(labels, scores)
    area = metrics.roc_auc_score(labels, scores)
    with style():
        figure, axes = _unit_square("false-alarm rate", "anomalies found")
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
        axes.plot(*_subsample(false_alarms, found), color=SERIES[0], linewidth=2)
        svg = to_svg(figure, "roc")
    n_anomaly = int(np.sum(labels == 1))
    measured = format_measure(area, auroc_interval(area, len(labels) - n_anomaly, n_anomaly))
    frame = _measure_frame(figure, axes)
    return Chart(svg, f"ROC curve: area {measured}", f"ROC curve, area {measured}", frame)


def draw_precision_recall(labels: np.ndarray, scores: np.ndarray) -> Chart:
    """Draws the precision–recall curve; arguments as for `draw_roc`."""
    precision, recall, _ = metrics.precision_recall_curve(labels, scores, drop_intermediate=True)
    area = metrics.average_precision_score(labels, scores)
    with style():
        figure, axes = _unit_square("recall (anomalies found)", "precision")
        share = float(np.mean(labels == 1))
        axes.axhline(share, color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
        points = _subsample(recall, precision)
        axes.plot(*points, color=SERIES[0], linewidth=2, drawstyle="steps-post")
        svg = to_svg(figure, "precision-recall")
    measured = format_measure(area, average_precision_interval(area, int(np.sum(labels == 1))))
    title = f"Precision and recall: average precision {measured}"
    return Chart(svg, title, f"Precision–recall curve, {title}", _measure_frame(figure, axes))


def draw_training(history: Sequence[Mapping[str, float]]) -> Chart | None:
    """Draws loss, gradient norm and learning rate over the steps; `None` without records."""
    curves = {}
    for key, (name, scale) in _TRAINING_CURVES.items():
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
    ranges = "; ".join(
        f"{name} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, (_, (_, values)) in curves.items()
    )
    return Chart(svg, "Training", f"Training curves: {ranges}", _measure_frame(figure, rows[0]))


def draw_scatter(
    x: np.ndarray,
    y: np.ndarray,
    colours: np.ndarray,
    axes_of_scores: tuple[ScoreAxis, ScoreAxis],
    thresholds: tuple[float | None, float | None],
    names: tuple[str, str],
) -> Chart:
    """Draws the scores of two detectors on the same images against each other.

    Args:
      x: float [N], scores of the first detector.
      y: float [N], scores of the second.
      colours: int [N], index of the colour of each image; normal images have 0.
      axes_of_scores: horizontal and vertical axis.
      thresholds: threshold of each detector, drawn as a line; `None` to omit it.
      names: names of the detectors.
    """
    shown = np.arange(len(x))
    if len(x) > _MAX_DOTS:
        shown = np.linspace(0, len(x) - 1, _MAX_DOTS).round().astype(int)
    shown = shown[np.argsort(colours[shown], kind="stable")]  # anomalies over normal images
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel=f"score of {names[0]}", ylabel=f"score of {names[1]}")
        axes.scatter(
            x[shown],
            y[shown],
            s=16,
            c=[SERIES[colour] for colour in colours[shown]],
            alpha=0.7,
            linewidths=0,
        )
        across, up = axes_of_scores
        axes.set_xscale("asinh", linear_width=across.linear_width)
        axes.set_yscale("asinh", linear_width=up.linear_width)
        _set_ticks(axes.xaxis, across)
        _set_ticks(axes.yaxis, up)
        axes.set_xlim(across.low, across.high)
        axes.set_ylim(up.low, up.high)
        if thresholds[0] is not None:
            axes.axvline(thresholds[0], color=TEXT, linewidth=1, linestyle="--", alpha=0.7)
        if thresholds[1] is not None:
            axes.axhline(thresholds[1], color=TEXT, linewidth=1, linestyle="--", alpha=0.7)
        svg = to_svg(figure, "scatter")
    correlation = stats.spearmanr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else None
    description = f"Scores of {len(x):,} images by both detectors"
    if correlation is not None:
        description += f"; rank correlation {correlation:.3f}"
    return Chart(svg, "Score by score", description, _measure_frame(figure, axes))


def _set_ticks(axis: Axis, scores: ScoreAxis) -> None:
    ticks = scores.ticks()
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(
        FixedFormatter([tick_label(x).replace("-", "\N{MINUS SIGN}") for x in ticks])
    )
    axis.set_minor_locator(NullLocator())


def _unit_square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return figure, axes


def _subsample(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most _MAX_POINTS points of a curve, including both ends."""
    if len(x) <= _MAX_POINTS:
        return x, y
    kept = np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int)
    return x[kept], y[kept]


def _measure_frame(figure: Figure, axes: Axes) -> Frame:
    """Returns the position of the axes of a figure that was written, which sets its layout."""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    position = axes.get_position()
    box = (
        position.x0 * width,
        (1 - position.y1) * height,
        position.x1 * width,
        (1 - position.y0) * height,
    )
    return Frame(width, height, box, axes.get_xlim(), axes.get_ylim())
