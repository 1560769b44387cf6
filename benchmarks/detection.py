"""Measures DevCore's AUROC on real data sets, by the number of labels, beside the paper's network.

python benchmarks/detection.py --data=DATA --weights=resnet18.safetensors

DATA holds brain_mri/, elpv/ and mvtec/ as published; mvtec/ may hold any categories. Each cell is
trained and evaluated for all seeds, with the defaults of model.detector=devcore. With the most
labels, model.detector=devnet is measured as well, by a short protocol. Finished runs are kept in
detection.json, so that an interrupted measurement goes on; remove that file after a change of the
code. Writes detection.md and detection.svg after each cell, with all cells measured so far.
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

from results_page import Line, draw_aurocs, page_parser, provenance, table

from devnet_jax.runtime.startup import prepare
from devnet_jax.sweep.published import Setting, published_values

COMMAND = "python benchmarks/detection.py --data=DATA --weights=resnet18.safetensors"
GENERAL, CURVE_SHOTS = "general", (0, 1, 3, 5, 10)
KNOWN_CLASSES = ("mono", "poly")
MEASURES = ("image_auroc", "pixel_auroc_mean", "pixel_aupro")
# The paper's network as far as two CPU cores get in minutes: 200 steps instead of 1000.
SHORT_PROTOCOL = {"dataset.image_size": 224, "train.batch_size": 16, "train.epochs": 10}


class Cell(NamedTuple):
    """A detector, a data set, its known class or none, and the number of labels."""

    detector: str
    data_set: str
    category: str | None
    known_class: str | None
    shots: int

    @property
    def name(self) -> str:
        return self.category or self.data_set

    @property
    def setting(self) -> str:
        return f"known class {self.known_class}" if self.known_class else GENERAL


def cells(data: Path) -> Iterator[Cell]:
    """Yields all cells of the tables."""
    categories = sorted(p.name for p in (data / "mvtec").iterdir() if p.is_dir())
    data_sets = [("brain_mri", None), ("elpv", None), *(("mvtec_ad", c) for c in categories)]
    for data_set, category in data_sets:
        for shots in CURVE_SHOTS:
            yield Cell("devcore", data_set, category, None, shots)
    most = max(CURVE_SHOTS)
    for known_class in KNOWN_CLASSES:
        yield Cell("devcore", "elpv", None, known_class, most)
    for known_class in KNOWN_CLASSES:
        yield Cell("devnet", "elpv", None, known_class, most)
    for data_set, category in data_sets:
        yield Cell("devnet", data_set, category, None, most)


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
            "model.detector": cell.detector,
            "model.pretrained": str(arguments.weights.absolute()),
            "dataset.manual_dir": str((arguments.data / folder).absolute()),
            "dataset.n_anomaly": cell.shots,
            "dataset.known_class": cell.known_class,
            **(SHORT_PROTOCOL if cell.detector == "devnet" else {}),
            **({} if cell.category else {"evaluation.explanation": "none"}),
        },
    )
    with tempfile.TemporaryDirectory() as workdir:
        started = time.perf_counter()
        train(config, Workdir(workdir))
        seconds = time.perf_counter() - started
        results = evaluate(config, Workdir(workdir))
    return {"seconds": seconds, **{name: results[name] for name in MEASURES if name in results}}


def measure(
    arguments: argparse.Namespace, file: Path
) -> Iterator[dict[Cell, list[dict[str, Any]]]]:
    """Yields the results so far after each cell, a list over seeds; keeps runs in the file."""
    done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    results: dict[Cell, list[dict[str, Any]]] = {}
    for cell in cells(arguments.data):
        for seed in arguments.seeds:
            setting = cell.known_class or GENERAL
            key = f"{cell.detector} {cell.name} {setting} {cell.shots} {seed}"
            if key not in done:
                done[key] = run(cell, seed, arguments)
                file.write_text(json.dumps(done, indent=1) + "\n")
                print(key, done[key], flush=True)
            results.setdefault(cell, []).append(done[key])
        yield results


def summary(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Returns mean ± standard deviation of a measure over seeds; "" if it was not measured."""
    return mean_and_deviation([run[name] for run in runs if name in run])


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation as text; "" without values."""
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def auroc_rows(results: dict[Cell, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Yields the rows of the table of DevCore's AUROCs: data set, and a cell for each number."""
    rows: dict[str, list[str]] = {}
    for cell, runs in results.items():
        if cell.detector == "devcore" and not cell.known_class:
            rows.setdefault(cell.name, [cell.name]).append(summary(runs, "image_auroc"))
    yield from rows.values()


