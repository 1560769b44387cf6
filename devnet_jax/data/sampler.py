"""Balanced batches as a pure function of the seed and the step (section 3.4 of the paper)."""

from __future__ import annotations

import numpy as np

from devnet_jax.rng import generator


def balanced_batch(
    step: int, *, n_normal: int, n_anomaly: int, batch_size: int, seed: int
) -> np.ndarray:
    """Indices of the images of one step: half normal, half from the few labelled anomalies.

    Each kind is drawn from an endless row of shuffles of its images, so that no image is drawn
    again before all others of its kind were.

    Args:
      step: number of the step, from 0.
      n_normal: normal training images; their indices are 0 … n_normal-1.
      n_anomaly: labelled anomalies; theirs follow.
      batch_size: images in the batch; of an odd number the anomalies get one more.
      seed: of the run.

    Returns:
      int32 [batch_size]: the indices of the normals, then those of the anomalies.
    """
    half = batch_size // 2
    normal = _endless_shuffle(step * half, half, n_normal, seed, "normal")
    rest = batch_size - half
    anomaly = _endless_shuffle(step * rest, rest, n_anomaly, seed, "anomaly")
    return np.concatenate([normal, n_normal + anomaly]).astype(np.int32)


def _endless_shuffle(start: int, count: int, n: int, seed: int, kind: str) -> np.ndarray:
    """Entries start … start+count-1 of shuffles of 0 … n-1 laid end to end."""
    rounds = range(start // n, (start + count - 1) // n + 1)
    row = np.concatenate([generator(seed, f"sample {kind}", r).permutation(n) for r in rounds])
    offset = start - rounds.start * n
    return row[offset : offset + count]
