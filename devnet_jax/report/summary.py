"""The last words of a run on the terminal: its results, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from devnet_jax.config import Config
from devnet_jax.runtime.workdir import Workdir


def summarise(config: Config, workdir: Workdir, results: Mapping[str, Any]) -> str:
    """A table of the results in eval/metrics.json, and the files of the workdir."""
    files = [
        ("results", workdir.evaluation / "metrics.json"),
        ("score of every image", workdir.evaluation / "scores.csv"),
        ("checkpoints", workdir.checkpoints),
        ("training curves", workdir.metrics),
        ("which image did what", workdir.split),
        ("settings", workdir.config),
        ("report, to look at", workdir.report),
    ]
    return "\n".join(["", *aligned(_results(config, results)), "", *aligned(files)])


def _results(config: Config, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    tested = f"{results['n_test_normal']} normal, {results['n_test_anomaly']} anomalous"
    if results["n_test_duplicates"]:
        tested += f"; {results['n_test_duplicates']} of them were also trained with"
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
        ("prior", "prior's threshold", "{:.4g}% if they followed the prior"),
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
    """The data set's name, and its category."""
    return " / ".join(filter(None, (config.dataset.name, config.dataset.category)))


def describe_run(config: Config, results: Mapping[str, Any]) -> str:
    """What was trained with, and for how long, in a line."""
    dataset = config.dataset
    protocol = "all classes" if dataset.known_class is None else f"class {dataset.known_class}"
    if dataset.contamination:
        protocol += f", {dataset.contamination:.0%} of the normal images unlabelled anomalies"
    shots = f"{dataset.n_anomaly} labelled anomalies of {protocol}"
    return f"with {shots}, in {results['step']} steps"


def aligned(rows: Sequence[tuple[str, Any]]) -> list[str]:
    """Lines of names and values, in two columns."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
