"""`Detector`, the public class to train, load and use a detector from Python."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Self

from etils import epath

from devnet_jax.config import Config, for_folder, for_list, full_name, with_settings
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.runtime.progress import showing
from devnet_jax.runtime.startup import keep_compiled
from devnet_jax.runtime.workdir import Workdir


class Detector(TrainedDetector):
    """Trains a detector, or loads one, and scores and explains images with it."""

    # Programs of others score single images, too.
    _fixed_batches = False

    @classmethod
    def train(
        cls,
        data: epath.PathLike | Config,
        workdir: epath.PathLike | None = None,
        *,
        verbose: bool = True,
        **settings: Any,
    ) -> Self:
        """Trains and evaluates a detector, as `--mode=train` does.

        Args:
          data: a folder of images, laid out as train/good, test/good and test/<defect>; or a table
            of images and their labels, *.csv or *.tsv; or all settings. Of a folder and a table, a
            fifth of the good images to train with calibrates the threshold.
          workdir: folder of the run, where a stopped run is resumed and the report is written. The
            default is a temporary folder, which is removed at the end.
          verbose: True to show the progress of what takes longer than a second: a bar on a
            terminal, a few lines elsewhere.
          **settings: single settings by the last part of their names, n_anomaly=10; or by the full
            name where several end alike: **{"train.batch_size": 8}.

        Raises:
          UserError: for a mistake in the settings, the data, the weights or the workdir.
        """
        # Only training needs these, and what they import.
        from devnet_jax.evaluation.evaluate import evaluate
        from devnet_jax.training.run import train

        keep_compiled()
        config = data if isinstance(data, Config) else _settings_for(data)
        config = with_settings(config, {full_name(name): v for name, v in settings.items()})
        with showing(verbose), contextlib.ExitStack() as stack:
            if workdir is None:
                temporary = tempfile.TemporaryDirectory(prefix="devnet-")
                workdir = stack.enter_context(temporary)
            train(config, Workdir(workdir))
            evaluate(config, Workdir(workdir))
            return cls.restore(workdir, config)


def _settings_for(data: epath.PathLike) -> Config:
    """Returns the settings for a folder, or for a table by its name."""
    path = Path(data)
    is_table = path.suffix.lower() in (".csv", ".tsv") and not path.is_dir()
    return for_list(path) if is_table else for_folder(path)
