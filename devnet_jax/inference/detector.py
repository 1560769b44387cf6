"""`TrainedDetector`: the network of a checkpoint, its preprocessing and its thresholds."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import numpy as np
from etils import epath

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.config import Config
from devnet_jax.data.ordinary import Ordinary
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.split import Split
from devnet_jax.distributed.batching import apply_in_batches
from devnet_jax.distributed.sharding import abstract_replicated
from devnet_jax.errors import UserError, nearest
from devnet_jax.export.read import ExportedDetector
from devnet_jax.inference.calibration import scores_of_step
from devnet_jax.inference.explain import EXPLAINERS, enlarge
from devnet_jax.inference.forward import score_images
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.scores import RawScores, as_written
from devnet_jax.inference.thresholds import (
    Threshold,
    calibrated_threshold,
    given_threshold,
    prior_threshold,
    shortage,
)
from devnet_jax.losses import prior_of
from devnet_jax.models import fold_batch_norm
from devnet_jax.models.build import Model, abstract_variables, make_model
from devnet_jax.prior import Prior
from devnet_jax.runtime.io import read_json
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.startup import keep_compiled
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.training.learned import read_learned
from devnet_jax.training.ordinary import read_ordinary

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedDetector(ImageScorer):
    """A detector restored from a run's checkpoint; `devnet_jax.Detector` adds training to it.

    Attributes:
      config: settings of the run.
      variables: "params" and "batch_stats" of the network, on all local devices.
      step: number of training steps done.
      calibration_scores: float32 [n], scores of normal images that did not train; empty without
        calibration.
      kinds: names of the labelled kinds that an image can be like; empty for devnet.
      white_level: value that is white in images of 16 bits, as in the data set; 0 for the
        settings'.
      ordinary: summary of the training images, from which odd ones are told; `None` for runs of
        earlier versions.
      date: day on which the checkpoint was saved, as 2026-11-30; `None` for those of earlier
        versions.
      unfinished: newest step of the run and the last one of its settings; `None` if it was done.
    """

    # A run scores many images, with one program for any number of them.
    _fixed_batches: ClassVar[bool] = True

    config: Config
    variables: dict[str, Any]
    step: int
    calibration_scores: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.float32)
    )
    kinds: tuple[str, ...] = ()
    white_level: int = 0
    ordinary: Ordinary | None = None
    date: str | None = None
    unfinished: tuple[int, int] | None = None

    @classmethod
    def load(cls, path: epath.PathLike) -> ImageScorer:
        """Loads a detector from a run's folder (`restore`) or a file (`ExportedDetector.load`).

        Raises:
          UserError: if there is no detector, or it is damaged.
        """
        if epath.Path(path).is_file():
            return ExportedDetector.load(path)
        return cls.restore(path)

    @classmethod
    @standard_numerics()
    def restore(
        cls, workdir: epath.PathLike, config: Config | None = None, *, calibrated: bool = True
    ) -> Self:
        """Restores a checkpoint of a run: the newest, or the best if the settings say so.

        Args:
          workdir: folder of the run.
          config: settings, with changes to those that may change; the default is config.json.
          calibrated: True to read the calibration scores. A warning says if they are missing or
            belong to another step although normal images were held out.

        Raises:
          UserError: if there is no run, or its checkpoint is missing, damaged or of another
            network.
        """
        folder = Workdir(workdir)
        folder.require_run()
        if config is None:
            config = read_config(folder)
        split = read_split(folder)
        learning = config.with_labels(len(split.train_anomaly)) if split else config
        abstract = abstract_replicated(abstract_variables(learning))
        with Checkpoints(folder.checkpoints, keep_best=config.train.best_by) as checkpoints:
            wants_best = config.evaluation.checkpoint == "best"
            step = checkpoints.best_step() if wants_best else checkpoints.latest_step()
            if wants_best and step is None:
                raise UserError(
                    "config.evaluation.checkpoint = 'best': no checkpoint records "
                    f"config.train.keep_best = '{config.train.keep_best}'; use 'newest'"
                )
            variables = checkpoints.restore(config, step, variables=abstract)["variables"]
            assert step is not None  # restore has raised otherwise
            date = checkpoints.date(step)
            newest = checkpoints.latest_step() or 0
        learned = read_learned(folder, step)
        if learned is None and config.model.detector == "devcore":
            logger.warning(
                "%s is missing or of another step: alarms are not compared with labelled kinds; "
                "train again to write it",
                folder.learned,
            )
        detector = cls(
            learning,
            variables,
            step,
            kinds=tuple(learned.kinds) if learned else (),
            white_level=split.white_level if split else 0,
            ordinary=read_ordinary(folder),
            date=date,
            unfinished=_unfinished(read_config(folder), newest),
        )
        if detector.interruption:
            logger.warning("%s", detector.interruption)
        # Without images held out, a run may still be recalibrated.
        if not calibrated or not (config.dataset.calibration or folder.calibration.exists()):
            return detector
        scores = scores_of_step(folder, step)
        detector = dataclasses.replace(detector, calibration_scores=scores)
        if len(scores) and detector.shortage:  # scores_of_step has said why there are none
            logger.warning("%s", detector.shortage)
        return detector

    def __getstate__(self) -> dict[str, Any]:
        # Without cached properties, such as the folded weights.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def name(self) -> str:
        """Name of the detector (`Config.detector_name`)."""
        return self.config.detector_name

    @functools.cached_property
    def thresholds(self) -> list[Threshold]:
        """All known thresholds, the one in force first: given, calibrated, then the prior's."""
        settings = self.config.evaluation
        candidates = (
            calibrated_threshold(self.calibration_scores, settings.false_alarm_rate),
            prior_threshold(self.prior, settings.confidence),
        )
        known = [threshold for threshold in candidates if threshold is not None]
        given = settings.given_threshold
        if given is None:
            return known
        return [given_threshold(given, self.good_scores, self.prior), *known]

    def with_threshold(self, value: float) -> Self:
        """Returns the detector with a given threshold in force: `evaluation.threshold`."""
        evaluation = dataclasses.replace(self.config.evaluation, threshold=value)
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, evaluation=evaluation)
        )

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """Settings of the way from an image to the network's input, and back."""
        settings = Preprocessing.from_settings(self.config.dataset)
        return dataclasses.replace(settings, white_level=self.white_level or settings.white_level)

    @property
    def original_maps(self) -> bool:
        """True if maps have the images' own size, False for that of the network's input."""
        return self.config.evaluation.map_size == "original"

    @property
    def prior(self) -> Prior | None:
        """The prior that normal scores follow; `None` if the training loss has no prior."""
        return prior_of(self.config.loss)

    @property
    def tells_prior(self) -> bool:
        """True if tables also hold the p-values under the prior: `evaluation.prior_p_values`."""
        return self.config.evaluation.prior_p_values

    @property
    def margin(self) -> float:
        """The score that training pushes anomalies to."""
        return self.config.loss.margin

    @property
    def explanation(self) -> str:
        """Default explanation method."""
        return self.config.evaluation.explanation

    @functools.cached_property
    def good_scores(self) -> np.ndarray:
        """Scores of calibration as written, float64 [n], ascending."""
        return np.sort(as_written(self.calibration_scores))

    @property
    def shortage(self) -> str | None:
        """A warning if too few images were held out to calibrate, else `None`."""
        if not self.config.dataset.calibration:
            return None
        return shortage(len(self.calibration_scores), self.config.evaluation.false_alarm_rate)

    @property
    def interruption(self) -> str | None:
        """A warning if the run has not done all steps of its settings, else `None`."""
        if self.unfinished is None:
            return None
        return "the run has done step {} of {}: run --mode=train again to finish it".format(
            *self.unfinished
        )

    @standard_numerics()
    def _score(self, images: np.ndarray) -> RawScores:
        result = RawScores(*self._apply(score_images, images))
        if not np.isfinite(result.scores).all():
            name = "optimizer.learning_rate"
            if self.config.model.detector == "devcore":
                name = "devcore.head_learning_rate"
            raise UserError(
                f"the network of step {self.step} gives scores that are not finite; train again "
                f"with a smaller config.{name}"
            )
        return result

    @standard_numerics()
    def _explain(
        self, images: np.ndarray, method: str | None, maps: np.ndarray | None
    ) -> np.ndarray:
        method = method or self.explanation
        if method not in EXPLAINERS:
            raise UserError(
                f"explanation {method!r}: no such method; {nearest(method, EXPLAINERS)}"
            )
        if method == "score_map" and maps is not None:
            function = functools.partial(enlarge, self.folded[0])
            return np.asarray(self._in_batches(function, (maps, images)))
        maps = np.asarray(self._apply(EXPLAINERS[method](self.config), images), np.float32)
        if not np.isfinite(maps).all():
            raise UserError(
                f"the network of step {self.step} has gradients that are not finite; explain by "
                "config.evaluation.explanation = 'score_map', or train again with a smaller "
                "config.optimizer.learning_rate"
            )
        return maps

    @functools.cached_property
    def folded(self) -> tuple[Model, dict[str, Any]]:
        """Network and variables with BatchNorm folded into the convolutions, to save time."""
        keep_compiled()
        model = make_model(self.config).clone(folded=True)
        # The function itself is jitted, so that detectors share the compiled program.
        fold = jax.jit(fold_batch_norm, static_argnames="backbone")
        return model, fold(self.variables, backbone=self.config.model.backbone)

    def _apply(self, function: Callable[..., Any], images: np.ndarray) -> Any:
        """Calls function(model, variables, images) batch by batch and joins the results."""
        return self._in_batches(functools.partial(function, *self.folded), images)

    def _in_batches(
        self, function: Callable[..., Any], arrays: np.ndarray | tuple[np.ndarray, ...]
    ) -> Any:
        """Applies a function to images, whose tiles are computed one after the other."""
        batch_size = max(self.config.evaluation.batch_size // self.preprocessing.n_tiles, 1)
        return apply_in_batches(function, arrays, batch_size, fixed=self._fixed_batches)


def _unfinished(saved: Config, newest: int) -> tuple[int, int] | None:
    """Returns `TrainedDetector.unfinished`; DevCore is trained at once."""
    if saved.model.detector == "devcore" or newest >= saved.last_step:
        return None
    return newest, saved.last_step


def read_split(workdir: Workdir) -> Split | None:
    """Reads the split of a run; `None` if there is no split.json."""
    return Split.from_dict(read_json(workdir.split)) if workdir.split.exists() else None
