"""Several seeds of one run: trains and evaluates each, and gives the mean and spread over them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config, with_settings
from devnet_jax.data.split import Split
from devnet_jax.distributed.cluster import broadcast, is_rank_zero, locked_by_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.evaluation.evaluate import evaluate
from devnet_jax.inference.detector import read_split
from devnet_jax.inference.thresholds import KINDS
from devnet_jax.report.summary import align_rows
from devnet_jax.runtime.io import read_json, write_json, write_text
from devnet_jax.runtime.progress import Phase
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.sweep.cells import Cell, format_mean_std
from devnet_jax.sweep.comparison import Summary, summarise
from devnet_jax.sweep.document import Table
from devnet_jax.sweep.table import markdown_table
from devnet_jax.training.run import train

# Titles of the measures, by their keys in seeds.json.
MEASURES: Mapping[str, str] = {
    "image_auroc": "AUROC",
    "image_ap": "average precision",
    "false_alarm_rate": "false alarms",
    "miss_rate": "missed",
    "pixel_auroc_mean": "pixel AUROC",
}
_RATES = {  # with the names of their counts of cases and of images
    "false_alarm_rate": ("n_false_alarms", "n_test_normal"),
    "miss_rate": ("n_missed", "n_test_anomaly"),
}
_VARYING = {  # parts of a split, by what they are for people
    "train_anomaly": "the labelled anomalies",
    "train_contamination": "the unlabelled anomalies among the training images",
    "calibration": "the good images held out for the threshold",
    "test": "the test images",
}


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """A finished run of one seed.

    Attributes:
      seed: its seed.
      name: name of its folder.
      results: content of its eval/metrics.json.
      split: its images.
    """

    seed: int
    name: str
    results: Mapping[str, Any]
    split: Split | None

    @property
    def threshold_kind(self) -> str | None:
        """Kind of the threshold in force; `None` without one."""
        return next((kind for kind in KINDS if f"{kind}_threshold" in self.results), None)

    @property
    def measures(self) -> dict[str, float | None]:
        """The measures by the keys of `MEASURES`; `None` for those that could not be taken."""
        names = {name: f"{self.threshold_kind}_{name}" for name in _RATES}
        return {name: self.results.get(names.get(name, name)) for name in MEASURES}


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Runs that differ in the seed alone.

    Attributes:
      config: settings of the first.
      workdir: folder that holds the folders of the runs.
      planned: all seeds.
      runs: finished runs, at least one.
    """

    config: Config
    workdir: Workdir
    planned: Sequence[int]
    runs: Sequence[SeedRun]

    @property
    def summaries(self) -> dict[str, Summary]:
        """Mean and sample standard deviation of the measures that were taken, by their keys."""
        summaries = {name: summarise([*self._values(name).values()]) for name in MEASURES}
        return {name: summary for name, summary in summaries.items() if summary is not None}

    @property
    def typical(self) -> SeedRun | None:
        """The run of the median AUROC, the lower one of two; `None` without any AUROC.

        Of several with that AUROC, the one whose other measures are nearest to their medians.
        """
        if "image_auroc" not in self.summaries:
            return None
        values = {name: self._values(name) for name in self.summaries}
        medians = {name: statistics.median_low(taken.values()) for name, taken in values.items()}

        def distance(run: SeedRun) -> tuple[float, float]:
            from_median = {
                name: abs(taken.get(run.seed, math.inf) - medians[name])
                for name, taken in values.items()
            }
            return from_median.pop("image_auroc"), sum(from_median.values())

        return min(self.runs, key=distance)

    def _values(self, name: str) -> dict[int, float]:
        """Returns the values of a measure by seed, without those that could not be taken."""
        values = {run.seed: run.measures[name] for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def varied(self) -> list[str]:
        """Descriptions of what differed between the runs."""
        parts = [
            text
            for name, text in _VARYING.items()
            if len({getattr(run.split, name) for run in self.runs if run.split}) > 1
        ]
        return [*parts, "the random draws of the training"]

    @property
    def thresholds(self) -> str:
        """Description of the thresholds that the rates are at: "the calibrated threshold"."""
        counts = Counter(run.threshold_kind for run in self.runs if run.threshold_kind)
        names = {"prior": "the prior's"}
        texts = [f"{names.get(kind, f'the {kind}')} threshold" for kind in counts]
        if len(counts) > 1:
            texts = [
                f"{text} ({n} of {counts.total()} runs)"
                for text, n in zip(texts, counts.values(), strict=True)
            ]
        return " or ".join(texts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of seeds.json."""
        typical = self.typical
        return {
            "seeds": list(self.planned),
            "runs": [
                {
                    "seed": run.seed,
                    "folder": run.name,
                    "threshold": run.threshold_kind,
                    **{name: value for name, value in run.measures.items() if value is not None},
                }
                for run in self.runs
            ],
            "measures": {
                name: {"mean": summary.mean, "std": summary.std, "n_seeds": summary.n_seeds}
                for name, summary in self.summaries.items()
            },
            "varied": self.varied,
            "median_run": None if typical is None else typical.name,
        }

    def to_markdown(self) -> str:
        """Returns the content of seeds.md."""
        summaries = self.summaries
        rows = [
            ([Cell(str(run.seed)), *(_cell(run, name) for name in summaries)], False)
            for run in self.runs
        ]
        means = [Cell(_describe(name, summary)) for name, summary in summaries.items()]
        groups = [("", ["seed"]), ("", [MEASURES[name] for name in summaries])]
        table = Table("Measures by seed", groups, [*rows, ([Cell("mean"), *means], True)])
        lines = [f"{name}: {value}" for name, value in self._rows()]
        return "\n\n".join([f"# {_title(self)}", *markdown_table(table), *lines]) + "\n"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            ("±", "standard deviation over the seeds; other parts than these may vary more"),
            ("differs with the seed", ", ".join(self.varied)),
        ]
        if self.thresholds:
            rows.insert(0, ("false alarms and misses", f"at {self.thresholds}"))
        if self.typical is not None:
            folder = self.workdir.path / self.typical.name
            rows.append(("for use", f"{folder}: its AUROC is the median"))
        return rows

    def __str__(self) -> str:
        """Returns the summary that is printed on the terminal."""
        means = [
            (MEASURES[name], _describe(name, summary) + _missing(summary, len(self.runs)))
            for name, summary in self.summaries.items()
        ]
        if not means:
            means = [("not measured", "there are no test images of both kinds")]
        files = [
            ("results", self.workdir.seeds),
            ("table", self.workdir.seeds.with_suffix(".md")),
            ("report of each run", self.workdir.path / "seed-…" / "report.html"),
        ]
        rows = [("seeds", ", ".join(str(run.seed) for run in self.runs)), *means, *self._rows()]
        return "\n".join(["", *align_rows(rows), "", *align_rows(files)])


def train_seeds(config: Config, workdir: Workdir, n: int) -> Seeds:
    """Trains and evaluates the run of a folder with n seeds, beginning with that of the settings.

    Each has a folder of its own in the workdir, seed-42, seed-43, …. Those that are finished are
    not repeated; an interrupted one is resumed. Writes seeds.json and seeds.md after each.

    Raises:
      UserError: as `train` and `evaluate`, or if the workdir itself holds a run.
    """
    if workdir.config.exists() or workdir.checkpoints.exists():
        raise UserError(
            f"--workdir={workdir.path}: holds a single run; choose another folder for the runs of "
            f"--seeds={n}"
        )
    workdir.require_writable()
    settings = [with_settings(config, {"seed": config.seed + i}) for i in range(n)]
    folders = {one.seed: Workdir(workdir.path / f"seed-{one.seed}") for one in settings}
    runs: dict[int, SeedRun] = {}
    with locked_by_rank_zero(workdir.lock()):

        def run(one: Config) -> None:
            folder = folders[one.seed]
            results = _train_and_evaluate(one, folder)
            runs[one.seed] = SeedRun(one.seed, folder.path.name, results, read_split(folder))
            _write(Seeds(config, workdir, list(folders), [runs[seed] for seed in sorted(runs)]))

        is_tested = broadcast({str(seed): _is_tested(folder) for seed, folder in folders.items()})
        todo = [one for one in settings if not is_tested[str(one.seed)]]
        for one in settings:
            if one not in todo:
                run(one)
        with Phase("seeds", n, "run", done=n - len(todo)) as phase:
            for one in todo:
                run(one)
                phase.update()
    return Seeds(config, workdir, list(folders), [runs[seed] for seed in sorted(runs)])


def _is_tested(workdir: Workdir) -> bool:
    return (workdir.evaluation / "metrics.json").exists()


def _train_and_evaluate(config: Config, workdir: Workdir) -> Mapping[str, Any]:
    """Trains a run, and evaluates it unless that was done with the same images and settings."""
    before = _read_state(workdir)
    train(config, workdir)
    metrics = workdir.evaluation / "metrics.json"
    results: dict[str, Any] | None = None
    with Checkpoints(workdir.checkpoints) as checkpoints:
        step = checkpoints.latest_step()
    if is_rank_zero() and metrics.exists():
        results = read_json(metrics)
        if _read_state(workdir) != before or results.get("step") != step:
            metrics.unlink()  # if killed from here on, the next call evaluates
            results = None
    return broadcast(results) or evaluate(config, workdir)


def _read_state(workdir: Workdir) -> list[str]:
    """Returns the texts of the settings and the split."""
    return [file.read_text() for file in (workdir.config, workdir.split) if file.exists()]


def _write(seeds: Seeds) -> None:
    if is_rank_zero():
        write_json(seeds.workdir.seeds, seeds.to_dict())
        write_text(seeds.workdir.seeds.with_suffix(".md"), seeds.to_markdown())


def _title(seeds: Seeds) -> str:
    done, n = len(seeds.runs), len(seeds.planned)
    finished = f"{n} seeds" if done == n else f"{done} of {n} seeds so far"
    return f"{seeds.config.detector_name}: {finished}"


def _cell(run: SeedRun, name: str) -> Cell:
    value = run.measures[name]
    if value is None:
        return Cell("")
    if name not in _RATES:
        return Cell(f"{value:.3f}")
    count, total = _RATES[name]
    n = run.results[f"{run.threshold_kind}_{count}"]
    return Cell(f"{value:.1%} ({n:,} of {run.results[total]:,})")


def _describe(name: str, summary: Summary) -> str:
    """Formats a mean and its standard deviation: "0.943 ± 0.008", "4.0% ± 2.2%"."""
    if name not in _RATES:
        return format_mean_std(summary.mean, summary.std)
    spread = "" if summary.std is None else f" ± {summary.std:.1%}"
    return f"{summary.mean:.1%}{spread}"


def _missing(summary: Summary, n: int) -> str:
    return f" ({summary.n_seeds} of {n} seeds)" if summary.n_seeds < n else ""
