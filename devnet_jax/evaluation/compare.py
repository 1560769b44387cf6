"""Compares two detectors on the same labelled pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy import stats

from devnet_jax.config import Config
from devnet_jax.data.example import Example
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.labelled import LabelledPictures, read_labelled
from devnet_jax.distributed.cluster import broadcast, is_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.evaluation.intervals import auroc_difference, auroc_interval
from devnet_jax.evaluation.labelled import Opened, open_detector, results_folder
from devnet_jax.evaluation.metrics import alarm_rates
from devnet_jax.evaluation.scoring import Pictures, score_paths, score_test_images
from devnet_jax.inference.scores import as_written
from devnet_jax.report.build import UNKNOWN_TRAINING, as_sentence, date_and_devices
from devnet_jax.report.comparison import (
    BETTER,
    CHANGES,
    MAX_CHANGED,
    ChangedPicture,
    Comparison,
    Side,
    describe_difference,
    to_html,
)
from devnet_jax.report.digits import format_measure
from devnet_jax.report.summary import align_rows
from devnet_jax.runtime.io import write_csv, write_json, write_text
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir, read_config

logger = logging.getLogger(__name__)

_FEW = 20  # normal or anomalous pictures; with fewer, DeLong's interval is too narrow


class _Common(NamedTuple):
    """The pictures that both detectors are compared on.

    Attributes:
      examples: their examples.
      of_a: the pictures as input of A.
      of_b: the same as input of B.
      n_learned: number of pictures left out because a run trained or calibrated with them.
      n_single: number of those left out because one run alone tested them.
    """

    examples: Sequence[Example]
    of_a: Pictures
    of_b: Pictures
    n_learned: int
    n_single: int = 0


def compare(
    config: Config, workdir: Workdir, against: Workdir, given: str | None, output: str
) -> str | None:
    """Compares detector A of --workdir with detector B of --against; each is a run or a file.

    Writes compare.json, compare.csv and compare.html. Several processes share the pictures; process
    0 writes.

    Args:
      config: settings of A's run. Those of the evaluation that differ from the saved ones hold for
        B, too.
      workdir: folder of A's run, or path of its file.
      against: the same of B.
      given: labelled pictures, as for `read_labelled`; `None` for those that both runs have tested.
      output: folder of the results.

    Returns:
      The summary that is printed on the terminal, in process 0.

    Raises:
      UserError: if a detector or the pictures cannot be read, no picture is left to compare on, or
        the folder of the results cannot be used.
    """
    for one in (workdir, against):
        if one.is_file and given is None:
            raise UserError(
                f"{one.path}: an exported file does not say what it has tested; give labelled "
                "pictures with --input"
            )
    with results_folder(output) as folder, standard_numerics():
        raw = None if given is None else read_labelled(given)
        a = open_detector(config, workdir, needs_dataset=raw is None)
        config_b = _settings_of_b(config, workdir, against)
        b = open_detector(config_b, against, needs_dataset=raw is None)
        common = _tested_by_both(a, b) if raw is None else _choose(raw, a, b)
        scores_a = _score(a, common.of_a, common.examples, "scoring with A")
        scores_b = _score(b, common.of_b, common.examples, "scoring with B")
        sides = (
            Side(str(a), scores_a, a.detector.threshold),
            Side(str(b), scores_b, b.detector.threshold),
        )
        labels = np.array([example.label for example in common.examples], int)
        changes = changes_of_side(labels, sides)
        shown = _most_changed(sides, changes)
        views = [
            _make_views(opened, pictures, [common.examples[i] for i in shown])
            for opened, pictures in ((a, common.of_a), (b, common.of_b))
        ]
        summary: str | None = None
        if is_rank_zero():
            results = measure_difference(common.examples, sides, changes)
            results |= {"n_left_out": common.n_learned + common.n_single}
            notes = _notes(results, common, unknown=a.dataset is None or b.dataset is None)
            changed = [
                ChangedPicture(
                    common.examples[i].path,
                    common.examples[i].defect,
                    changes[i],
                    (float(scores_a[i]), float(scores_b[i])),
                    pair,
                )
                for i, pair in zip(shown, zip(*views, strict=True), strict=True)
            ]
            defects = [example.defect for example in common.examples]
            what = "the pictures that both have tested" if given is None else given
            subtitle = f"On {what}; {date_and_devices()}"
            page = Comparison(subtitle, sides, labels, defects, results, notes, changed)
            _write(folder, common.examples, page)
            summary = _summarise(folder, page)
        return broadcast(summary)


def _settings_of_b(config: Config, workdir: Workdir, against: Workdir) -> Config:
    """Returns the settings of B, with the changes to those of A's evaluation."""
    if against.is_file:
        return Config()
    of_b = read_config(against)
    if workdir.is_file:
        return of_b
    before, now = (vars(one.evaluation) for one in (read_config(workdir), config))
    changed = {name: value for name, value in now.items() if value != before[name]}
    return dataclasses.replace(of_b, evaluation=dataclasses.replace(of_b.evaluation, **changed))


