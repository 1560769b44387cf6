"""Learning from kept features: the same scores as those of a detector that reads the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devnet_jax.config import Config, with_settings
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.inference.image_list import ImageListReader
from devnet_jax.review import features
from devnet_jax.review.features import FeatureStore, LearningPictures
from devnet_jax.review.learning import LearnedDetector, LearningSet, learn, scores_of
from devnet_jax.training.devcore import fit_devcore, frozen_network
from devnet_jax.training.frozen import FrozenNetwork
from tests.conftest import CORE_SETTINGS, TINY_SETTINGS

SETTINGS = {**TINY_SETTINGS, **CORE_SETTINGS, "dataset.n_anomaly": 0, "dataset.calibration": 0.0}
CONFIG = with_settings(Config(), SETTINGS)
ROOM = 1 << 30


@pytest.fixture(scope="module")
def reader(parts: Path) -> ImageListReader:
    """Nine good pictures, four with a scratch, four with a stain."""
    folders = (parts / "train" / "good", parts / "test" / "scratch", parts / "test" / "stain")
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    return ImageListReader(paths, Preprocessing.from_settings(CONFIG.dataset))


@pytest.fixture(scope="module")
def network() -> FrozenNetwork:
    return frozen_network(CONFIG)


@pytest.fixture(scope="module")
def store(network: FrozenNetwork, reader: ImageListReader) -> FeatureStore:
    return FeatureStore(CONFIG, network, reader, ROOM)


PICTURES = LearningSet([0, 1, 2], [3, 4, 5, 6, 7], [9, 10, 13], ["scratch", "scratch", "stain"])


@pytest.fixture(scope="module")
def learned(network: FrozenNetwork, store: FeatureStore) -> LearnedDetector:
    return learn(CONFIG, network, store, PICTURES, 1)


def test_kept_features_teach_as_the_pictures_do(
    network: FrozenNetwork, reader: ImageListReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit_devcore` reads the pictures; features that are kept are rounded outside of this test."""
    monkeypatch.setattr(features, "_KEPT_DTYPE", np.float32)
    learned = learn(CONFIG, network, FeatureStore(CONFIG, network, reader, ROOM), PICTURES, 1)
    chosen = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 13]
    pixels = reader.read(np.array(chosen))

    class Chosen:
        preprocessing, is_cached = reader.preprocessing, False

        def __len__(self) -> int:
            return len(chosen)

        def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
            return pixels[indices]

    fitted = fit_devcore(CONFIG, Chosen(), 8, [0, 0, 1])
    assert fitted is not None
    expected = [*fitted.head.normal_scores, *fitted.head.anomaly_scores]
    found = [learned.own_scores[i] for i in chosen]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_scores_from_features_are_those_of_the_pictures(
    learned: LearnedDetector, store: FeatureStore, reader: ImageListReader
) -> None:
    """Three labels are padded to four, which must change nothing."""
    ((batch, raw),) = scores_of(learned.detector, store, [8, 12, 16])
    expected = learned.detector.score(reader.read(np.array(batch)))
    np.testing.assert_allclose(raw.scores, expected.scores, rtol=2e-2, atol=2e-2)
    assert learned.detector.interpret(raw).reasons == expected.reasons


def test_pictures_learned_from_have_scores_by_models_that_have_not_seen_them(
    learned: LearnedDetector, store: FeatureStore
) -> None:
    ((batch, raw),) = scores_of(learned.detector, store, [0, 8, 9])
    own = learned.with_own(batch, raw)
    assert own.scores[0] == np.float32(learned.own_scores[0])
    assert own.scores[1] == raw.scores[1]
    assert own.scores[2] == np.float32(learned.own_scores[9])
    assert own.scores[0] > raw.scores[0]  # the memory holds vectors of the picture itself


def test_a_store_without_room_reads_again(
    network: FrozenNetwork, reader: ImageListReader, store: FeatureStore
) -> None:
    everything = list(range(17))
    small = FeatureStore(CONFIG, network, reader, 0)
    small.pin([3])
    for (batch, found), (_, expected) in zip(
        small.batches(everything), store.batches(everything), strict=True
    ):
        assert len(batch) == len(found.patches)
        np.testing.assert_array_equal(found.patches, expected.patches)


@pytest.mark.parametrize("flip", [(), (1,)])
def test_features_are_given_in_the_order_asked_for(store: FeatureStore, flip: tuple) -> None:
    source = LearningPictures(store, [16, 2, 9])
    tiles = list(source.read(np.array([2, 0, 1]), "", flip))
    assert np.concatenate([t.owners for t in tiles]).tolist() == [2, 0, 1]
    patches = np.concatenate([t.features.patches for t in tiles])
    ((_, direct),) = store.batches([9], flip)
    np.testing.assert_array_equal(patches[0], direct.patches[0, 0].astype(np.float32))
