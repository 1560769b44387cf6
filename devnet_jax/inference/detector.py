"""Detector: weights, preprocessing and thresholds in one; what everything after training uses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config, LossConfig, full_name, of_folder, with_settings
from devnet_jax.distributed.sharding import abstract_replicated
from devnet_jax.errors import UserError, nearest
from devnet_jax.export.read import ExportedDetector
from devnet_jax.inference.batching import apply_in_batches
from devnet_jax.inference.explain import METHODS
from devnet_jax.inference.forward import score_images
from devnet_jax.inference.scorer import ImageScorer, as_written
from devnet_jax.inference.thresholds import (
    Threshold,
    calibrated_threshold,
    prior_threshold,
    shortage,
)
from devnet_jax.models import DeviationNetwork, fold_batch_norm
from devnet_jax.models.build import abstract_variables, make_model
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.workdir import Workdir, read_config

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Detector(ImageScorer):
    """A trained network that scores and explains images, as `ImageScorer` has it.

    Attributes:
      config: the settings of the run that trained it.
      variables: the network's "params" and "batch_stats", on all local devices.
      step: training steps behind it.
      calibration_scores: float32 [n], its scores of normal images that it was not trained with;
        none if it was not calibrated.
    """

    config: Config
    variables: dict[str, Any]
    step: int
    calibration_scores: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.float32)
    )

    @classmethod
    def train(
        cls, data: epath.PathLike | Config, workdir: epath.PathLike | None = None, **settings: Any
    ) -> Detector:
        """Trains a detector as `--mode=train` does, and evaluates it.

        Args:
          data: a folder of pictures, laid out as train/good, test/good and test/<defect>; a fifth
            of train/good calibrates the threshold. Or all settings.
          workdir: the run's folder, where it goes on if it was stopped, and leaves its report; by
            default one that is removed at the end.
          **settings: single ones by the last part of their names, n_anomaly=10, or, where there
            are several of that name, by the whole: **{"train.batch_size": 8}.

        Raises:
          UserError: a mistake in the settings, the data, the weights or the workdir.
        """
        from devnet_jax.evaluation.evaluate import (
            evaluate,  # both make detectors of what is in a workdir
        )
        from devnet_jax.training.run import train

        config = data if isinstance(data, Config) else of_folder(data)
        config = with_settings(config, {full_name(name): v for name, v in settings.items()})
        with contextlib.ExitStack() as stack:
            if workdir is None:
                temporary = tempfile.TemporaryDirectory(prefix="devnet-")
                workdir = stack.enter_context(temporary)
            train(config, Workdir(workdir))
            evaluate(config, Workdir(workdir))
            return cls.restore(workdir, config)

    @staticmethod
    def load(place: epath.PathLike) -> ImageScorer:
        """Whatever was trained: the detector of a run's folder (`restore`), or that of a file
        which `--mode=export` has written (`ExportedDetector.load`).

        Raises:
          UserError: nothing of the kind is there, or it is damaged.
        """
        if epath.Path(place).is_file():
            return ExportedDetector.load(place)
        return Detector.restore(place)

    @classmethod
    def restore(
        cls, workdir: epath.PathLike, config: Config | None = None, *, calibrated: bool = True
    ) -> Detector:
        """Restores a checkpoint of a run: the newest, or the best if its settings say so.

        Args:
          workdir: the run's folder.
          config: its settings, where some that may change were changed; by default those of
            config.json.
          calibrated: whether to read what the calibrated threshold rests on. Where it is absent
            though normal images were held out, or of another step, a warning says so.

        Raises:
          UserError: no run is there, or its checkpoint is missing, damaged or of another
            network.
        """
        folder = Workdir(workdir)
        folder.require_run()
        if config is None:
            config = read_config(folder)
        abstract = abstract_replicated(abstract_variables(config))
        with Checkpoints(folder.checkpoints, keep_best=config.train.best_by) as checkpoints:
            wants_best = config.evaluation.checkpoint == "best"
            step = checkpoints.best_step() if wants_best else checkpoints.latest_step()
            if wants_best and step is None:
                raise UserError(
                    "config.evaluation.checkpoint = 'best': no checkpoint tells "
                    f"config.train.keep_best = '{config.train.keep_best}'; take the newest"
                )
            variables = checkpoints.restore(config, step, variables=abstract)["variables"]
        assert step is not None  # restore has raised otherwise
        detector = cls(config, variables, step)
        if not calibrated or not config.dataset.calibration:
            return detector
        scores = read_calibration(folder, step)
        detector = dataclasses.replace(detector, calibration_scores=scores)
        if len(scores) and detector.shortage:  # read_calibration has said why there are none
            logger.warning("%s", detector.shortage)
        return detector

    def __getstate__(self) -> dict[str, Any]:
        # Pickled without what follows from the rest, such as the folded weights.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def thresholds(self) -> list[Threshold]:
        """The thresholds that can be told, the one in force first: calibrated, then the prior's."""
        settings = self.config.evaluation
        found = (
            calibrated_threshold(self.calibration_scores, settings.false_alarm_rate),
            prior_threshold(self.config.loss, settings.confidence),
        )
        return [threshold for threshold in found if threshold is not None]

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that it scores."""
        return self.config.dataset.image_size

    @property
    def loss(self) -> LossConfig:
        """The loss that it was trained with."""
        return self.config.loss

    @property
    def explanation(self) -> str:
        """How it explains, where not told otherwise."""
        return self.config.evaluation.explanation

    @property
    def shortage(self) -> str | None:
        """Says that too few images were held out to calibrate with, if any were to be."""
        if not self.config.dataset.calibration:
            return None
        return shortage(len(self.calibration_scores), self.config.evaluation.false_alarm_rate)

    def _score(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = self._apply(score_images, images)
        if not np.isfinite(scores).all():
            raise UserError(
                f"the network of step {self.step} gives scores that are not finite; train again "
                "with a smaller config.optimizer.learning_rate"
            )
        return scores, maps

    def _explain(self, images: np.ndarray, method: str | None) -> np.ndarray:
        method = method or self.explanation
        if method not in METHODS:
            raise UserError(f"explanation {method!r}: no such method; {nearest(method, METHODS)}")
        maps = np.asarray(self._apply(METHODS[method](self.config), images), np.float32)
        if not np.isfinite(maps).all():
            raise UserError(
                f"the network of step {self.step} has gradients that are not finite; explain by "
                "config.evaluation.explanation = 'score_map', or train again with a smaller "
                "config.optimizer.learning_rate"
            )
        return maps

    @functools.cached_property
    def folded(self) -> tuple[DeviationNetwork, dict[str, Any]]:
        """Network and variables with BatchNorm folded into the convolutions: less to compute."""
        model = make_model(self.config).clone(folded=True)
        return model, jax.jit(fold_batch_norm)(self.variables)

    def _apply(self, function: Callable[..., Any], images: np.ndarray) -> Any:
        """function(model, variables, images), in batches."""
        return apply_in_batches(
            functools.partial(function, *self.folded),
            images,
            self.config.evaluation.batch_size,
        )


def write_calibration(workdir: Workdir, step: int, scores: np.ndarray) -> None:
    """Saves what the calibrated threshold rests on beside the checkpoints that it belongs to."""
    write_json(workdir.calibration, {"step": step, "scores": as_written(scores).tolist()})


def read_calibration(workdir: Workdir, step: int) -> np.ndarray:
    """The calibration scores of the checkpoint of a step, float32 [n].

    Empty, with a warning, where there are none of that step.

    Raises:
      UserError: the file is damaged.
    """
    advice = "run --mode=eval to calibrate the threshold"
    of_step = None
    if workdir.calibration.exists():
        try:
            values = json.loads(workdir.calibration.read_text())
            scores = np.array(values["scores"], np.float32).reshape(-1)
            of_step = int(values["step"])
        except (KeyError, OSError, TypeError, ValueError):
            raise UserError(f"{workdir.calibration}: holds no calibration; {advice}") from None
        if not np.isfinite(scores).all():
            raise UserError(f"{workdir.calibration}: scores are not finite; {advice}")
    if of_step == step:
        return scores
    found = "is not there" if of_step is None else f"is of step {of_step}, not {step}"
    logger.warning("%s %s: the threshold is not calibrated; %s", workdir.calibration, found, advice)
    return np.empty(0, np.float32)
