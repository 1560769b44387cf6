"""`Detector`, the public class to train, load and use a detector from Python."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any, Self

from etils import epath

from devnet_jax.config import Config, for_folder, full_name, with_settings
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.runtime.workdir import Workdir


class Detector(TrainedDetector):
    """Trains a detector, or loads one, and scores and explains images with it."""

    @classmethod
    def train(
        cls, data: epath.PathLike | Config, workdir: epath.PathLike | None = None, **settings: Any
    ) -> Self:
        """Trains and evaluates a detector, as `--mode=train` does.

        Args:
          data: a folder of images, laid out as train/good, test/good and test/<defect>, a fifth of
            whose train/good calibrates the threshold; or all settings.
          workdir: folder of the run, where a stopped run is resumed and the report is written. The
            default is a temporary folder, which is removed at the end.
          **settings: single settings by the last part of their names, n_anomaly=10; or by the full
            name where several end alike: **{"train.batch_size": 8}.

        Raises:
          UserError: for a mistake in the settings, the data, the weights or the workdir.
        """
        # Only training needs these, and what they import.
        from devnet_jax.evaluation.evaluate import evaluate
        from devnet_jax.training.run import train

        config = data if isinstance(data, Config) else for_folder(data)
        config = with_settings(config, {full_name(name): v for name, v in settings.items()})
        with contextlib.ExitStack() as stack:
            if workdir is None:
                temporary = tempfile.TemporaryDirectory(prefix="devnet-")
                workdir = stack.enter_context(temporary)
            train(config, Workdir(workdir))
            evaluate(config, Workdir(workdir))
            return cls.restore(workdir, config)
