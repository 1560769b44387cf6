"""The summary that a run prints on the terminal: its results and the paths of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from devnet_jax.config import Config
from devnet_jax.errors import printable
from devnet_jax.report.digits import format_measure, format_rate, format_score
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
    expected = describe_expected(results)
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
            ("AUROC", describe_measure(results, "image_auroc")),
            ("average precision", describe_measure(results, "image_ap")),
            ("best F1", f"{format_measure(best_f1)} at score {format_score(at)}"),
        ]
    thresholds = [
        (name, _describe_threshold(results, kind, promise))
        for kind, name, promise in (
            ("given", "given threshold", ""),
            ("calibrated", "calibrated threshold", ", at most {:.3g}% promised"),
            ("prior", "prior's threshold", ", {:.3g}% if scores follow the prior"),
        )
        if f"{kind}_threshold" in results
    ]
    rows += [
        (f"{name}{' (in force)' * (i == 0)}", text) for i, (name, text) in enumerate(thresholds)
    ]
    excess = describe_excess(results)
    if excess:
        rows += [("more than promised", excess)]
    if "pixel_auroc_mean" in results:
        n = results["n_pixel_anomaly"]
        pixel_auroc, aupro = results["pixel_auroc_mean"], results["pixel_aupro"]
        rows += [
            ("pixel AUROC", f"{format_measure(pixel_auroc)} (mean over {n} images)"),
            ("AUPRO", f"{format_measure(aupro)} (up to 30% false positives)"),
        ]
    if results["n_test_normal"] + results["n_test_anomaly"]:
        rows += [("in brackets", "numbers of images, and 95% intervals")]
    return rows


def _describe_threshold(results: Mapping[str, Any], kind: str, promise: str) -> str:
    """Returns a threshold with its false alarms, promised and observed, and its misses."""
    promised = results.get(f"{kind}_promised_false_alarm_rate")
    promise = "" if promised is None else promise.format(100 * promised)
    parts = []
    if f"{kind}_false_alarm_rate" in results:
        rate = format_rate(results[f"{kind}_n_false_alarms"], results["n_test_normal"])
        parts += [f"{rate.share} false alarms {rate.in_brackets}{promise}"]
    elif promise:
        parts += [f"false alarms{promise.removeprefix(',')}"]
    if f"{kind}_miss_rate" in results:
        rate = format_rate(results[f"{kind}_n_missed"], results["n_test_anomaly"])
        parts += [f"{rate.share} missed {rate.in_brackets}"]
    score = f"score {format_score(results[f'{kind}_threshold'])}"
    return f"{score}: {'; '.join(parts)}" if parts else score


def describe_measure(results: Mapping[str, Any], name: str) -> str:
    """Returns a measure with its interval, such as "0.99 (0.94–1.00)".

    Args:
      results: content of metrics.json.
      name: name of the measure there, beside which its interval stands.
    """
    return format_measure(results[name], (results[f"{name}_low"], results[f"{name}_high"]))


# Probability below which more false alarms than promised are remarked on.
_UNLIKELY = 0.05


def describe_excess(results: Mapping[str, Any]) -> str | None:
    """Says that more false alarms were observed than a promise lets expect; `None` if not.

    Args:
      results: content of eval/metrics.json.
    """
    p_value = results.get("calibrated_excess_p_value", 1.0)
    if p_value >= _UNLIKELY:
        return None
    rate = format_rate(results["calibrated_n_false_alarms"], results["n_test_normal"])
    promised = 100 * results["calibrated_promised_false_alarm_rate"]
    return (
        f"{rate.counts} good test images raise an alarm, which is unlikely with a promise of "
        f"{promised:.3g}% (p = {p_value:.2g}): they may not be like the images held out; look at "
        "them, and set the threshold with good images of today (--mode=recalibrate)"
    )


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


def describe_expected(results: Mapping[str, Any]) -> str | None:
    """Describes the performance that cross-validation lets expect; `None` without an estimate.

    Args:
      results: content of eval/metrics.json.
    """
    if "expected_auroc" not in results:
        return None
    text = f"AUROC {describe_measure(results, 'expected_auroc')}"
    if "expected_miss_rate" not in results:
        return text
    n = results["n_estimate_anomaly"]
    missed = format_rate(round(n * results["expected_miss_rate"]), n)
    return f"{text}, {missed.share} missed {missed.in_brackets} at the threshold in force"


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
    steps = ""
    if config.model.detector == "devnet":
        of_last = f" of {results['last_step']}" if "last_step" in results else ""  # not finished
        steps = f", in {results['step']}{of_last} steps"
    return f"with {shots}{steps}"


def align_rows(rows: Sequence[tuple[str, Any]]) -> list[str]:
    """Formats names and values as lines with two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