def _learned_digests(*datasets: FewShotDataset | None) -> set[str]:
    """Returns the digests of all pictures that runs have trained or calibrated with."""
    known = [dataset for dataset in datasets if dataset is not None]
    return set().union(*(one.train_digests | one.calibration_digests for one in known))


def _tested_by_both(a: Opened, b: Opened) -> _Common:
    """Returns the pictures that both runs have tested, by path and digest."""
    assert a.dataset is not None
    assert b.dataset is not None
    tested_a, tested_b = (
        {(example.path, example.digest): example for example in dataset.test_examples}
        for dataset in (a.dataset, b.dataset)
    )
    learned = _learned_digests(a.dataset, b.dataset)
    fair = [key for key in {**tested_a, **tested_b} if key[1] not in learned]
    examples = [tested_a[key] for key in fair if key in tested_a and key in tested_b]
    if not examples:
        raise UserError(
            f"{a.name} and {b.name} have tested no picture in common: give labelled pictures with "
            "--input"
        )
    n_learned = len({**tested_a, **tested_b}) - len(fair)
    return _Common(examples, a.dataset, b.dataset, n_learned, len(fair) - len(examples))


def _choose(raw: Sequence[Any], a: Opened, b: Opened) -> _Common:
    """Returns the labelled pictures that neither run has learned from."""
    learned = _learned_digests(a.dataset, b.dataset)
    of_a = LabelledPictures(raw, a.detector.preprocessing)
    of_b = LabelledPictures(raw, b.detector.preprocessing)
    examples = [example for example in of_a.examples if example.digest not in learned]
    if not examples:
        raise UserError(
            f"--input: none of the {len(raw)} labelled pictures is new to both detectors: give "
            "others"
        )
    return _Common(examples, of_a, of_b, len(raw) - len(examples))


def _score(
    opened: Opened, pictures: Pictures, examples: Sequence[Example], phase: str
) -> np.ndarray:
    """Returns the scores of pictures as they are written, float64 [N]."""
    paths = [example.path for example in examples]
    return as_written(score_paths(opened.detector, pictures, paths, phase))


def changes_of_side(labels: np.ndarray, sides: tuple[Side, Side]) -> list[str]:
    """Returns the change of each picture from B to A, a key of `CHANGES`, or "" without one."""
    if sides[0].threshold is None or sides[1].threshold is None:
        return [""] * len(labels)
    alarms_a, alarms_b = (side.threshold.alarms(side.scores) for side in sides if side.threshold)
    names = {
        (1, True): "missed_to_found",
        (1, False): "found_to_missed",
        (0, True): "passed_to_false_alarm",
        (0, False): "false_alarm_to_passed",
    }
    return [
        names[label, alarm_a] if alarm_a != alarm_b else ""
        for label, alarm_a, alarm_b in zip(
            labels.tolist(), alarms_a.tolist(), alarms_b.tolist(), strict=True
        )
    ]


def _most_changed(sides: tuple[Side, Side], changes: Sequence[str]) -> list[int]:
    """Returns the pictures to show: those that changed sides, the largest changes of rank first."""
    ranks_a, ranks_b = (stats.rankdata(side.scores) for side in sides)
    order = np.argsort(-np.abs(ranks_a - ranks_b), kind="stable")
    return [i for i in order.tolist() if changes[i]][:MAX_CHANGED]


def _make_views(opened: Opened, pictures: Pictures, examples: Sequence[Example]) -> list[bytes]:
    """Returns the overlay of each picture as a thumbnail, in process 0; else an empty list."""
    test = score_test_images(opened.detector, pictures, examples, "drawing maps")
    return [one.overlay or one.image for one in test.pictures] if test is not None else []


