"""The summary that a run prints on the terminal: its results and the paths of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from devnet_jax.config import Config
from devnet_jax.runtime.workdir import Workdir


def summarise(config: Config, workdir: Workdir, results: Mapping[str, Any]) -> str:
    """Returns the summary of a run.

    Args:
      config: settings of the run.
      workdir: folder of the run.
      results: content of eval/metrics.json.
    """
    files = [
        ("results", workdir.evaluation / "metrics.json"),
        ("score of every image", workdir.evaluation / "scores.csv"),
        ("checkpoints", workdir.checkpoints),
        ("training curves", workdir.metrics),
        ("split into training and test", workdir.split),
        ("settings", workdir.config),
        ("report", workdir.report),
    ]
    return "\n".join(["", *align_rows(_result_rows(config, results)), "", *align_rows(files)])


def _result_rows(config: Config, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    tested = f"{results['n_test_normal']} normal, {results['n_test_anomaly']} anomalous"
    if results["n_test_duplicates"]:
        tested += f"; {results['n_test_duplicates']} of them are also training images"
    rows = [
        ("data set", describe_dataset(config)),
        ("trained", describe_run(config, results)),
        ("test images", tested),
        ("AUROC", f"{results['image_auroc']:.4f}"),
        ("average precision", f"{results['image_ap']:.4f}"),
        (
            "best F1",
            f"{results['image_f1_max']:.4f} at score {results['image_f1_max_threshold']:.3f}",
        ),
    ]
    for kind, name, promise in (
        ("calibrated", "calibrated threshold", "at most {:.4g}% promised"),
        ("prior", "prior's threshold", "{:.4g}% if scores follow the prior"),
    ):
        if f"{kind}_threshold" in results:
            promised = promise.format(100 * results[f"{kind}_promised_false_alarm_rate"])
            rows += [
                (
                    name,
                    f"score {results[f'{kind}_threshold']:.3f}: "
                    f"{results[f'{kind}_false_alarm_rate']:.1%} false alarms ({promised}), "
                    f"{results[f'{kind}_miss_rate']:.1%} missed",
                )
            ]
    if "pixel_auroc_mean" in results:
        n = results["n_pixel_anomaly"]
        rows += [
            (
                "pixel AUROC",
                f"{results['pixel_auroc_mean']:.4f} (mean over {n} images)",
            ),
            ("AUPRO", f"{results['pixel_aupro']:.4f} (up to 30% false positives)"),
        ]
    return rows


def describe_dataset(config: Config) -> str:
    """Returns the name of the data set, and its category if it has one."""
    return " / ".join(filter(None, (config.dataset.name, config.dataset.category)))


def describe_run(config: Config, results: Mapping[str, Any]) -> str:
    """Describes the training data and the number of steps in one line."""
    dataset = config.dataset
    protocol = "all classes" if dataset.known_class is None else f"class {dataset.known_class}"
    if dataset.contamination:
        protocol += f", {dataset.contamination:.0%} of the normal images unlabelled anomalies"
    shots = f"{dataset.n_anomaly} labelled anomalies of {protocol}"
    return f"with {shots}, in {results['step']} steps"


def align_rows(rows: Sequence[tuple[str, Any]]) -> list[str]:
    """Formats names and values as lines with two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
