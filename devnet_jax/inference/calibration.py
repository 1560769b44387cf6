"""calibration.json: the scores that set the calibrated threshold of a run, and their origin."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np

from devnet_jax.errors import UserError
from devnet_jax.inference.scores import as_written
from devnet_jax.runtime.io import write_bytes, write_json
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """The pictures of `--mode=recalibrate`.

    Attributes:
      input: the pictures, as they were given.
      n: number of pictures that the threshold is from.
      date: day of the recalibration, as 2026-11-30.
    """

    input: str
    n: int
    date: str

    def __str__(self) -> str:
        """Returns the origin in words."""
        return f"{self.n} pictures of {self.input} ({self.date})"


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Content of calibration.json.

    Attributes:
      step: step of the checkpoint that the scores belong to.
      scores: float32 [n], scores of good images that did not train.
      source: origin of the scores; `None` for the images that the split holds out.
    """

    step: int
    scores: np.ndarray
    source: Recalibration | None = None


def write_calibration(workdir: Workdir, calibration: Calibration) -> None:
    """Writes calibration.json, atomically."""
    values = {"step": calibration.step, "scores": as_written(calibration.scores).tolist()}
    if calibration.source is not None:
        values["source"] = dataclasses.asdict(calibration.source)
    write_json(workdir.calibration, values)


def keep_calibration(workdir: Workdir) -> bool:
    """Copies calibration.json to calibration-before.json, atomically; False if there is none."""
    if not workdir.calibration.exists():
        return False
    write_bytes(workdir.calibration_before, workdir.calibration.read_bytes())
    return True


def read_calibration(workdir: Workdir) -> Calibration | None:
    """Reads calibration.json; `None` if there is none.

    Raises:
      UserError: if the file is damaged.
    """
    if not workdir.calibration.exists():
        return None
    advice = "run --mode=eval to calibrate the threshold"
    try:
        values = json.loads(workdir.calibration.read_text())
        scores = np.array(values["scores"], np.float32).reshape(-1)
        source = Recalibration(**values["source"]) if "source" in values else None
        calibration = Calibration(int(values["step"]), scores, source)
    except (KeyError, OSError, TypeError, ValueError):
        raise UserError(f"{workdir.calibration}: holds no calibration; {advice}") from None
    if not np.isfinite(scores).all():
        raise UserError(f"{workdir.calibration}: scores are not finite; {advice}")
    return calibration


def scores_of_step(workdir: Workdir, step: int) -> np.ndarray:
    """Returns the scores that calibrate a step's checkpoint, float32 [n].

    The result is empty, with a warning, if there are none of that step.

    Raises:
      UserError: if calibration.json is damaged.
    """
    calibration = read_calibration(workdir)
    if calibration is not None and calibration.step == step:
        return calibration.scores
    reason = "is missing" if calibration is None else f"is of step {calibration.step}, not {step}"
    mode = "recalibrate" if calibration is not None and calibration.source else "eval"
    logger.warning(
        "%s %s: the threshold is not calibrated; run --mode=%s to calibrate the threshold",
        *(workdir.calibration, reason, mode),
    )
    return np.empty(0, np.float32)


def recalibration_of_step(workdir: Workdir, step: int) -> Calibration | None:
    """Returns the calibration by `--mode=recalibrate` if it belongs to a step, else `None`.

    Logs that it is kept; or, with a warning, that one of another step is dropped. A damaged file
    holds none.
    """
    try:
        calibration = read_calibration(workdir)
    except UserError:
        return None
    if calibration is None or calibration.source is None:
        return None
    if calibration.step != step:
        logger.warning(
            "%s: dropped, because it is of step %d, not %d: threshold of %s; run "
            "--mode=recalibrate again",
            *(workdir.calibration, calibration.step, step, calibration.source),
        )
        return None
    logger.info(
        "%s: kept: threshold of %s; delete the file to calibrate by the images held out",
        *(workdir.calibration, calibration.source),
    )
    return calibration
