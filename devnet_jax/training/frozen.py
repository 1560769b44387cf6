"""Streams the training images through the frozen backbone, for DevCore."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from tqdm import tqdm

from devnet_jax.config import Config
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import normalise
from devnet_jax.data.store import ImageReader
from devnet_jax.distributed.batching import apply_in_batches
from devnet_jax.distributed.cluster import gather, local_share, report_progress
from devnet_jax.models import DevCore
from devnet_jax.models.devcore import Features
from devnet_jax.rng import generator


class GoodParts(NamedTuple):
    """Sampled feature vectors and mean features of N normal training images.

    Attributes:
      samples: float32 [n, C], feature vectors at random positions.
      owners: int [n], index of the image that each of them is from.
      fine: float32 [N, C], means of the patches (`Features.fine`).
      coarse: float32 [N, D], means of the last stage.
    """

    samples: np.ndarray
    owners: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray


@functools.partial(jax.jit, static_argnames="model")
def frozen_features(model: DevCore, variables: dict[str, Any], images: jax.Array) -> Features:
    """Returns the features of images uint8 [B, S, S, 3]."""
    return cast(Features, model.apply(variables, normalise(images), method="features"))


class FeatureReader:
    """Reads training images and computes their features, batch by batch, with prefetching."""

    def __init__(
        self, config: Config, model: DevCore, variables: dict[str, Any], images: ImageReader
    ) -> None:
        """Creates a reader; nothing is read yet.

        Args:
          config: all settings.
          model: folded network.
          variables: its variables.
          images: the training images.
        """
        self._batch_size = config.evaluation.batch_size
        self._function = functools.partial(frozen_features, model, variables)
        self._images = images

    def read(
        self, indices: np.ndarray, description: str, flip: tuple[int, ...] = ()
    ) -> Iterator[tuple[np.ndarray, Features]]:
        """Yields the features of images in batches, with the images' indices.

        Args:
          indices: int [n], indices of training images.
          description: label of the progress bar.
          flip: axes that are reversed: 1 turns images upside down, 2 mirrors them.

        Raises:
          UserError: if an image cannot be decoded.
        """
        starts = range(0, len(indices), self._batch_size)
        parts = (indices[start : start + self._batch_size] for start in starts)
        batches = prefetch((part, self._images.read(part)) for part in parts)
        # disable=None: shown on a terminal, silent in a log file.
        bar = tqdm(total=len(indices), unit="image", desc=description, disable=None)
        with bar, contextlib.closing(batches):
            for part, pixels in batches:
                pixels = np.flip(pixels, flip)
                yield part, apply_in_batches(self._function, pixels, self._batch_size)
                bar.update(len(part))
                report_progress()


def collect_good_parts(config: Config, reader: FeatureReader, n_normal: int) -> GoodParts:
    """Reads all normal training images once; several processes share them.

    It keeps about `devcore.memory_samples` positions, equally many of each image. Beyond these,
    memory grows by two vectors an image.

    Args:
      config: all settings.
      reader: reader of the training images.
      n_normal: number of normal training images, which come first.
    """
    wanted = config.devcore.memory_samples
    per_image = -(-wanted // n_normal)
    sampled = set(generator(config.seed, "sampled images").permutation(n_normal)[:wanted].tolist())
    kept: dict[str, list[np.ndarray]] = {name: [] for name in GoodParts._fields}
    share = local_share(range(n_normal))
    for indices, features in reader.read(np.array(share, int), "reading good parts"):
        kept["fine"].append(np.asarray(features.fine))
        kept["coarse"].append(np.asarray(features.coarse))
        for i, patches in zip(indices.tolist(), features.patches, strict=True):
            if i not in sampled:
                continue
            vectors = patches.reshape(-1, patches.shape[-1])
            order = generator(config.seed, "sampled positions", i).permutation(len(vectors))
            kept["samples"].append(vectors[order[:per_image]])
            kept["owners"].append(np.full(len(kept["samples"][-1]), i))
    everyones = gather({name: np.concatenate(v) for name, v in kept.items() if v})
    return GoodParts(
        *(np.concatenate([e[name] for e in everyones if name in e]) for name in GoodParts._fields)
    )
