"""Fits DevCore's head: cross-validates its components, mixes them, and standardises the score."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from devnet_jax.config import Config
from devnet_jax.models.devcore import COMPONENTS, whole_scores
from devnet_jax.rng import generator
from devnet_jax.runtime.progress import COMPILING, Phase
from devnet_jax.training.local_head import (
    LocalHead,
    centre_and_spread,
    fit_local_head,
    local_scores,
    untrained_head,
)
from devnet_jax.training.mixture import fit_mixture
from devnet_jax.training.whole_image import WholeParameters, fit_whole

_VIEWS = ("fine", "coarse")


@dataclasses.dataclass(frozen=True)
class LearningSet:
    """Features of the images that the head is learned from: n normal images, then a anomalies.

    Attributes:
      residuals: floating [n + a, P, C], of the positions farthest from the memory, in units of the
        root mean square of all positions of normal images.
      counts: int [n + a], number of positions whose mean is the local score.
      vectors: for each of "fine" and "coarse", float32 [n + a, D], the images as a whole.
      flipped: for each of them, float32 [a, F, D], the labelled anomalies flipped in F ways.
      all_normal: for each of them, float32 [N, D], the same of all normal training images.
      chosen: int [n], which of the N normal images the first n are.
    """

    residuals: jax.Array
    counts: np.ndarray
    vectors: dict[str, np.ndarray]
    flipped: dict[str, np.ndarray]
    all_normal: dict[str, np.ndarray]
    chosen: np.ndarray

    @property
    def n_normal(self) -> int:
        return len(self.chosen)

    @property
    def n_all(self) -> int:
        """N, the number of all normal training images."""
        return len(self.all_normal["fine"])

    @property
    def n_anomaly(self) -> int:
        return len(self.residuals) - len(self.chosen)

    def anomalous_vectors(self, view: str, positions: np.ndarray) -> np.ndarray:
        """Returns the vectors of labelled anomalies as they are and flipped, float32 [n, D].

        A defect is a defect however the part lies; flipped, few labels teach more.
        """
        vectors = self.vectors[view]
        flipped = self.flipped[view][positions - self.n_normal]
        return np.concatenate([vectors[positions], flipped.reshape(-1, vectors.shape[-1])])


class Fold(NamedTuple):
    """A fold of the cross-validation: images to fit one model on, and images that it scores.

    Attributes:
      normal: int, positions in the learning set of normal images to fit on.
      anomalous: int, positions of anomalies to fit on.
      held_out: int, positions to score.
      all_normal: bool [N], normal training images to fit on.
    """

    normal: np.ndarray
    anomalous: np.ndarray
    held_out: np.ndarray
    all_normal: np.ndarray


class Model(NamedTuple):
    """All components, fitted: the local head, and the whole-image parameters by view."""

    local: LocalHead
    whole: dict[str, WholeParameters]


class FittedHead(NamedTuple):
    """The result of `fit_head`.

    Attributes:
      position_parameters: parameters of `PositionHead` that are fitted here, by name.
      image_parameters: parameters of `ImageHead`, by name.
      weights: weight of each component, by name.
      normal_scores: float64 [n], cross-validated scores of the normal images.
      anomaly_scores: float64 [a], those of the labelled anomalies, each by a model that has not
        seen it; empty with less than two labels.
    """

    position_parameters: dict[str, object]
    image_parameters: dict[str, object]
    weights: dict[str, float]
    normal_scores: np.ndarray
    anomaly_scores: np.ndarray


def fit_head(config: Config, data: LearningSet) -> FittedHead:
    """Fits the head on all images; scores each image by a model that has not seen it.

    Args:
      config: all settings.
      data: features of the images, at least two of them normal.
    """
    # One thread: these matrices are small, and BLAS threads that wait for a core that another
    # process has are ten times slower. Results do not depend on the number of cores.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        return _fit_head(config, data)


def _fit_head(config: Config, data: LearningSet) -> FittedHead:
    n, labels = data.n_normal, data.n_anomaly
    folds = make_folds(config, data)
    # A single label cannot be left out: its row stays zero, and nothing is fitted to it.
    components = np.zeros((n + labels, len(COMPONENTS)))
    nothing_held_out = np.arange(0)
    everything = Fold(
        np.arange(n), np.arange(n, n + labels), nothing_held_out, np.ones(data.n_all, bool)
    )
    with Phase("fitting the head", len(folds) + 1, "fit", first=COMPILING) as phase:
        for fold in folds:
            components[fold.held_out] = score(config, data, fit(config, data, fold), fold.held_out)
            phase.update()
        model = fit(config, data, everything)
        phase.update()

    mixed = mix(config, components[:n], components[n:])
    if labels > 1:
        estimated = nested_scores(config, components, folds, n)
    else:
        estimated = components[:n] @ mixed.weights + mixed.bias
    local_centre, local_spread = centre_and_spread(components[:n, 0])
    image_parameters: dict[str, object] = {
        "centre": np.float32(local_centre),
        "spread": np.float32(local_spread),
        "mixture": mixed.weights.astype(np.float32),
        "bias": np.float32(mixed.bias),
        **{view: model.whole[view]._asdict() for view in _VIEWS},
    }
    weights = dict(zip(COMPONENTS, mixed.relative.tolist(), strict=True))
    return FittedHead(
        model.local._asdict(), image_parameters, weights, estimated[:n], estimated[n:]
    )


def make_folds(config: Config, data: LearningSet) -> list[Fold]:
    """Divides normal images and labelled anomalies into folds; a single label stays in all."""
    n, labels = data.n_normal, data.n_anomaly
    n_folds = min(config.devcore.folds, data.n_all)
    order = generator(config.seed, "folds").permutation(data.n_all)
    fold_of_normal = np.empty(data.n_all, int)
    fold_of_normal[order] = np.arange(data.n_all) % n_folds
    fold_of_label = np.arange(labels) % n_folds if labels > 1 else np.full(labels, -1)
    fold_of_label = generator(config.seed, "label folds").permutation(fold_of_label)
    positions = np.arange(n + labels)
    fold_of = np.concatenate([fold_of_normal[data.chosen], fold_of_label])
    folds = []
    for i in range(n_folds):
        kept = positions[fold_of != i]
        held_out = positions[fold_of == i]
        if len(held_out):
            folds.append(Fold(kept[kept < n], kept[kept >= n], held_out, fold_of_normal != i))
    return folds


def fit(config: Config, data: LearningSet, fold: Fold) -> Model:
    """Fits all components on a fold's images."""
    local = untrained_head(data.residuals.shape[-1])
    if len(fold.anomalous):
        local = fit_local_head(config, data.residuals, data.counts, fold.normal, fold.anomalous)
    whole = {
        view: fit_whole(
            data.all_normal[view][fold.all_normal],
            data.anomalous_vectors(view, fold.anomalous),
        )
        for view in _VIEWS
    }
    return Model(local, whole)


