"""Recalibration: a new threshold from new good pictures, without learning."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from devnet_jax.config import Config
from devnet_jax.data.datasets.verify import digest_of_file
from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.paths import name_some
from devnet_jax.distributed.cluster import is_rank_zero, locked_by_rank_zero, report_progress
from devnet_jax.errors import UserError
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import require_copy, rewrite_card
from devnet_jax.inference.calibration import (
    Calibration,
    Recalibration,
    keep_calibration,
    write_calibration,
)
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.drift import Shift, compare
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.scores import as_written
from devnet_jax.inference.thresholds import (
    Threshold,
    calibrated_threshold,
    n_calibration_needed,
    results_at,
)
from devnet_jax.prediction.inputs import Inputs, find_inputs
from devnet_jax.prediction.score_files import ReadImage, read_in_chunks, readable_batch
from devnet_jax.report.digits import format_rate, format_score
from devnet_jax.report.summary import align_rows
from devnet_jax.runtime.accounts import expand_home
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir, keep_evaluation_settings
from devnet_jax.training.resume import open_dataset

logger = logging.getLogger(__name__)

_CHUNK = 32  # tiles in memory at once
_N_HIGHEST = 3  # pictures that the summary names


@dataclasses.dataclass(frozen=True)
class GoodScores:
    """Scores of the pictures that are to calibrate.

    Attributes:
      scores: float32 [n].
      paths: path of each of these.
      left_out: names of the other pictures, each with its reason in brackets.
    """

    scores: np.ndarray
    paths: Sequence[Path]
    left_out: Sequence[str]

    def highest(self) -> str:
        """Returns the highest scores with their paths, in words."""
        order = np.argsort(-self.scores, kind="stable")[:_N_HIGHEST]
        return ", ".join(f"'{self.paths[i]}' {format_score(self.scores[i])}" for i in order)


@dataclasses.dataclass(frozen=True)
class Change:
    """The result of a recalibration.

    Attributes:
      before: threshold that was in force; `None` if there was none.
      after: new threshold.
      good: scores of the new pictures.
      old_alarms: number of the new pictures that the old threshold would have alarmed; `None`
        without one.
      shift: difference between the scores of the former calibration and the new ones; `None` if
        there was no calibration, or the file is of an earlier version.
      written: path that holds the new threshold.
      kept: path that holds the former scores; `None` if there is none.
    """

    before: Threshold | None
    after: Threshold
    good: GoodScores
    old_alarms: int | None
    shift: Shift | None
    written: epath.Path
    kept: epath.Path | None

    def __str__(self) -> str:
        """Returns the summary that is printed on the terminal."""
        n = len(self.good.scores)
        rate, likely = self.after.false_alarm_rate, self.after.likely_rate or 0.0
        assert rate is not None  # of a calibrated threshold
        needed = n_calibration_needed(rate)
        before = "none"
        if self.before is not None:
            kind = "the prior's" if self.before.kind == "prior" else self.before.kind
            before = f"{format_score(self.before.value)} ({kind})"
        rows = [
            ("good pictures", f"{n}; left out: {len(self.good.left_out)}"),
            ("threshold before", before),
            (
                "threshold now",
                f"{format_score(self.after.value)}: at most {100 * rate:.3g}% of good pictures "
                f"raise an alarm; with {n} pictures below {100 * likely:.3g}% in nine of ten draws",
            ),
            ("pictures needed", f"{needed} for a false-alarm rate of {100 * rate:.3g}%"),
            (
                "highest scores",
                f"{self.good.highest()}: look at them, as a defect raises the threshold",
            ),
        ]
        if self.old_alarms is not None:
            rows += [("alarms before", f"{format_rate(self.old_alarms, n)} of the good pictures")]
        if self.shift is not None:
            s = self.shift
            rows += [
                (
                    "scores of good pictures",
                    f"median {s.median_before:.3g} at calibration ({s.n_before} pictures), "
                    f"{s.median_now:.3g} now ({s.n_now}); Kolmogorov–Smirnov distance "
                    f"{s.distance:.2f}, p = {s.p_value:.2g}",
                )
            ]
        rows += [("written", f"{self.written}; --mode=eval measures anew")]
        if self.kept is not None:
            rows += [("former scores", str(self.kept))]
        return "\n".join(["", *align_rows(rows)])


@standard_numerics()
def recalibrate_run(config: Config, workdir: Workdir, inputs: Sequence[str]) -> Change:
    """Sets the calibrated threshold of a run by new good pictures: writes calibration.json.

    The former scores are kept in calibration-before.json. `evaluate` keeps the new ones until the
    run has trained on. The settings of the evaluation are kept in config.json, without a given
    threshold. Every process scores all pictures, and rank zero writes.

    Args:
      config: settings of the run.
      workdir: workdir of the run.
      inputs: good pictures, as for `find_inputs`.

    Raises:
      UserError: if there is no run, no picture, or too few of them; nothing is written then.
    """
    workdir.require_run()
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        detector = TrainedDetector.restore(workdir.path, config)
        images = find_inputs(inputs, Path(workdir.path))
        good = _score_good(detector, images, _trained_digests(config, workdir))
        rate = config.evaluation.false_alarm_rate
        threshold = _new_threshold(good, rate, inputs, "--config.evaluation.false_alarm_rate")
        had_calibration = workdir.calibration.exists()
        if is_rank_zero():
            keep_calibration(workdir)
            source = _origin(inputs, len(good.scores))
            write_calibration(workdir, Calibration(detector.step, good.scores, source))
            evaluation = dataclasses.replace(config.evaluation, threshold="auto")
            keep_evaluation_settings(workdir, dataclasses.replace(config, evaluation=evaluation))
        kept = workdir.calibration_before if had_calibration else None
        before = detector.good_scores
        return _change(detector, before, good, threshold, workdir.calibration, kept)


@standard_numerics()
def recalibrate_file(path: epath.PathLike, inputs: Sequence[str], output: epath.PathLike) -> Change:
    """Writes a copy of an exported file whose threshold is calibrated by new good pictures.

    The promised false-alarm rate is that of the run's settings when it was exported; for files of
    earlier versions, that of their calibrated threshold, or the default one.

    Args:
      path: exported file, which is not changed.
      inputs: good pictures, as for `find_inputs`.
      output: path of the copy.

    Raises:
      UserError: if the file or no picture can be read, there are too few pictures, or the copy
        would replace the file; nothing is written then.
    """
    require_copy(path, output)
    detector = ExportedDetector.load(path)
    images = find_inputs(inputs, Path(output).absolute())
    good = _score_good(detector, images, ())
    logger.info("an exported file does not tell which pictures it was trained with: give new ones")
    promised = [t.false_alarm_rate for t in detector.thresholds if t.kind == "calibrated"]
    rates = (detector.card.get("false_alarm_rate"), *promised)
    rate = next(filter(None, rates), Config().evaluation.false_alarm_rate)
    threshold = _new_threshold(good, rate, inputs)
    thresholds = [threshold, *(t for t in detector.thresholds if t.kind == "prior")]
    changes: dict[str, Any] = {
        "thresholds": [dataclasses.asdict(t) for t in thresholds],
        "calibration_scores": np.sort(as_written(good.scores)).tolist(),
        "recalibration": dataclasses.asdict(_origin(_names(inputs), len(good.scores))),
    }
    if results := detector.card.get("metrics"):
        changes["metrics"] = results_at(results, thresholds)
    if is_rank_zero():
        rewrite_card(path, output, changes)
    before = detector.good_scores
    return _change(detector, before, good, threshold, epath.Path(output), None)


def _score_good(detector: ImageScorer, images: Inputs, trained: Collection[str]) -> GoodScores:
    """Scores pictures, without those that are odd, trained, unreadable or copies of others.

    Args:
      detector: detector that scores.
      images: the pictures.
      trained: digests of the training images.
    """
    settings = detector.preprocessing
    seen: set[str] = set()
    scores, paths, left_out = [np.empty(0, np.float32)], list[Path](), list[str]()
    for chunk in read_in_chunks(images.paths, max(_CHUNK // settings.n_tiles, 1), settings):
        digests = map_in_threads(_digest, chunk, None)
        reasons = [
            _reason_to_leave_out(image, digest, trained, seen)
            for image, digest in zip(chunk, digests, strict=True)
        ]
        readable = [image for image, reason in zip(chunk, reasons, strict=True) if not reason]
        left_out += [
            f"'{image.path}' ({reason})"
            for image, reason in zip(chunk, reasons, strict=True)
            if reason
        ]
        if readable:
            scored = detector.score(readable_batch(readable, settings.white_level))
            is_odd = np.array([bool(odd) for odd in scored.odd])
            scores.append(scored.scores[~is_odd])
            for image, odd in zip(readable, scored.odd, strict=True):
                if odd:
                    left_out.append(f"'{image.path}' ({odd})")
                else:
                    paths.append(image.path)
        report_progress()
    if left_out:
        logger.warning("left out: %d pictures: %s", len(left_out), name_some(left_out))
    return GoodScores(np.concatenate(scores), paths, left_out)


def _digest(image: ReadImage) -> str:
    """Returns the digest of a picture's pixels, or "" if it could not be read."""
    return digest_of_file(image.path) if image.image is not None else ""


