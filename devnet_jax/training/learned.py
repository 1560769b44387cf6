"""learned.json: what DevCore has learned beside its weights, for people and for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json, write_json
from devnet_jax.runtime.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Learned:
    """Content of learned.json.

    Attributes:
      step: step of the checkpoint that it belongs to.
      kinds: names of the labelled kinds of defects, in the order of the network's numbers.
      weights: weight of each component of the score, by name.
      normal_scores: cross-validated scores of normal training images.
      anomaly_scores: those of the labelled anomalies; empty with less than two labels.
    """

    step: int
    kinds: Sequence[str]
    weights: Mapping[str, float]
    normal_scores: Sequence[float]
    anomaly_scores: Sequence[float]


def write_learned(workdir: Workdir, learned: Learned) -> None:
    """Writes learned.json, atomically."""
    write_json(workdir.learned, dataclasses.asdict(learned))


def read_learned(workdir: Workdir, step: int) -> Learned | None:
    """Reads learned.json; `None` if there is none of that step.

    Raises:
      UserError: if the file is damaged.
    """
    if not workdir.learned.exists():
        return None
    values = read_json(workdir.learned)
    try:
        learned = Learned(
            int(values["step"]),
            tuple(map(str, values["kinds"])),
            {str(name): float(weight) for name, weight in values["weights"].items()},
            np.array(values["normal_scores"], np.float64).reshape(-1).tolist(),
            np.array(values["anomaly_scores"], np.float64).reshape(-1).tolist(),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{workdir.learned}: damaged; delete the checkpoints beside it and train again"
        ) from None
    return learned if learned.step == step else None
