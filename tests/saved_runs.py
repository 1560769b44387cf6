"""Reads the checkpoints of runs, so that tests can compare them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from devnet_jax import Detector


def newest_whole(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint, or 0."""
    names = [file.parent.name for file in workdir.glob("checkpoints/*/checksums.json")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    variables = Detector.restore(workdir).variables
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(variables)
    }
