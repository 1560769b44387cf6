"""Measures DevCore's AUROC on real data sets, by the number of labelled anomalies.

python benchmarks/detection.py --data=DATA --weights=resnet18.safetensors

DATA holds brain_mri/, elpv/ and mvtec/ as published; mvtec/ may hold any categories. Each cell is
trained and evaluated for all seeds, with the defaults of model.detector=devcore. Finished runs are
kept in detection.json, so that an interrupted measurement goes on. Writes detection.md and
detection.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from results_page import page_parser, provenance, table

from devnet_jax.runtime.startup import prepare

COMMAND = "python benchmarks/detection.py --data=DATA --weights=resnet18.safetensors"
GENERAL, CURVE_SHOTS = "general", (0, 1, 3, 5, 10)
MEASURES = ("image_auroc", "pixel_auroc_mean", "pixel_aupro")


class Cell(NamedTuple):
    """A data set, its setting ("general" or the known class) and the number of labels."""

    data_set: str
    category: str | None
    known_class: str | None
    shots: int

    @property
    def name(self) -> str:
        return self.category or self.data_set


def cells(data: Path, shots: Sequence[int]) -> Iterator[Cell]:
    """Yields all cells of the table."""
    categories = sorted(p.name for p in (data / "mvtec").iterdir() if p.is_dir())
    for data_set, category in [
        ("brain_mri", None),
        ("elpv", None),
        *(("mvtec_ad", category) for category in categories),
    ]:
        for count in shots:
            yield Cell(data_set, category, None, count)
    for known_class in ("mono", "poly"):
        yield Cell("elpv", None, known_class, max(shots))


def run(cell: Cell, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates one cell with one seed; returns its measures and seconds."""
    from devnet_jax.config import Config, for_dataset, with_settings
    from devnet_jax.evaluation.evaluate import evaluate
    from devnet_jax.runtime.workdir import Workdir
    from devnet_jax.training.run import train

    folder = "mvtec" if cell.data_set == "mvtec_ad" else cell.data_set
    config = with_settings(
        Config.from_dict(for_dataset(cell.data_set, cell.category)),
        {
            "seed": seed,
            "model.detector": "devcore",
            "model.pretrained": str(arguments.weights.absolute()),
            "dataset.manual_dir": str((arguments.data / folder).absolute()),
            "dataset.n_anomaly": cell.shots,
            "dataset.known_class": cell.known_class,
            **({} if cell.category else {"evaluation.explanation": "none"}),
        },
    )
    with tempfile.TemporaryDirectory() as workdir:
        started = time.perf_counter()
        train(config, Workdir(workdir))
        seconds = time.perf_counter() - started
        results = evaluate(config, Workdir(workdir))
    return {"seconds": seconds, **{name: results[name] for name in MEASURES if name in results}}


def measure(arguments: argparse.Namespace, file: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the results of all cells, a list over seeds; keeps finished runs in the file."""
    done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    results: dict[str, list[dict[str, Any]]] = {}
    for cell in cells(arguments.data, CURVE_SHOTS):
        for seed in arguments.seeds:
            key = f"{cell.name} {cell.known_class or GENERAL} {cell.shots} {seed}"
            if key not in done:
                done[key] = run(cell, seed, arguments)
                file.write_text(json.dumps(done, indent=1) + "\n")
                print(key, done[key], flush=True)
            setting = f"known class {cell.known_class}" if cell.known_class else GENERAL
            results.setdefault(f"{cell.name}|{setting}|{cell.shots}", []).append(done[key])
    return results


def summary(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Returns mean ± standard deviation of a measure over seeds; "" if it was not measured."""
    values = [run[name] for run in runs if name in run]
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def auroc_rows(results: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Yields the rows of the table of AUROCs: data set, setting, and a cell for each number."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for key, runs in results.items():
        name, setting, shots = key.split("|")
        rows.setdefault((name, setting), {})[int(shots)] = summary(runs, "image_auroc")
    for (name, setting), by_shots in rows.items():
        yield [name, setting, *(by_shots.get(shots, "") for shots in CURVE_SHOTS)]


def pixel_rows(results: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Yields the rows of the table of localisation, for data sets with masks."""
    for key, runs in results.items():
        name, setting, shots = key.split("|")
        if setting == GENERAL and "pixel_auroc_mean" in runs[0]:
            yield [name, shots, summary(runs, "pixel_auroc_mean"), summary(runs, "pixel_aupro")]


def draw(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draws AUROC against the number of labels, on a white or a dark page."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "devnet", "font.size": 10})
    grey = "#808080"  # readable on white and on black
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    names = dict.fromkeys(key.split("|")[0] for key in results)
    for name in names:
        runs = [results.get(f"{name}|{GENERAL}|{shots}", []) for shots in CURVE_SHOTS]
        values = [[run["image_auroc"] for run in of_shots] for of_shots in runs]
        means = [statistics.mean(v) for v in values]
        deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(range(len(CURVE_SHOTS)), means, deviations, label=name, marker="o", capsize=3)
    axes.set_xticks(range(len(CURVE_SHOTS)), [str(shots) for shots in CURVE_SHOTS])
    axes.set_xlabel("labelled anomalies")
    axes.set_ylabel("AUROC")
    legend = figure.legend(loc="outside right center", frameon=False)
    for text in [*legend.get_texts(), axes.xaxis.label, axes.yaxis.label]:
        text.set_color(grey)
    axes.tick_params(colors=grey)
    for spine in axes.spines.values():
        spine.set_color(grey)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measures all cells, and writes the page."""
    parser = page_parser("detection.py", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="file of ResNet-18's weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    arguments = parser.parse_args()
    prepare(batch_size=32)
    results = measure(arguments, arguments.output / "detection.json")
    seconds = [run["seconds"] for runs in results.values() for run in runs]
    page = "\n".join(
        [
            "# Detection by the number of labels\n",
            provenance(COMMAND),
            "AUROC on the test images, mean ± standard deviation over seeds "
            f"{', '.join(map(str, arguments.seeds))}; columns are numbers of labelled anomalies. "
            "Defaults of `model.detector=devcore`.\n",
            table(["data set", "setting", *CURVE_SHOTS], auroc_rows(results)),
            "\nLocalisation in anomalous test images: mean pixel AUROC over images, and AUPRO up "
            "to 30 % false positives.\n",
            table(["data set", "labels", "pixel AUROC", "AUPRO"], pixel_rows(results)),
            f"\nTraining took {min(seconds):.0f} to {max(seconds):.0f} s a run.\n",
        ]
    )
    (arguments.output / "detection.md").write_text(page)
    draw(results, arguments.output / "detection.svg")


if __name__ == "__main__":
    main()