def _reason_to_leave_out(
    image: ReadImage, digest: str, trained: Collection[str], seen: set[str]
) -> str:
    """Returns the reason why a picture does not calibrate, or "" and adds its digest to `seen`."""
    if not digest:
        return image.error
    if digest in trained:
        return "it is a training picture"
    if digest in seen:
        return "a copy of another one"
    seen.add(digest)
    return ""


def _trained_digests(config: Config, workdir: Workdir) -> Collection[str]:
    """Returns the digests of the run's training images; empty, with a warning, if they are gone."""
    try:
        return open_dataset(config, workdir).train_digests
    except UserError as error:
        logger.warning("training pictures among the new ones are not told: %s", error)
        return ()


def _new_threshold(
    good: GoodScores, rate: float, inputs: Sequence[str], setting: str = ""
) -> Threshold:
    """Returns the threshold; raises `UserError` if there are too few pictures for the rate."""
    threshold = calibrated_threshold(good.scores, rate)
    if threshold is None or threshold.false_alarm_rate != rate:
        n, n_left_out = len(good.scores), len(good.left_out)
        left_out = f" ({n_left_out} left out)" if n_left_out else ""
        nearest = f"={math.ceil(1000 / (n + 1)) / 1000:g}" if n else ""
        allow = f", or allow more false alarms ({setting}{nearest})" if setting else ""
        raise UserError(
            f"--input={' '.join(inputs)}: {n} good pictures{left_out}, and a false-alarm rate of "
            f"{rate:g} needs {n_calibration_needed(rate)}: give more{allow}; nothing is written"
        )
    return threshold


def _names(inputs: Sequence[str]) -> list[str]:
    """Returns the last part of each path, without the folders before it, which are private."""
    return [expand_home(given).resolve().name for given in inputs]


def _origin(inputs: Sequence[str], n: int) -> Recalibration:
    return Recalibration(" ".join(inputs), n, str(datetime.date.today()))


def _change(
    detector: ImageScorer,
    before: np.ndarray,
    good: GoodScores,
    threshold: Threshold,
    written: epath.Path,
    kept: epath.Path | None,
) -> Change:
    old = detector.threshold
    return Change(
        before=old,
        after=threshold,
        good=good,
        old_alarms=None if old is None else int(old.alarms(as_written(good.scores)).sum()),
        shift=compare(before, good.scores) if len(before) else None,
        written=written,
        kept=kept,
    )