def measure_difference(
    examples: Sequence[Example], sides: tuple[Side, Side], changes: Sequence[str]
) -> dict[str, Any]:
    """Returns the content of compare.json, except the number of pictures left out.

    Measures that need normal pictures, anomalies or thresholds are left out without them.

    Args:
      examples: examples of the N pictures.
      sides: A and B with their scores.
      changes: change of each picture, a key of `CHANGES`, or "".
    """
    labels = np.array([example.label for example in examples], int)
    defects = np.array([example.defect for example in examples], object)
    a, b = sides
    results: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "n_normal": int(np.sum(labels == 0)),
        "n_anomaly": int(np.sum(labels == 1)),
    }
    if results["n_normal"] and results["n_anomaly"]:
        found = auroc_difference(labels, a.scores, b.scores)
        results |= {"auroc_a": found.auroc_a, "auroc_b": found.auroc_b}
        results["auroc_difference"] = found.difference
        if found.low is not None:
            results["auroc_difference_low"] = found.low
            results["auroc_difference_high"] = found.high
            results["auroc_p_value"] = found.p_value
        results["kinds"] = {}
        for kind in sorted(set(defects[labels == 1])):
            chosen = (labels == 0) | (defects == kind)
            of_kind = auroc_difference(labels[chosen], a.scores[chosen], b.scores[chosen])
            row = {"n": int(np.sum(labels[chosen])), **of_kind._asdict()}
            results["kinds"][kind] = row
    for side, letter in zip(sides, "ab", strict=True):
        if side.threshold is not None:
            results[f"threshold_{letter}"] = side.threshold.value
            rates = alarm_rates(labels, side.scores, side.threshold.value)
            results |= {f"{name}_{letter}": rate for name, rate in rates.items()}
    if a.threshold is not None and b.threshold is not None:
        counts = {name: list(changes).count(name) for name in CHANGES}
        n_better = sum(counts[name] for name in BETTER)
        n_changed = sum(counts.values())
        p_value = stats.binomtest(n_better, n_changed).pvalue if n_changed else 1.0
        results |= {
            "changed": counts,
            "n_changed": n_changed,
            "n_right_a_alone": n_better,
            "n_right_b_alone": n_changed - n_better,
            "changed_p_value": float(p_value),
        }
    return results


def _notes(results: Mapping[str, Any], common: _Common, unknown: bool) -> list[str]:
    """Returns the warnings of the page, as sentences."""
    notes = []
    few = min(results["n_normal"], results["n_anomaly"])
    if not few:
        notes.append("only one side is labelled: the AUROC needs normal pictures and anomalies")
    elif few < _FEW:
        notes.append(
            f"only {results['n_normal']} normal and {results['n_anomaly']} anomalous pictures: the "
            "interval may be too narrow"
        )
    if common.n_learned:
        notes.append(
            f"{common.n_learned} pictures are left out, because a detector has trained or "
            "calibrated with them, which would not be fair"
        )
    if common.n_single:
        notes.append(f"{common.n_single} pictures are left out, because one run alone tested them")
    if unknown:
        notes.append(UNKNOWN_TRAINING)
    if "changed" not in results:
        notes.append("a detector has no threshold: no picture can change sides")
    return [as_sentence(note) for note in notes]


def _write(folder: epath.Path, examples: Sequence[Example], page: Comparison) -> None:
    """Writes compare.json, compare.csv and compare.html."""
    a, b = page.sides
    alarms = [
        [""] * len(examples)
        if side.threshold is None
        else side.threshold.alarms(side.scores).astype(int).tolist()
        for side in page.sides
    ]
    write_csv(
        folder / "compare.csv",
        ["path", "label", "defect", "score_a", "score_b", "alarm_a", "alarm_b"],
        [
            (PurePosixPath(example.path), example.label, example.defect, *numbers)
            for example, *numbers in zip(examples, a.scores, b.scores, *alarms, strict=True)
        ],
    )
    write_json(folder / "compare.json", page.results)
    write_text(folder / "compare.html", to_html(page))


def _summarise(folder: epath.Path, page: Comparison) -> str:
    """Returns the summary that is printed on the terminal."""
    results = page.results
    pictures = f"{results['n_normal']} normal, {results['n_anomaly']} anomalous"
    if results["n_left_out"]:
        pictures += f"; {results['n_left_out']} others left out"
    if 0 < min(results["n_normal"], results["n_anomaly"]) < _FEW:
        pictures += "; so few that the interval may be too narrow"
    rows = [("A", results["a"]), ("B", results["b"]), ("pictures", pictures)]
    if "auroc_a" in results:
        sizes = results["n_normal"], results["n_anomaly"]
        texts = [
            f"{letter.upper()} {format_measure(auroc, auroc_interval(auroc, *sizes))}"
            for letter in "ab"
            for auroc in [results[f"auroc_{letter}"]]
        ]
        rows.append(("AUROC", f"{', '.join(texts)}, difference {describe_difference(results)}"))
    else:
        rows.append(("AUROC", "not measured: it needs normal pictures and anomalies"))
    if "changed" in results:
        counts = "; ".join(f"{CHANGES[name]}: {n}" for name, n in results["changed"].items() if n)
        rows.append(("changed sides", f"{results['n_changed']}" + f" ({counts})" * bool(counts)))
    rows.append(("report", str(folder / "compare.html")))
    return "\n".join(["", *align_rows(rows)])
