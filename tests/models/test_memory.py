"""Tests of the memory of good parts against NumPy and SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist

from devnet_jax.models import DevCore
from devnet_jax.models.devcore import (
    UNLIKE,
    ImageHead,
    PositionHead,
    Positions,
    Sum,
    position_scores,
)
from devnet_jax.models.heads import n_top, top_mean
from devnet_jax.models.memory import k_centre, nearest, residuals


def test_k_centre_chooses_as_a_loop_in_numpy() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32)
    chosen = [0]
    for _ in range(39):
        distances = cdist(vectors, vectors[chosen]).min(axis=1)
        chosen.append(int(distances.argmax()))
    assert k_centre(jnp.asarray(vectors), 40).tolist() == chosen


def test_nearest_is_that_of_scipy_and_skips_what_is_excluded() -> None:
    rng = np.random.default_rng(1)
    vectors, memory = rng.standard_normal((50, 8)), rng.standard_normal((30, 8))
    distances = cdist(vectors, memory)
    found = nearest(jnp.asarray(vectors, jnp.float32), jnp.asarray(memory, jnp.float32))
    assert found.tolist() == distances.argmin(axis=1).tolist()
    excluded = np.arange(30) % 3 == 0
    found = nearest(
        jnp.asarray(vectors, jnp.float32), jnp.asarray(memory, jnp.float32), jnp.asarray(excluded)
    )
    assert found.tolist() == np.where(excluded, np.inf, distances).argmin(axis=1).tolist()


def test_of_equally_near_vectors_the_first_is_found() -> None:
    memory = jnp.array([[3.0, 0], [1, 0], [1, 0], [0, 1]])
    assert nearest(jnp.zeros((2, 2)), memory).tolist() == [1, 1]


def test_a_training_image_is_not_compared_with_itself() -> None:
    patches = np.random.default_rng(2).standard_normal((3, 2, 2, 5)).astype(np.float32)
    memory, owners = patches.reshape(12, 5), np.repeat(np.arange(3), 4)
    excluded = owners == np.arange(3)[:, None]
    found = residuals(jnp.asarray(patches), jnp.asarray(memory), jnp.asarray(excluded))
    for i in range(3):
        others = memory[owners != i]
        distances = cdist(patches[i].reshape(4, 5), others).min(axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(np.reshape(found[i], (4, 5)), axis=1), distances, rtol=1e-5
        )
    assert not np.any(residuals(jnp.asarray(patches), jnp.asarray(memory)))  # each finds itself


@pytest.fixture(scope="module")
def network() -> tuple[DevCore, dict, np.ndarray]:
    """A network with a random memory and two labelled vectors, and an image."""
    model = DevCore(backbone="resnet18", memory_size=20, n_labelled=2, top_positions=0.2)
    rng = np.random.default_rng(3)
    image = rng.standard_normal((1, 64, 64, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(image))
    patches = model.apply(variables, image, method="features").patches
    positions = {
        "memory": jnp.asarray(rng.permutation(patches.reshape(-1, 384))[:20] * 1.1),
        "scale": jnp.float32(0.3),
    }
    combined = {
        "centre": jnp.float32(0.4),
        "spread": jnp.float32(0.1),
        "mixture": jnp.array([2.0, 0, 0, 0, 0]),
        "bias": jnp.float32(-1),
    }
    return model, with_heads(variables, positions, combined), image


def with_heads(variables: dict, positions: dict, combined: dict | None = None) -> dict:
    """Returns variables with other parameters of the position head and the image head."""
    params = variables["params"]
    heads = {
        "position_head": {**params["position_head"], **positions},
        "image_head": {**params["image_head"], **(combined or {})},
    }
    return {**variables, "params": {**params, **heads}}


def test_features_are_smoothed_enlarged_and_joined(
    network: tuple[DevCore, dict, np.ndarray],
) -> None:
    model, variables, image = network

    def stages(module: DevCore, x: jax.Array) -> dict[str, jax.Array]:
        return module.feature_extractor(x, False, ("layer2", "layer3", "layer4"))

    raw = model.apply(variables, image, method=stages)
    features = model.apply(variables, image, method="features")

    def smooth(array: jax.Array) -> np.ndarray:
        values = np.asarray(array[0], np.float64)
        return uniform_filter(values, (3, 3, 1), mode="constant")

    np.testing.assert_allclose(features.patches[0, ..., :128], smooth(raw["layer2"]), atol=1e-4)
    coarse = jax.image.resize(smooth(raw["layer3"]), (8, 8, 256), "linear")
    np.testing.assert_allclose(features.patches[0, ..., 128:], coarse, atol=1e-4)
    mean = features.coarse.total[0] / features.coarse.n[0]
    np.testing.assert_allclose(mean, np.mean(raw["layer4"][0], (0, 1)), atol=1e-4)


def test_without_labels_it_is_patchcore(network: tuple[DevCore, dict, np.ndarray]) -> None:
    """Position scores are distances to the nearest memory vector, as NumPy computes them."""
    model, variables, image = network
    scores, maps, kinds, likeness = model.apply(variables, image)
    head = variables["params"]["position_head"]
    patches = np.asarray(model.apply(variables, image, method="features").patches[0], np.float64)
    distances = cdist(patches.reshape(-1, 384), np.asarray(head["memory"], np.float64)).min(axis=1)
    positions = distances / np.sqrt(384) / 0.3
    np.testing.assert_allclose(maps.ravel(), (positions - 0.4) / 0.1, rtol=1e-4, atol=1e-4)
    largest = np.sort(positions)[-12:]  # a fifth of 64 positions
    assert float(scores[0]) == pytest.approx(2 * largest.mean() - 1, abs=1e-4)
    assert (kinds.tolist(), likeness.tolist()) == ([UNLIKE], [-1])


def test_an_image_is_like_the_kind_that_differs_from_good_parts_as_it_does(
    network: tuple[DevCore, dict, np.ndarray],
) -> None:
    model, variables, image = network
    patches = model.apply(variables, image, method="features").patches.reshape(-1, 384)
    good = patches.mean(axis=0) - 100  # patches differ from it by about 100 in each channel
    head = {
        "memory": jnp.tile(good, (20, 1)),
        "labelled": jnp.stack([good - 1, good + 1]),
        "labelled_kinds": jnp.array([0, 1], jnp.int32),
    }
    _, _, kinds, likeness = model.apply(with_heads(variables, head), image)
    assert kinds.tolist() == [1]
    assert float(likeness[0]) > 0.9
    opposite = {**head, "labelled": jnp.stack([good - 1, good - 2])}
    _, _, kinds, likeness = model.apply(with_heads(variables, opposite), image)
    assert kinds.tolist() == [UNLIKE]
    assert float(likeness[0]) < -0.9


def test_positions_are_like_the_labelled_vector_with_the_most_similar_residual() -> None:
    head = PositionHead(memory_size=2, n_labelled=3)
    parameters = {
        "memory": jnp.array([[0.0, 0], [10, 0]]),
        "scale": 1.0,
        "weight": jnp.zeros(2),
        "direction": jnp.zeros(2),
        # The last has no difference from good parts: nothing is like it.
        "labelled": jnp.array([[3.0, 0], [10, 5], [10, 0]]),
        "labelled_kinds": jnp.array([4, 7, 9]),
    }
    patches = jnp.array([[4.0, 3], [9.4, 0.8], [10, -2], [0, 0]])[None, None]
    _, kinds, likeness = head.apply({"params": parameters}, patches)
    assert kinds[0, 0, :2].tolist() == [4, 7]
    np.testing.assert_allclose(likeness[0, 0], [0.8, 0.8, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("likeness", "inside", "expected"),
    [
        ([0.9, 0.5, 0.3, 1.0], 4, (0, 1.7 / 3)),  # 0.9 against 0.5 + 0.3
        ([0.5, 0.4, 0.3, 1.0], 4, (1, 0.4)),  # 0.5 against 0.7
        ([0.4, 0.3, 0.3, 1.0], 4, (UNLIKE, 1 / 3)),
        ([0.5, 0.4, 0.3, 1.0], 2, (0, 0.45)),  # the others are padding
        ([-0.5, 0.9, 1.0, 1.0], 4, (1, 1.4 / 3)),
    ],
)
def test_top_positions_vote_for_their_kinds(
    likeness: list[float], inside: int, expected: tuple[int, float]
) -> None:
    levels = (jnp.arange(4) < inside).astype(jnp.int32) * 2
    total = Sum(jnp.zeros((1, 1, 3)), jnp.ones((1, 1)), jnp.full((1, 1), 2))
    positions = Positions(
        jnp.array([[[[5.0, 4, 3, -9]]]]),
        jnp.array([[[[0, 1, 1, 0]]]]),
        jnp.array([[[likeness]]]),
        levels[None, None, None],
        total,
        total,
    )
    (_, _, kinds, mean), _ = ImageHead(0.75).init_with_output(jax.random.key(0), positions)
    assert (int(kinds[0]), float(mean[0])) == (expected[0], pytest.approx(expected[1]))


def test_weights_and_direction_change_the_distance() -> None:
    residual = jnp.array([3.0, 4.0])
    zeros = jnp.zeros(2)
    assert position_scores(residual, zeros, zeros) == pytest.approx(np.sqrt(25 / 2))
    weight = jnp.log(jnp.array([2.0, 1.0]))
    assert position_scores(residual, weight, zeros) == pytest.approx(np.sqrt((18 + 16) / 2))
    direction = jnp.array([1.0, 0])
    expected = np.sqrt(25 / 2 + 3 / (2 * np.sqrt(2)))
    assert position_scores(residual, zeros, direction) == pytest.approx(expected)
    assert position_scores(residual, zeros, -100 * direction) == pytest.approx(1e-3)  # clipped


def test_the_local_score_has_at_least_one_position() -> None:
    assert [n_top(784, share) for share in (0, 0.001, 0.01, 1)] == [1, 1, 7, 784]
    assert top_mean(jnp.array([[1.0, 5.0, 3.0, 2.0]]), 0.5).tolist() == [4.0]
    inside = jnp.array([[True, False, True, True]])
    assert top_mean(jnp.array([[1.0, 5.0, 3.0, 2.0]]), 0.7, inside).tolist() == [2.5]
    # 0.29 · 100 is a little less than 29 in floating point.
    ones = jnp.ones((1, 100))
    assert top_mean(ones, 0.29, ones > 0).tolist() == top_mean(ones, 0.29).tolist() == [1.0]
