"""Detector: weights, preprocessing and threshold in one; what everything after training uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from devnet_jax.checkpoints import Checkpoints
from devnet_jax.config import Config
from devnet_jax.devices import abstract_replicated
from devnet_jax.errors import UserError
from devnet_jax.initialisation import abstract_variables, make_model
from devnet_jax.scoring import Scores, score_in_batches
from devnet_jax.thresholds import prior_threshold
from devnet_jax.workdir import Workdir, read_config


@dataclasses.dataclass(frozen=True)
class Detector:
    """A trained network that scores images.

    Attributes:
      config: the settings of the run that trained it.
      variables: the network's "params" and "batch_stats", on all local devices.
      step: training steps behind it.
    """

    config: Config
    variables: dict[str, Any]
    step: int

    @classmethod
    def load(cls, workdir: epath.PathLike, config: Config | None = None) -> Detector:
        """Restores the newest checkpoint of a run.

        Args:
          workdir: the run's folder.
          config: its settings, where some that may change were changed; by default those of
            config.json.

        Raises:
          UserError: no run is there, or its checkpoint is missing, damaged or of another
            network.
        """
        folder = Workdir(workdir)
        folder.require_run()
        if config is None:
            config = read_config(folder)
        abstract = abstract_replicated(abstract_variables(config))
        with Checkpoints(folder.checkpoints) as checkpoints:
            variables = checkpoints.restore(config, variables=abstract)["variables"]
            step = checkpoints.latest_step()
        assert step is not None  # restore has raised otherwise
        return cls(config, variables, step)

    @property
    def threshold(self) -> float | None:
        """The score from which an image counts as anomalous; `None` if the loss knows no prior."""
        return prior_threshold(self.config.loss, self.config.evaluation.confidence)

    def score(self, images: np.ndarray) -> Scores:
        """Scores decoded images.

        Args:
          images: uint8 [N, S, S, 3], S the `image_size` of the settings (`load_image` in
            `devnet_jax.data.decode` decodes and resizes a file so); N at least 1.

        Returns:
          Scores float32 [N], of which the deviation loss brings those of normal images to the
          prior's mean (with the standard prior they read as standard deviations from normal),
          and maps float32 [N, h, w]: the signed score of each position.

        Raises:
          UserError: the images are of another type or size.
        """
        size = self.config.dataset.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or len(images) == 0:
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; "
                f"this detector scores uint8 [N, {size}, {size}, 3]"
            )
        return score_in_batches(
            make_model(self.config), self.variables, images, self.config.evaluation.batch_size
        )
