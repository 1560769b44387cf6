"""Balanced batches as a pure function of the seed and the step (section 3.4 of the paper)."""

from __future__ import annotations

import numpy as np

from devnet_jax.rng import generator


def balanced_batch(
    step: int, *, n_normal: int, n_anomaly: int, batch_size: int, seed: int
) -> np.ndarray:
    """Draws the image indices of one step: half normal images, half labelled anomalies.

    Normal images and anomalies are each drawn from repeated shuffles, so no image is drawn again
    before all others of its kind have been drawn.

    Args:
      step: number of the step, from 0.
      n_normal: number of normal training images; their indices are 0 … n_normal-1.
      n_anomaly: number of labelled anomalies; their indices follow.
      batch_size: number of images in the batch; if odd, there is one more anomaly.
      seed: seed of the run.

    Returns:
      int32 [batch_size]: the indices of the normal images, then those of the anomalies.
    """
    half = batch_size // 2
    normal = _repeated_shuffles(step * half, half, n_normal, seed, "normal")
    rest = batch_size - half
    anomaly = _repeated_shuffles(step * rest, rest, n_anomaly, seed, "anomaly")
    return np.concatenate([normal, n_normal + anomaly]).astype(np.int32)


def _repeated_shuffles(start: int, count: int, n: int, seed: int, kind: str) -> np.ndarray:
    """Returns entries start … start+count-1 of the concatenated shuffles of 0 … n-1."""
    rounds = range(start // n, (start + count - 1) // n + 1)
    indices = np.concatenate([generator(seed, f"sample {kind}", r).permutation(n) for r in rounds])
    offset = start - rounds.start * n
    return indices[offset : offset + count]
