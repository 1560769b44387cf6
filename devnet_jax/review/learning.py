"""Learns a DevCore from labels in seconds, and scores pictures with it, from kept features."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from devnet_jax.config import Config
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.evaluation.estimate import expected_performance
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.forward import score_features
from devnet_jax.inference.scores import RawScores, Scores
from devnet_jax.models.devcore import LABELLED_PER_IMAGE, UNLIKE, Features
from devnet_jax.review.features import FeatureStore, LearningPictures
from devnet_jax.training.devcore import fit_features
from devnet_jax.training.frozen import FrozenNetwork

# The sizes of the learning set and of the labels are rounded, so that programs are compiled for few
# sizes: to compile takes longer than to learn.
_ROUND = 32


class LearningSet(NamedTuple):
    """Numbers of the pictures that a detector is learned from.

    Attributes:
      good: labelled good.
      presumed: not looked at, and taken for good, as the paper takes unlabelled images for normal;
        the least suspicious first.
      anomalous: labelled anomalies.
      kinds: kind of each labelled anomaly.
      calibration: labelled good, for the threshold alone.
    """

    good: Sequence[int]
    presumed: Sequence[int]
    anomalous: Sequence[int]
    kinds: Sequence[str]
    calibration: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class LearnedDetector:
    """A detector, with the scores of the pictures that it has learned from.

    Attributes:
      detector: the detector.
      own_scores: cross-validated score of each picture of the learning set, by its number: each is
        by a model that has not seen the picture.
      expected: entries of `expected_performance`, empty without two labelled anomalies.
    """

    detector: TrainedDetector
    own_scores: Mapping[int, float]
    expected: Mapping[str, float]

    def quiet(self, pictures: Sequence[int]) -> list[int]:
        """Returns those pictures learned from that raise no alarm, and so need no reason."""
        threshold = self.detector.threshold
        if threshold is None:
            return []
        return [i for i in pictures if self.own_scores.get(i, np.inf) < threshold.value]

    def own(self, pictures: Sequence[int]) -> Scores:
        """Returns the scores of `quiet` pictures, without maps; the network is not asked."""
        scores = np.array([self.own_scores[i] for i in pictures], np.float32)
        n = len(pictures)
        return self.detector.interpret(RawScores(scores, np.empty((n, 0, 0), np.float32)))

    def with_own(self, pictures: Sequence[int], raw: RawScores) -> RawScores:
        """Returns scores of pictures, with `own_scores` of those learned from."""
        own = [self.own_scores.get(i, score) for i, score in zip(pictures, raw.scores, strict=True)]
        return raw._replace(scores=np.array(own, np.float32))


def scores_of(
    detector: TrainedDetector, store: FeatureStore, pictures: Sequence[int]
) -> Iterator[tuple[Sequence[int], RawScores]]:
    """Yields pictures in batches, and the scores of a DevCore from their features."""
    model, variables = detector.folded
    function = functools.partial(score_features, model, variables)
    size = max(store.tiles_per_batch // store.n_tiles, 1)
    for batch, features in store.batches(pictures):
        yield batch, RawScores(*_apply(function, features, size))


def learn(
    config: Config, network: FrozenNetwork, store: FeatureStore, pictures: LearningSet, step: int
) -> LearnedDetector:
    """Learns a detector.

    The calibration pictures set its threshold; without any, the cross-validated scores of the good
    and presumed ones do.

    Args:
      config: all settings; DevCore's.
      network: network that the features are of.
      store: features of all pictures.
      pictures: pictures to learn from, at least two of them good or presumed so.
      step: number of the detector.

    Raises:
      UserError: if a picture cannot be decoded, or there are fewer than two good ones.
    """
    kinds = sorted(set(pictures.kinds))
    good = _rounded(pictures, config.devcore.learning_images)
    chosen = [*good, *pictures.anomalous]
    store.pin([*chosen, *pictures.calibration])
    settings = dataclasses.replace(config.devcore, learning_images=max(len(good), 20))
    fitted = fit_features(
        dataclasses.replace(config, devcore=settings),
        network,
        LearningPictures(store, chosen),
        len(good),
        [kinds.index(kind) for kind in pictures.kinds],
    )
    assert fitted is not None  # a review has one process
    head = fitted.head
    n_labels = len(pictures.anomalous)
    anomaly_scores = head.anomaly_scores if n_labels > 1 else np.empty(0)
    own = dict(zip(good, head.normal_scores.tolist(), strict=True))
    own |= dict(zip(pictures.anomalous, anomaly_scores.tolist(), strict=False))
    n_padded = 1 << (n_labels - 1).bit_length() if n_labels else 0
    preprocessing = Preprocessing.from_settings(config.dataset)
    detector = TrainedDetector(
        config.with_labels(n_padded),
        jax.device_put(_pad_labels(fitted.variables, n_padded)),
        step,
        kinds=tuple(kinds),
        white_level=preprocessing.white_level,
    )
    held_out = head.normal_scores.astype(np.float32)
    if pictures.calibration:
        raw = [scores for _, scores in scores_of(detector, store, pictures.calibration)]
        held_out = np.concatenate([scores.scores for scores in raw])
    detector = dataclasses.replace(detector, calibration_scores=held_out)
    expected = expected_performance(
        list(head.normal_scores), list(anomaly_scores), detector.threshold
    )
    return LearnedDetector(detector, own, expected)


def _rounded(pictures: LearningSet, most: int) -> list[int]:
    """Returns the good pictures to learn from: with the anomalies, a multiple of `_ROUND`.

    All labelled ones, up to `most`, and the least suspicious of the presumed ones.
    """
    good = list(pictures.good)[:most]
    n_presumed = min(len(pictures.presumed), most - len(good))
    total = len(good) + n_presumed + len(pictures.anomalous)
    surplus = min(total % _ROUND, n_presumed) if total > _ROUND else 0
    return good + list(pictures.presumed)[: n_presumed - surplus]


def _apply(function: Callable[[Any], Any], features: Features, size: int) -> Any:
    """Applies a function to features of at most `size` pictures, padded to one shape."""
    n = len(features.patches)

    def pad(leaf: np.ndarray) -> np.ndarray:
        return np.pad(leaf, ((0, size - n), *[(0, 0)] * (leaf.ndim - 1)))

    return jax.tree.map(lambda leaf: np.asarray(leaf)[:n], function(jax.tree.map(pad, features)))


def _pad_labels(variables: dict[str, Any], n_labels: int) -> dict[str, Any]:
    """Returns the variables with the labelled vectors of `n_labels` anomalies, some of no kind."""
    head = dict(variables["params"]["position_head"])
    n = max(n_labels * LABELLED_PER_IMAGE, 1) - len(head["labelled"])
    head["labelled"] = jnp.pad(head["labelled"], ((0, n), (0, 0)))
    head["labelled_kinds"] = jnp.pad(head["labelled_kinds"], (0, n), constant_values=UNLIKE)
    return {**variables, "params": {**variables["params"], "position_head": head}}


def named_estimate(expected: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the page's names of the entries of `expected_performance`."""
    if not expected:
        return None
    names = {
        "auroc": "expected_auroc",
        "low": "expected_auroc_low",
        "high": "expected_auroc_high",
        "n_normal": "n_estimate_normal",
        "n_anomaly": "n_estimate_anomaly",
        "miss_rate": "expected_miss_rate",
        "miss_low": "expected_miss_rate_low",
        "miss_high": "expected_miss_rate_high",
    }
    return {name: expected[entry] for name, entry in names.items() if entry in expected}
