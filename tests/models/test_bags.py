"""Tests of bags: positions of all tiles compete, padding does not, gradients reach all tiles."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax.data.preprocessing import network_input
from devnet_jax.inference.explain import input_gradients
from devnet_jax.models import DevCore, DeviationNetwork
from devnet_jax.models.bags import Model
from devnet_jax.models.bags import score_bags as unjitted_score_bags
from devnet_jax.models.heads import inside_levels

SIZE = 64
score_bags = jax.jit(unjitted_score_bags, static_argnums=0, static_argnames="train")


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model: Model, variables: dict[str, Any], *arguments: Any, method: str) -> Any:
    return model.apply(variables, *arguments, method=method)


@functools.partial(jax.jit, static_argnums=0)
def apply_with_padding(
    model: Model, variables: dict[str, Any], inputs: jax.Array, inside: jax.Array
) -> Any:
    return model.apply(variables, inputs, False, inside, method="positions")


def build(model: Model) -> dict[str, Any]:
    variables = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return {"batch_stats": {}, **variables}


@pytest.fixture(scope="module")
def network() -> tuple[DeviationNetwork, dict[str, Any]]:
    model = DeviationNetwork(backbone="resnet18", n_scales=2, topk=0.3)
    return model, build(model)


@pytest.fixture(scope="module")
def core() -> tuple[DevCore, dict[str, Any]]:
    model = DevCore(backbone="resnet18", memory_size=10, top_positions=0.1)
    variables = build(model)
    rng = np.random.default_rng(1)
    params = variables["params"]
    positions = {
        **params["position_head"],
        "memory": jnp.asarray(rng.random((10, 384), np.float32)),
    }
    combined = {**params["image_head"], "mixture": jnp.array([1.0, 0.5, 0.5, 0.0, 0.0])}
    for view in ("fine", "coarse"):
        n = params["image_head"][view]["mean"].shape[0]
        combined[view] = {**params["image_head"][view], "whitening": jnp.eye(n)}
    heads = {"position_head": positions, "image_head": combined}
    return model, {**variables, "params": {**params, **heads}}


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


def largest(scores: np.ndarray, share: float) -> float:
    return float(np.sort(scores.ravel())[-max(int(share * scores.size), 1) :].mean())


def test_all_tiles_of_a_network_share_the_top_positions(
    network: tuple[DeviationNetwork, dict[str, Any]],
) -> None:
    model, variables = network
    tiles = images(2, 3, SIZE, SIZE, 3)
    (scores, maps), _ = score_bags(model, variables, tiles)
    assert maps.shape == (2, 3, 2, 2)
    for bag, score in zip(tiles, scores, strict=True):
        found = apply(model, variables, network_input(bag)[0], method="positions")
        expected = np.mean([largest(np.abs(scale), 0.3) for scale in found.maps])
        assert float(score) == pytest.approx(expected, rel=1e-5)
    (single, _), _ = score_bags(model, variables, tiles[:, :1])
    (plain, _), _ = score_bags(model, variables, tiles[:, 0])
    np.testing.assert_allclose(single, plain, rtol=1e-5)


def test_all_tiles_of_devcore_make_one_image(core: tuple[DevCore, dict[str, Any]]) -> None:
    model, variables = core
    tiles = images(1, 2, SIZE, SIZE, 3)
    (scores, maps, kinds, _), _ = score_bags(model, variables, tiles)
    assert maps.shape == (1, 2, 8, 8)
    assert kinds.tolist() == [-1]
    features = apply(model, variables, network_input(tiles[0])[0], method="features")
    patches = np.asarray(features.patches, np.float64)
    memory = np.asarray(variables["params"]["position_head"]["memory"], np.float64)
    squares = ((patches[..., None, :] - memory) ** 2).mean(axis=-1).min(axis=-1)
    expected = largest(np.sqrt(squares), 0.1)
    for vectors in (patches.mean(axis=(0, 1, 2)), np.asarray(features.coarse.total).mean(0) / 4):
        expected += 0.5 * np.sqrt(np.mean(vectors**2))
    assert float(scores[0]) == pytest.approx(expected, rel=1e-4)


def test_padding_does_not_count(
    network: tuple[DeviationNetwork, dict[str, Any]], core: tuple[DevCore, dict[str, Any]]
) -> None:
    padded = np.concatenate([images(1, SIZE, SIZE, 3), np.zeros((1, SIZE, SIZE, 1), np.uint8)], -1)
    padded[:, 16:48, :, 3] = 255
    inputs, inside = network_input(padded)
    assert inside is not None
    model, variables = network
    (scores, _), _ = score_bags(model, variables, padded)
    positions = apply_with_padding(model, variables, inputs, inside)
    expected = np.mean(
        [
            largest(np.abs(np.asarray(scale)[np.asarray(levels) == 2]), 0.3)
            for scale, levels in zip(positions.maps, positions.levels, strict=True)
        ]
    )
    assert float(scores[0]) == pytest.approx(expected, rel=1e-5)
    model, variables = core
    (scores, *_), _ = score_bags(model, variables, padded)
    found = apply_with_padding(model, variables, inputs, inside)
    assert found.levels[0].tolist() == [[2 * (2 <= row < 6)] * 8 for row in range(8)]
    features = apply(model, variables, inputs, inside, method="features")
    rows = np.asarray(features.patches)[:, 2:6]
    np.testing.assert_allclose(features.fine.total, rows.sum(axis=(1, 2)), rtol=1e-4)
    assert features.fine.n.tolist() == [32]
    # What lies in the padding of the file changes nothing.
    other = padded.copy()
    other[:, :16, :, :3] = 255
    (again, *_), _ = score_bags(model, variables, other)
    np.testing.assert_array_equal(again, scores)


def test_tiles_of_padding_do_not_count(
    network: tuple[DeviationNetwork, dict[str, Any]], core: tuple[DevCore, dict[str, Any]]
) -> None:
    """A picture in one tile scores as in a bag with tiles of padding, or of two rows of picture."""
    tiles = np.concatenate(
        [images(1, 4, SIZE, SIZE, 3), np.zeros((1, 4, SIZE, SIZE, 1), np.uint8)], -1
    )
    tiles[:, 1, ..., 3] = 255
    tiles[:, 2, :2, :, 3] = 255
    tiles[:, 3, :1, :, 3] = 255
    for model, variables in (network, core):
        (alone, *_), _ = score_bags(model, variables, tiles[:, 1:2])
        (scores, *_), _ = score_bags(model, variables, tiles)
        np.testing.assert_allclose(scores, alone, rtol=1e-5)


def test_levels_of_positions() -> None:
    inside = np.zeros((1, 8, 8), np.float32)
    assert inside_levels(inside, 2, 2).max() == 0
    inside[0, :, 2:5] = 1
    assert inside_levels(inside, 1, 4)[0, 0].tolist() == [0, 2, 2, 0]
    inside[:] = 0
    inside[0, 3, :] = 1  # a strip of one pixel: the position with the most of it
    assert inside_levels(inside, 2, 1)[0, :, 0].tolist() == [1, 0]


def test_gradients_of_tiles_are_those_of_the_whole_bag(
    network: tuple[DeviationNetwork, dict[str, Any]],
) -> None:
    model, variables = network
    inputs, _ = network_input(images(1, 3, SIZE, SIZE, 3))

    def score(bag: jax.Array) -> jax.Array:
        found = model.apply(variables, bag[0], method="positions")
        return model.image_scores(jax.tree.map(lambda leaf: leaf[None], found))[0].sum()

    expected = jax.jit(jax.grad(score))(inputs)
    np.testing.assert_allclose(
        input_gradients(model, variables, inputs), expected, rtol=1e-3, atol=1e-6
    )


def test_training_updates_the_statistics_tile_by_tile(
    network: tuple[DeviationNetwork, dict[str, Any]],
) -> None:
    model, variables = network
    tiles = images(4, 2, SIZE, SIZE, 3)
    _, updated = score_bags(model, variables, tiles, train=True)
    expected = variables
    for tile in (0, 1):
        inputs = network_input(tiles[:, tile])[0]
        _, changed = jax.jit(
            functools.partial(model.apply, method="positions", mutable=["batch_stats"]),
            static_argnums=2,
        )(expected, inputs, True)
        expected = {**expected, **changed}
    for found, wanted in zip(
        jax.tree.leaves(updated), jax.tree.leaves(expected["batch_stats"]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
