"""The summary that a run prints on the terminal: its results and the paths of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from devnet_jax.config import Config
from devnet_jax.errors import printable
from devnet_jax.runtime.workdir import Workdir


def summarise(config: Config, workdir: Workdir, results: Mapping[str, Any]) -> str:
    """Returns the summary of a run.

    Args:
      config: settings of the run.
      workdir: folder of the run.
      results: content of eval/metrics.json.
    """
    tested = results["n_test_normal"] + results["n_test_anomaly"]
    files = [
        ("results", workdir.evaluation / "metrics.json"),
        ("score of every image", workdir.evaluation / "scores.csv"),
        ("checkpoints", workdir.checkpoints),
        ("cross-validated scores", workdir.learned)
        if config.model.detector == "devcore"
        else ("training curves", workdir.metrics),
        ("split into training and test", workdir.split),
        ("settings", workdir.config),
        ("report", workdir.report if tested else "not written: there is no test image"),
    ]
    return "\n".join(["", *align_rows(_result_rows(config, results)), "", *align_rows(files)])


def _result_rows(config: Config, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("detector", config.detector_name),
        ("trained", describe_run(config, results)),
    ]
    expected = describe_expected(config, results)
    if expected:
        n = results["n_estimate_anomaly"]
        rows += [("expected", f"{expected}, by cross-validation over {n} labels")]
    return [*rows, *_measure_rows(results)]


def summarise_labelled(detector: str, folder: epath.Path, results: Mapping[str, Any]) -> str:
    """Returns the summary of labelled pictures that are not part of a run.

    Args:
      detector: description of the detector.
      folder: folder of the results.
      results: content of its metrics.json.
    """
    files = [
        ("results", folder / "metrics.json"),
        ("score of every image", folder / "scores.csv"),
        ("report", folder / "report.html"),
    ]
    rows = [("detector", detector), *_measure_rows(results)]
    return "\n".join(["", *align_rows(rows), "", *align_rows(files)])


def _measure_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the number of test images, and the measures, as names and values."""
    tested = f"{results['n_test_normal']} normal, {results['n_test_anomaly']} anomalous"
    if results.get("n_test_duplicates"):
        tested += f"; {results['n_test_duplicates']} of them are also training images"
    rows = [("test images", tested)]
    unmeasured = describe_unmeasured(results)
    if unmeasured:
        rows += [("not measured", unmeasured)]
    else:
        best_f1, at = results["image_f1_max"], results["image_f1_max_threshold"]
        rows += [
            ("AUROC", f"{results['image_auroc']:.4f}"),
            ("average precision", f"{results['image_ap']:.4f}"),
            ("best F1", f"{best_f1:.4f} at score {at:.3f}"),
        ]
    for kind, name, promise in (
        ("calibrated", "calibrated threshold", "at most {:.4g}% promised"),
        ("prior", "prior's threshold", "{:.4g}% if scores follow the prior"),
    ):
        if f"{kind}_threshold" in results:
            promised = promise.format(100 * results[f"{kind}_promised_false_alarm_rate"])
            rates = [f"false alarms {promised}"]
            if f"{kind}_false_alarm_rate" in results:
                rates = [f"{results[f'{kind}_false_alarm_rate']:.1%} false alarms ({promised})"]
            if f"{kind}_miss_rate" in results:
                rates += [f"{results[f'{kind}_miss_rate']:.1%} missed"]
            rows += [(name, f"score {results[f'{kind}_threshold']:.3f}: {', '.join(rates)}")]
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


def describe_unmeasured(results: Mapping[str, Any]) -> str | None:
    """Says which measures the test images do not allow, and why; `None` if they allow all.

    Args:
      results: content of eval/metrics.json.
    """
    has_normal, has_anomaly = results["n_test_normal"] > 0, results["n_test_anomaly"] > 0
    if has_normal and has_anomaly:
        return None
    if has_normal:
        return "no anomalous test image: AUROC and miss rate cannot be measured"
    if has_anomaly:
        return "no normal test image: AUROC and false-alarm rate cannot be measured"
    return "no test image: AUROC, false-alarm rate and miss rate cannot be measured"


def describe_expected(config: Config, results: Mapping[str, Any]) -> str | None:
    """Describes the performance that cross-validation lets expect; `None` without an estimate.

    Args:
      config: settings of the run.
      results: content of eval/metrics.json.
    """
    if "expected_auroc" not in results:
        return None
    low, high = results["expected_auroc_low"], results["expected_auroc_high"]
    text = f"AUROC {results['expected_auroc']:.2f} ({low:.2f}–{high:.2f})"
    if "expected_miss_rate" in results:
        low, high = results["expected_miss_rate_low"], results["expected_miss_rate_high"]
        text += (
            f", {results['expected_miss_rate']:.0%} missed ({100 * low:.0f}–{high:.0%}) at "
            f"{100 * config.evaluation.false_alarm_rate:.4g}% false alarms"
        )
    return text


_MAX_NAMED_CLASSES = 8


def describe_run(config: Config, results: Mapping[str, Any]) -> str:
    """Describes the training data, and the steps of the deviation network, in one line."""
    dataset = config.dataset
    protocol = "all classes" if dataset.known_class is None else f"class {dataset.known_class}"
    trained = results["trained_classes"]
    shots = f"{sum(trained.values())} labelled anomalies of {protocol}"
    if dataset.known_class is None and len(trained) <= _MAX_NAMED_CLASSES:
        named = ", ".join(f"{count} {printable(name)}" for name, count in trained.items())
        shots = f"{sum(trained.values())} labelled anomalies ({named})"
    if not trained:
        shots = "normal images alone"
        if dataset.known_class is not None:
            shots += f", {protocol} not tested"
    if dataset.contamination:
        shots += f", {dataset.contamination:.0%} of the normal images unlabelled anomalies"
    steps = f", in {results['step']} steps" if config.model.detector == "devnet" else ""
    return f"with {shots}{steps}"


def align_rows(rows: Sequence[tuple[str, Any]]) -> list[str]:
    """Formats names and values as lines with two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