def comparison_rows(results: dict[Cell, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Yields the rows of both detectors with the most labels, beside published values."""
    hard: dict[str, list[list[list[float]]]] = {}
    for cell, runs in results.items():
        if cell.detector != "devcore" or cell.shots != max(CURVE_SHOTS):
            continue
        both = (runs, results.get(cell._replace(detector="devnet"), []))
        values = [[run["image_auroc"] for run in of_detector] for of_detector in both]
        published = ["", ""]
        if not cell.known_class:
            published = published_figures(cell.data_set, cell.category or "", "general")
        yield [cell.name, cell.setting, *map(mean_and_deviation, values), *published]
        if cell.known_class:
            hard.setdefault(cell.name, []).append(values)
    for name, by_class in hard.items():
        # The mean over the known classes, seed by seed; of each detector.
        means = [
            mean_and_deviation([statistics.mean(seeds) for seeds in zip(*values, strict=False)])
            for values in zip(*by_class, strict=True)
        ]
        yield [name, "mean of the known classes", *means, *published_figures(name, "", "hard")]


def published_figures(data_set: str, category: str, setting: Setting) -> list[str]:
    """Returns DevNet's published AUROC with ten labels, and the best published one."""
    values = published_values(data_set, category, setting=setting, n_anomaly=max(CURVE_SHOTS))
    if not values:
        return ["", ""]
    best = max(values, key=lambda value: value.mean)
    devnet = next(value for value in values if value.method == "DevNet")
    return [f"{devnet.mean:.3f} ± {devnet.std:.3f}", f"{best.mean:.3f} ({best.method})"]


def pixel_rows(results: dict[Cell, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Yields the rows of the table of localisation, for data sets with masks."""
    for cell, runs in results.items():
        if not cell.known_class and "pixel_auroc_mean" in runs[0]:
            measures = [summary(runs, name) for name in ("pixel_auroc_mean", "pixel_aupro")]
            yield [cell.name, cell.detector, str(cell.shots), *measures]


def draw(results: dict[Cell, list[dict[str, Any]]], file: Path) -> None:
    """Draws AUROC against the number of labels."""
    curves: dict[str, list[list[float]]] = {}
    for cell, runs in results.items():
        if cell.detector == "devcore" and not cell.known_class:
            curves.setdefault(cell.name, []).append([run["image_auroc"] for run in runs])
    lines = [Line(name, values) for name, values in curves.items()]
    draw_aurocs(lines, CURVE_SHOTS, "labelled anomalies", file)


def write_page(
    results: dict[Cell, list[dict[str, Any]]], seeds: Sequence[int], output: Path
) -> None:
    """Writes the page and its figure."""
    seconds = [
        run["seconds"] for c, runs in results.items() if c.detector == "devcore" for run in runs
    ]
    page = "\n".join(
        [
            "# Detection by the number of labels\n",
            provenance(COMMAND),
            "AUROC on the test images, mean ± standard deviation over seeds "
            f"{', '.join(map(str, seeds))}; columns are numbers of labelled anomalies. "
            "Defaults of `model.detector=devcore`, general setting.\n",
            table(["data set", *CURVE_SHOTS], auroc_rows(results)),
            f"\nWith {max(CURVE_SHOTS)} labels, beside `model.detector=devnet` at 224×224, batch "
            "16 and 200 steps, and beside published values at full settings. In the hard setting "
            "anomalies of one class are labelled, and the others test.\n",
            table(
                ["data set", "setting", "devcore", "devnet", "DevNet, published", "best published"],
                comparison_rows(results),
            ),
            "\nLocalisation in anomalous test images: mean pixel AUROC over images, and AUPRO up "
            "to 30 % false positives.\n",
            table(["data set", "detector", "labels", "pixel AUROC", "AUPRO"], pixel_rows(results)),
            f"\nTraining `devcore` took {min(seconds):.0f} to {max(seconds):.0f} s a run.",
            "",
        ]
    )
    (output / "detection.md").write_text(page)
    draw(results, output / "detection.svg")


def main() -> None:
    """Measures all cells, and writes the page after each."""
    parser = page_parser("detection.py", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="file of ResNet-18's weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    arguments = parser.parse_args()
    prepare(batch_size=32)
    for results in measure(arguments, arguments.output / "detection.json"):
        write_page(results, arguments.seeds, arguments.output)


if __name__ == "__main__":
    main()