def score(config: Config, data: LearningSet, model: Model, positions: np.ndarray) -> np.ndarray:
    """Returns the components of images, float64 [len(positions), K]."""
    # All images, so that one program serves all folds.
    local = local_scores(data.residuals, model.local, data.counts)[positions]
    distances, directions = zip(
        *(
            whole_scores(jnp.asarray(data.vectors[view]), *map(jnp.asarray, model.whole[view]))
            for view in _VIEWS
        ),
        strict=True,
    )
    columns = [local, *(np.asarray(value)[positions] for value in (*distances, *directions))]
    return np.stack(columns, axis=-1).astype(np.float64)


class _Mixture(NamedTuple):
    """Weights float64 [K] and bias of unstandardised components, and the standardised weights."""

    weights: np.ndarray
    bias: float
    relative: np.ndarray


def mix(config: Config, normal: np.ndarray, anomalous: np.ndarray) -> _Mixture:
    """Mixes components so that scores of normal images have median 0 and deviation 1.

    Args:
      config: all settings.
      normal: float64 [n, K], cross-validated components of normal images.
      anomalous: float64 [a, K], those of labelled anomalies.
    """
    scales = [centre_and_spread(column) for column in normal.T]
    centres, spreads = np.array(scales).T
    standardised = [(components - centres) / spreads for components in (normal, anomalous)]
    relative = fit_mixture(standardised[0], standardised[1], config.loss.margin)
    centre, spread = centre_and_spread(standardised[0] @ relative)
    weights = relative / spreads / spread
    return _Mixture(weights, -float(centres @ weights) - centre / spread, relative)


def nested_scores(
    config: Config, components: np.ndarray, folds: list[Fold], n_normal: int
) -> np.ndarray:
    """Returns scores float64 [n + a], the mixture of each fold fitted without its images."""
    scores = np.empty(len(components))
    for fold in folds:
        kept = np.setdiff1d(np.arange(len(components)), fold.held_out)
        normal, anomalous = kept[kept < n_normal], kept[kept >= n_normal]
        mixed = mix(config, components[normal], components[anomalous])
        scores[fold.held_out] = components[fold.held_out] @ mixed.weights + mixed.bias
    return scores
