"""The last words of a run on the terminal: its results, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devnet_jax.config import Config
from devnet_jax.workdir import Workdir


def summarise(config: Config, workdir: Workdir, results: Mapping[str, Any]) -> str:
    """A table of the results in eval/metrics.json, and the files of the workdir."""
    dataset = config.dataset
    tested = f"{results['n_test_normal']} normal, {results['n_test_anomaly']} anomalous"
    if results["n_test_duplicates"]:
        tested += f"; {results['n_test_duplicates']} of them were also trained with"
    protocol = "all classes" if dataset.known_class is None else f"class {dataset.known_class}"
    if dataset.contamination:
        protocol += f"; {dataset.contamination:.0%} of the normal images are unlabelled anomalies"
    rows = [
        ("data set", " / ".join(filter(None, (dataset.name, dataset.category)))),
        ("trained with", f"{dataset.n_anomaly} labelled anomalies of {protocol}"),
        ("training steps", results["step"]),
        ("test images", tested),
        ("AUROC", f"{results['image_auroc']:.4f}"),
        ("average precision", f"{results['image_ap']:.4f}"),
        (
            "best F1",
            f"{results['image_f1_max']:.4f} at score {results['image_f1_max_threshold']:.3f}",
        ),
    ]
    if "prior_threshold" in results:
        confidence = f"{100 * config.evaluation.confidence:g}%"
        at = f"at score {results['prior_threshold']:.3f} ({confidence} of the prior)"
        rows += [
            ("false alarms", f"{results['prior_false_alarm_rate']:.1%} {at}"),
            ("missed anomalies", f"{results['prior_miss_rate']:.1%} {at}"),
        ]
    files = [
        ("results", workdir.evaluation / "metrics.json"),
        ("score of every image", workdir.evaluation / "scores.csv"),
        ("checkpoints", workdir.checkpoints),
        ("training curves", workdir.metrics),
        ("which image did what", workdir.split),
        ("settings", workdir.config),
    ]
    return "\n".join(["", *_table(rows), "", *_table(files)])


def _table(rows: list[tuple[str, Any]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
